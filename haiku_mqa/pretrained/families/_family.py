"""What a family of decoders is: its configs and its tensors, in our words and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from haiku_mqa._arguments import differences
from haiku_mqa.config import DecoderConfig, DType
from haiku_mqa.model import build
from haiku_mqa.pretrained._keys import Keys
from haiku_mqa.pretrained.families._layouts import Layout, Pairs, stacked

Shape = tuple[int, ...]
LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A foreign tensor, and the parameters of ours that lie in it.

    ``{layer}`` stands for a layer's number in a name and in our paths. A tensor of
    whose parameters a config has none (biases, an output matrix that is tied) is none
    of its tensors either.

    Attributes:
      name: Of the foreign tensor.
      ours: Path and name of each parameter, below ``decoder_lm/``.
      layout: Where each parameter's rows lie among those of the tensor.
      as_ours: Whether a matrix lies ``[in, out]`` as ours do, and not ``[out, in]``.

    Example:
      >>> Tensor("lm_head.weight", ("unembed/w",)).as_ours
      False
    """

    name: str
    ours: tuple[str, ...]
    layout: Layout = stacked
    as_ours: bool = False

    def of_layer(self, layer: int) -> Tensor:
        """Returns the tensor of one layer."""
        return dataclasses.replace(
            self,
            name=self.name.replace(LAYER, str(layer)),
            ours=tuple(path.replace(LAYER, str(layer)) for path in self.ours),
        )

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Returns the foreign shape for the shapes of our parameters."""
        rows = [self._rows(np.broadcast_to(np.int8(0), shape)) for shape in shapes]
        whole = (sum(len(part) for part in rows), *rows[0].shape[1:])
        return whole[::-1] if self._turned(whole) and self.as_ours else whole

    def pairs(
        self, config: DecoderConfig, foreign: np.ndarray, ours: Sequence[np.ndarray]
    ) -> Pairs:
        """Yields views of the foreign tensor, each with the view of ours that it is.

        Args:
          config: Of the decoder.
          foreign: The tensor, of ``shape``.
          ours: The parameters.

        Yields:
          Pairs of views of one shape; together they cover both sides once.
        """
        turn = self.as_ours and self._turned(foreign.shape)
        theirs = foreign.T if turn else foreign
        yield from self.layout(config, theirs, [self._rows(part) for part in ours])

    def _turned(self, shape: Shape) -> bool:
        return len(shape) == 2 and self.ours[0].endswith("/w")

    def _rows(self, ours: np.ndarray) -> np.ndarray:
        return ours.T if self._turned(ours.shape) else ours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of decoders, named as ``model_type`` in its ``config.json`` names it.

    Attributes:
      model_type: Its name.
      architecture: The class of transformers that runs it.
      read_config: What its keys say, as a config.
      write_config: The keys of a config, as plain data that JSON can hold. What a
        family cannot say need not be minded: see ``keys_of``.
      tensors: Its tensors, those of all layers as one, with ``{layer}`` for the
        layer's number; see ``Tensor`` for which of them a config has.
      prefix: What names of tensors begin with, and do not in files that hold the
        model without its head.
      buffers: How names end of tensors that are no weights, which old files hold.
    """

    model_type: str
    architecture: str
    read_config: Callable[[Keys], DecoderConfig]
    write_config: Callable[[DecoderConfig], dict[str, Any]]
    tensors: Callable[[DecoderConfig], Sequence[Tensor]]
    prefix: str = "model."
    buffers: tuple[str, ...] = ()

    def config_of(
        self, keys: Mapping[str, Any], dtype: DType = "float32"
    ) -> DecoderConfig:
        """Returns the config that the keys of a ``config.json`` mean.

        Args:
          keys: The file's.
          dtype: What the decoder computes in, and what its parameters become.

        Returns:
          The config.

        Raises:
          ValueError: A key or its value is not supported.
          FormatError: A key is missing, or its value cannot be.
        """
        read = Keys(keys)
        config = self.read_config(read)
        read.finish()
        return dataclasses.replace(config, dtype=dtype, param_dtype=dtype)

    def keys_of(self, config: DecoderConfig) -> dict[str, Any]:
        """Returns the keys of a ``config.json`` that mean a config.

        Args:
          config: Of the decoder.

        Returns:
          Plain data.

        Raises:
          ValueError: The family has no such decoder; names the fields that it cannot
            say.
        """
        keys = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **self.write_config(config),
        }
        # What was not written comes back as something else.
        try:
            again = self.config_of(keys)
        except ValueError as error:
            raise ValueError(
                f"config is not one that family {self.model_type!r} can hold: {error}"
            ) from None
        told = differences(_meaning(config), _meaning(again))
        if told:
            raise ValueError(
                f"config is not one that family {self.model_type!r} can hold: {told}"
            )
        return keys

    def tensors_of(self, config: DecoderConfig) -> Iterator[tuple[Tensor, Shape]]:
        """Yields each tensor of a decoder with its shape.

        Args:
          config: Of the decoder.

        Yields:
          Tensors without placeholders, and their foreign shapes.
        """
        shapes = param_shapes(config)
        for tensor in self.tensors(config):
            many = LAYER in tensor.name
            for layer in range(config.num_layers if many else 1):
                one = tensor.of_layer(layer) if many else tensor
                if one.ours[0] in shapes:
                    yield one, one.shape([shapes[path] for path in one.ours])


def param_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Returns the shape of each parameter by its path and name below ``decoder_lm/``.

    Args:
      config: Of the decoder.
    """
    return {
        f"{module}/{leaf}".removeprefix("decoder_lm/"): tuple(spec.shape)
        for module, leaves in build(config).param_shapes.items()
        for leaf, spec in leaves.items()
    }


def linear(
    name: str,
    *ours: str,
    layout: Layout = stacked,
    as_ours: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns the weight and the bias of a layer, or of several that lie in one.

    Args:
      name: Of the foreign layer.
      *ours: Path of each of our layers.
      layout: Where each one's outputs lie.
      as_ours: Whether the weight lies ``[in, out]``.

    Returns:
      Two tensors; where the config has no bias, the second counts for nothing.
    """
    weights, biases = (tuple(f"{path}/{leaf}" for path in ours) for leaf in "wb")
    return (
        Tensor(f"{name}.weight", weights, layout, as_ours),
        Tensor(f"{name}.bias", biases, layout, as_ours),
    )


def norm(name: str, ours: str) -> tuple[Tensor, Tensor]:
    """Returns the scale and the offset of a norm, if it has one.

    Args:
      name: Of the foreign norm.
      ours: Path of ours.
    """
    return (
        Tensor(f"{name}.weight", (f"{ours}/scale",)),
        Tensor(f"{name}.bias", (f"{ours}/offset",)),
    )


def table(name: str, ours: str) -> Tensor:
    """Returns a table of vectors.

    Args:
      name: Of the foreign tensor.
      ours: Path of our table.
    """
    return Tensor(f"{name}.weight", (f"{ours}/embeddings",))


def _meaning(config: DecoderConfig) -> dict[str, Any]:
    """Returns the fields of a config, those without effect at their defaults."""
    fields = config.to_dict()
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    idle = ["dtype", "param_dtype"]
    if config.norm != "layer":
        idle += ["norm_bias"]
    if config.position_embedding != "rotary":
        idle += ["rope_fraction"]
    if not config.qk_norm:
        idle += ["qk_norm_span"]
    fields |= {name: defaults[name] for name in idle}
    fields["sliding_window"] = config.windows
    fields["rope_theta"] = _in_short([r and r[0] for r in config.rotaries])
    fields["rope_scaling"] = _in_short([r and r[1] for r in config.rotaries])
    for name in ("embedding_scale", "residual_scale", "logit_scale"):
        fields[name] = fields[name] or 1.0
    if config.position_embedding == "rotary":
        fields["rope_fraction"] = config.rotary_size / config.key_size
    if config.attn_scale is None:
        fields["attn_scale"] = config.key_size**-0.5
    return fields


def _in_short(of_layers: list[Any]) -> Any:
    """Returns what all layers have, if it is the same; else what each has."""
    first, *others = of_layers
    return tuple(of_layers) if any(other != first for other in others) else first
