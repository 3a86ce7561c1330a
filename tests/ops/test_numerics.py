from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.ops.numerics import first_largest


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 40]), st.integers(1, 5))
def test_first_largest_is_argmax(seed, size, levels):
    x = np.random.default_rng(seed).integers(0, levels, (3, size)).astype(np.float32)
    x[0] = -np.inf
    np.testing.assert_array_equal(first_largest(jnp.asarray(x)), x.argmax(axis=-1))


def test_first_largest_of_nan_is_a_place():
    assert 0 <= int(first_largest(jnp.array([1.0, jnp.nan, 2.0]))) < 3
