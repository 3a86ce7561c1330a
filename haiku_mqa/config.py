"""What a decoder *is*: one frozen, validated description, free of any array."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, Literal, cast, get_args

from haiku_mqa._arguments import (
    check_count,
    check_kv_heads,
    check_positive,
    is_number,
)
from haiku_mqa.errors import unknown_name
from haiku_mqa.rope_scaling import (
    LongRopeScaling,
    RopeScaling,
    scaling_from_dict,
    scaling_to_dict,
)

PositionEmbedding = Literal["none", "learned", "rotary", "alibi"]
Norm = Literal["layer", "rms", "rms_one_plus"]
QKNormSpan = Literal["head", "own_head", "all_heads"]
NormPlacement = Literal["before", "after", "both", "residual"]
BlockLayout = Literal["sequential", "parallel", "parallel_one_norm"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
DType = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer, described.

    The defaults are the usual modern decoder (rotary positions, RMS norm before
    each part, gated SiLU, no biases, tied embeddings) with one key/value head.

    Attributes:
      vocab_size: V, how many tokens there are.
      num_layers: L, how many blocks are stacked.
      num_heads: N, query heads.
      d_model: D, the width of the residual stream.
      d_ff: F, the width between the two layers of the feed-forward.
      num_kv_heads: K, key/value heads; divides ``num_heads``. 1 is multi-query
        (Shazeer 2019), ``num_heads`` is multi-head, between is grouped-query
        (Ainslie et al. 2023).
      key_size: H, the size of one query or key head; ``d_model // num_heads`` if
        left out.
      value_size: The size of one value head; ``key_size`` if left out.
      max_length: Longest sequence the decoder is made for, in tokens. Bounds the
        table of learned positions, and what generation accepts.
      query_bias: Whether the query projection has a bias.
      key_bias: Whether the key projection has a bias.
      value_bias: Whether the value projection has a bias.
      output_bias: Whether attention's output projection has a bias.
      qk_norm: Whether each query and key head is normalised (with ``norm``'s kind)
        before rotary positions (Henry et al. 2020).
      qk_norm_span: ``"head"``, each head by itself with one scale for all; or
        ``"own_head"``, each by itself with a scale of its own (Cohere); or
        ``"all_heads"``, those of a token as one vector (OLMo 2).
      attn_logit_softcap: Caps attention logits c * tanh(x / c); ``None`` is off
        (Gemma 2).
      attn_scale: Factor on attention logits; ``key_size ** -0.5`` if ``None``.
      sliding_window: How many tokens back, itself included, a token may attend;
        ``None`` is no limit. A tuple gives one value for each layer.
      position_embedding: ``"none"``, ``"learned"`` (a table added to the
        embeddings), ``"rotary"`` (Su et al. 2021) or ``"alibi"`` (Press et al.
        2021).
      rope_theta: Base of the rotary wavelengths. A tuple gives one value for each
        layer; one of ``None`` has no rotary positions.
      rope_fraction: Leading part of each head that is rotated, in (0, 1]; the
        rotated size must come out even.
      rope_scaling: How rotary positions are stretched past the trained context; a
        tuple for each layer.
      norm: ``"layer"`` (Ba et al. 2016), ``"rms"`` (Zhang & Sennrich 2019), or
        ``"rms_one_plus"``, whose scale is stored as its distance from one (Gemma).
      norm_eps: Added to the variance before its root.
      norm_bias: Whether layer norm has an offset. RMS norms have none.
      norm_placement: ``"before"`` each part, x + f(norm(x)); ``"after"``,
        x + norm(f(x)); ``"both"``, x + norm(f(norm(x))); or ``"residual"``, the
        first transformer's norm(x + f(x)) (Vaswani et al. 2017).
      final_norm: Whether the last block is followed by a norm.
      block_layout: ``"sequential"``, attention then feed-forward; ``"parallel"``,
        both read the block's input, each through its own norm; or
        ``"parallel_one_norm"``, both through one norm (Wang & Komatsuzaki 2021).
      activation: ``"relu"``, ``"gelu"`` (exact), ``"gelu_tanh"`` or ``"silu"``.
      gated: Whether the feed-forward is gated, f(gate(x)) * up(x) (Shazeer 2020).
      ff_bias: Whether the feed-forward's projections have biases.
      tie_embeddings: Whether the output matrix is the embedding's.
      embedding_scale: Factor on token embeddings; ``None`` is one.
      residual_scale: Factor on what each part adds to the stream; likewise.
      logit_bias: Whether a bias is added to the logits, tied or not (GPT-J).
      logit_scale: Factor on the logits, their bias included, before they are capped;
        ``None`` is one (Cohere).
      final_logit_softcap: Caps the logits c * tanh(x / c); ``None`` is off.
      embedding_dropout: Dropped share of the embeddings while training, in [0, 1).
      attention_dropout: Dropped share of attention weights while training.
      residual_dropout: Dropped share of each part's output while training.
      param_dtype: What parameters are stored in.
      dtype: What is computed in. Softmax, norms and logits are always float32.

    Raises:
      ValueError: A field is out of what is allowed; the message names it, its
        value, and what is.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> config.num_kv_heads, config.key_size, config.queries_per_kv_head
      (1, 8, 8)
      >>> DecoderConfig.from_dict(config.to_dict()) == config
      True
      >>> dataclasses.replace(config, num_kv_heads=3)
      Traceback (most recent call last):
      ValueError: num_kv_heads must divide num_heads = 8, got 3; allowed: 1, 2, 4, 8
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    d_model: int
    d_ff: int
    num_kv_heads: int = 1
    key_size: int = cast(int, None)
    value_size: int = cast(int, None)
    max_length: int = 2048

    query_bias: bool = False
    key_bias: bool = False
    value_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    qk_norm_span: QKNormSpan = "head"
    attn_logit_softcap: float | None = None
    attn_scale: float | None = None
    sliding_window: int | tuple[int | None, ...] | None = None

    position_embedding: PositionEmbedding = "rotary"
    rope_theta: float | tuple[float | None, ...] = 10_000.0
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | tuple[RopeScaling | None, ...] | None = None

    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    norm_placement: NormPlacement = "before"
    final_norm: bool = True
    block_layout: BlockLayout = "sequential"

    activation: Activation = "silu"
    gated: bool = True
    ff_bias: bool = False

    tie_embeddings: bool = True
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_bias: bool = False
    logit_scale: float | None = None
    final_logit_softcap: float | None = None
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0

    param_dtype: DType = "float32"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in _SIZES:
            check_count(name, getattr(self, name))
        self._resolve_head_sizes()
        self._check_heads()
        self._check_choices()
        self._check_numbers()
        self._check_layers()
        self._check_rotary()
        self._check_block()

    # --- What follows from the fields ------------------------------------------

    @property
    def queries_per_kv_head(self) -> int:
        """G, how many query heads share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_size(self) -> int:
        """How many leading numbers of each head are rotated."""
        return round(self.key_size * self.rope_fraction)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, in tokens; ``None`` is no limit."""
        return self._of_layers("sliding_window")

    @property
    def rotaries(self) -> tuple[tuple[float, RopeScaling | None] | None, ...]:
        """Base and scaling of each layer's rotary positions; ``None`` has none."""
        if self.position_embedding != "rotary":
            return (None,) * self.num_layers
        both = zip(
            self._of_layers("rope_theta"), self._of_layers("rope_scaling"), strict=True
        )
        return tuple(None if theta is None else (theta, to) for theta, to in both)

    @property
    def layer_kinds(self) -> tuple[Hashable, ...]:
        """All that layers can differ in; those of equal kinds are alike."""
        return tuple(zip(self.windows, self.rotaries, strict=True))

    @property
    def layer_period(self) -> int:
        """How many layers the shortest pattern has that layers repeat."""
        kinds, layers = self.layer_kinds, self.num_layers
        return next(
            size
            for size in range(1, layers + 1)
            if all(kinds[i] == kinds[i % size] for i in range(layers))
        )

    def first_layers(self, count: int) -> DecoderConfig:
        """Returns the config of a decoder that ends after so many layers."""
        values = {name: getattr(self, name) for name in _PER_LAYER}
        cut = {n: v[:count] for n, v in values.items() if isinstance(v, tuple)}
        return dataclasses.replace(self, num_layers=count, **cut)

    def _of_layers(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.num_layers

    # --- To and from plain data ------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data that JSON can hold."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """Returns the config that ``to_dict`` wrote.

        Args:
          data: Field names to plain values.

        Returns:
          The config.

        Raises:
          ValueError: A name is no field (with the nearest that is), a field
            without a default is missing, or a value is not allowed.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values = dict(data)
        for name in values:
            if name not in fields:
                raise unknown_name("DecoderConfig field", name, fields)
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in values
        ]
        if missing:
            raise ValueError(f"DecoderConfig fields are missing: {', '.join(missing)}")
        if "rope_scaling" in values:
            values["rope_scaling"] = _scalings(values["rope_scaling"])
        return cls(**values)

    # --- Validation ------------------------------------------------------------

    def _resolve_head_sizes(self) -> None:
        # Python, not chex, checks a config: chex can be switched off.
        if self.key_size is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"key_size must be given where num_heads = {self.num_heads} does "
                    f"not divide d_model = {self.d_model}"
                )
            object.__setattr__(self, "key_size", self.d_model // self.num_heads)
        if self.value_size is None:
            object.__setattr__(self, "value_size", self.key_size)
        check_count("key_size", self.key_size)
        check_count("value_size", self.value_size)

    def _check_heads(self) -> None:
        check_kv_heads(self.num_heads, self.num_kv_heads)

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choices):
                raise unknown_name(name, str(value), get_args(choices))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )

    def _check_numbers(self) -> None:
        for name in _POSITIVE:
            check_positive(name, getattr(self, name))
        for name in _POSITIVE_OR_NONE:
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in _DROPOUTS:
            rate = getattr(self, name)
            if not is_number(rate) or not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate!r}")

    def _check_layers(self) -> None:
        for name in _PER_LAYER:
            if isinstance(getattr(self, name), list):
                # A list would make the config unhashable.
                object.__setattr__(self, name, tuple(getattr(self, name)))
            entries = self._of_layers(name)
            if len(entries) != self.num_layers:
                raise ValueError(
                    f"{name} must have one entry for each of num_layers = "
                    f"{self.num_layers} layers, got {len(entries)}"
                )
        for window in set(self.windows) - {None}:
            check_count("sliding_window", window)

    def _check_rotary(self) -> None:
        for theta in self._of_layers("rope_theta"):
            if theta is not None or not isinstance(self.rope_theta, tuple):
                check_positive("rope_theta", theta)
        for scaling in self._of_layers("rope_scaling"):
            if scaling is not None and not isinstance(scaling, RopeScaling):
                raise ValueError(
                    "rope_scaling must be a LinearScaling, Llama3Scaling, YarnScaling "
                    f"or LongRopeScaling, got {scaling!r}"
                )
        if self.position_embedding != "rotary":
            return
        if self.rope_fraction > 1:
            raise ValueError(
                f"rope_fraction must be in (0, 1], got {self.rope_fraction}"
            )
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(
                f"rope_fraction = {self.rope_fraction} of key_size = {self.key_size} "
                f"must rotate an even number of sizes >= 2, got {self.rotary_size}"
            )
        for scaling in set(self._of_layers("rope_scaling")):
            if isinstance(scaling, LongRopeScaling):
                self._check_factors(scaling)

    def _check_factors(self, scaling: LongRopeScaling) -> None:
        pairs = self.rotary_size // 2
        for name in ("short_factors", "long_factors"):
            count = len(getattr(scaling, name))
            if count != pairs:
                raise ValueError(
                    f"rope_scaling.{name} must be {pairs}, one for each pair of the "
                    f"{self.rotary_size} numbers that are rotated, got {count}"
                )

    def _check_block(self) -> None:
        if self.block_layout != "sequential" and self.norm_placement == "residual":
            raise ValueError(
                "norm_placement = 'residual' normalises the sum after each part in "
                f"turn, so block_layout must be 'sequential', got {self.block_layout!r}"
            )


_SIZES = (
    "vocab_size",
    "num_layers",
    "num_heads",
    "d_model",
    "d_ff",
    "num_kv_heads",
    "max_length",
)
_PER_LAYER = ("sliding_window", "rope_theta", "rope_scaling")
_FLAGS = (
    "query_bias",
    "key_bias",
    "value_bias",
    "output_bias",
    "qk_norm",
    "norm_bias",
    "final_norm",
    "gated",
    "ff_bias",
    "tie_embeddings",
    "logit_bias",
)
_CHOICES = {
    "position_embedding": PositionEmbedding,
    "qk_norm_span": QKNormSpan,
    "norm": Norm,
    "norm_placement": NormPlacement,
    "block_layout": BlockLayout,
    "activation": Activation,
    "param_dtype": DType,
    "dtype": DType,
}
_POSITIVE = ("rope_fraction", "norm_eps")
_POSITIVE_OR_NONE = (
    "attn_logit_softcap",
    "attn_scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "final_logit_softcap",
)
_DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return scaling_to_dict(value) if isinstance(value, RopeScaling) else value


def _scalings(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_scalings(entry) for entry in value)
    return scaling_from_dict(value) if isinstance(value, Mapping) else value
