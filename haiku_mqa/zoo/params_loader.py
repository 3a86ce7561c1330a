"""Weights that come one parameter at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from haiku_mqa._keep import Keep, on_device
from haiku_mqa.config import DType
from haiku_mqa.model import Params


@dataclasses.dataclass(frozen=True)
class ParamsLoader:
    """A spec's ``load_params`` that can also hand parameters over one by one.

    Called, it returns all of them in float32, as any ``load_params`` does.

    Attributes:
      read: ``read(dtype, keep, progress) -> params``, which makes each parameter in
        ``dtype`` and holds what ``keep`` makes of it; ``progress`` is whether a
        download shows a bar.

    Example:
      >>> import numpy as np
      >>> from haiku_mqa.config import DecoderConfig
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=16, d_ff=32)
      >>> def read(dtype, keep, progress):
      ...     norm = keep(config, "decoder_lm/norm", "scale", np.ones(16, dtype))
      ...     return {"decoder_lm/norm": {"scale": norm}}
      >>> ParamsLoader(read)()["decoder_lm/norm"]["scale"].dtype
      dtype('float32')
    """

    read: Callable[[DType, Keep, bool], Params]

    def __call__(self) -> Params:
        """Returns the parameters, float32, on the default device."""
        return self.read("float32", on_device, True)
