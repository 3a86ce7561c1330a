from __future__ import annotations

import jax
import pytest

from haiku_mqa import kernels


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Kernels of this machine, for a module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAIKU_MQA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HAIKU_MQA_KERNELS", "on")
        kernels.build()
        jax.clear_caches()  # what was traced without them
        assert kernels.is_loaded()
        yield
        jax.clear_caches()
