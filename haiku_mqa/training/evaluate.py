"""How well a model predicts a text: each token once, with a sliding context."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from haiku_mqa._arguments import whole_number
from haiku_mqa.model import Model, Params
from haiku_mqa.training.data import Batch, as_tokens
from haiku_mqa.training.loss import Loss, mean_loss
from haiku_mqa.training.step import make_loss

_LONGEST_DEFAULT = 1024  # tokens; attention's work grows with the square


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model predicted a text.

    Attributes:
      loss: Nats per token.
      num_tokens: How many tokens were predicted: all but the first.
      context: How many tokens were read at a time.
      stride: By how many the context slid.
      num_bytes: How many bytes of UTF-8 the predicted tokens say; ``None`` if that
        was not told.

    Example:
      >>> result = Evaluation(
      ...     loss=2.0, num_tokens=300, context=64, stride=32, num_bytes=900)
      >>> round(result.perplexity, 3), round(result.bits_per_byte, 3)
      (7.389, 0.962)
    """

    loss: float
    num_tokens: int
    context: int
    stride: int
    num_bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the choice was as hard."""
        return math.exp(min(self.loss, 700.0))  # beyond it there is no such float

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that a byte takes: models of other tokens can be compared by it."""
        if not self.num_bytes:
            return None
        return self.loss * self.num_tokens / math.log(2) / self.num_bytes


def evaluate(
    model: Model,
    params: Params,
    tokens: Any,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    num_bytes: int | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> Evaluation:
    """Returns how well a model predicts a text.

    A context slides over the text, and what is new in it is predicted: each token but
    the first exactly once, from all the tokens before it or from at least
    ``context - stride`` of them. A smaller stride gives each token more to go by and
    costs more; with ``stride = context`` the text is cut in pieces, as the validation
    loss of a run is.

    Args:
      model: The model.
      params: Its parameters.
      tokens: Of the text, whole numbers ``[num_tokens]``, with whatever begins a text
        of this model.
      context: How many tokens are read at a time; the config's ``max_length``, but at
        most 1024, if ``None``.
      stride: By how many tokens the context slides, from 1 to ``context``; half of it
        if ``None``.
      batch_size: How many contexts are read at once. It does not change the result.
      num_bytes: How many bytes of UTF-8 the tokens after the first say, for bits per
        byte.
      on_batch: Called, as the text is read, with how many more tokens are predicted.

    Returns:
      The loss, and what it is of.

    Raises:
      ValueError: The text has fewer than two tokens, an id is out of range, or
        another argument is.
      FloatingPointError: The loss is not finite.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=16, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> params = model.init(jax.random.key(0))
      >>> result = evaluate(model, params, np.arange(100) % 16, context=8)
      >>> result.num_tokens, result.stride, 2 < result.loss < 5  # ln 16 is 2.8
      (99, 4, True)
    """
    longest = model.config.max_length
    context = min(longest, _LONGEST_DEFAULT) if context is None else context
    context = whole_number("context", context, 1, longest)
    stride = max(1, context // 2) if stride is None else stride
    stride = whole_number("stride", stride, 1, context)
    batch_size = whole_number("batch_size", batch_size)
    if num_bytes is not None:
        num_bytes = whole_number("num_bytes", num_bytes, 0)
    ids = _checked(tokens, model.config.vocab_size)

    summed, params = _program(model), jax.device_put(params)
    losses = []
    for batch in _batches(ids, context, stride, batch_size):
        losses.append(jax.device_get(summed(params, batch)))
        if on_batch is not None:
            on_batch(int(losses[-1].count))
    mean = mean_loss(losses)
    if not math.isfinite(mean):
        raise FloatingPointError(
            f"the loss is {mean}; check the parameters with "
            "haiku_mqa.checks.check_finite"
        )
    return Evaluation(
        loss=mean,
        num_tokens=sum(int(loss.count) for loss in losses),
        context=context,
        stride=stride,
        num_bytes=num_bytes,
    )


def _checked(tokens: Any, vocab_size: int) -> np.ndarray:
    ids = as_tokens("tokens", tokens)
    if len(ids) < 2:
        raise ValueError(
            f"tokens must be at least 2, one to read and one to predict, got {len(ids)}"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"tokens must be ids from 0 to {vocab_size - 1} (vocab_size = "
            f"{vocab_size}), got {low if low < 0 else high}"
        )
    return ids


@functools.lru_cache(maxsize=8)
def _program(model: Model) -> Callable[[Params, Batch], Loss]:
    """Returns the compiled loss of a model; the same one each time it is asked for."""
    loss = make_loss(model)
    return jax.jit(lambda params, batch: loss(params, batch, None))


def _batches(
    ids: np.ndarray, context: int, stride: int, batch_size: int
) -> Iterator[Batch]:
    """Yields batches of one shape, whose masks hold each token but the first once."""
    labels = len(ids) - 1
    windows = 1 + max(0, -(-(labels - context) // stride))
    places = np.arange(context)
    for first in range(0, windows, batch_size):
        starts = stride * np.arange(first, first + batch_size)[:, None]  # [B, 1]
        at = starts + places  # [B, T], where each place's token is
        # What stands before was predicted in the window before.
        is_new = (places >= context - stride) | (starts == 0)
        mask = is_new & (at < labels)
        tokens = ids[np.minimum(at, labels)].astype(np.int32)
        following = ids[np.minimum(at + 1, labels)].astype(np.int32)
        yield Batch(tokens, following, mask)
