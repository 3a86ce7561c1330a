"""Many rows decoded at once, from caches that are full: where heads make a difference.

With one row, weights are most of what is read for a token. With many, the caches are.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haiku_mqa.bench.bandwidth import read_bandwidth
from haiku_mqa.bench.decode import weight_bytes_per_token
from haiku_mqa.config import DecoderConfig
from haiku_mqa.generation.dials import Dials
from haiku_mqa.generation.loop import CHUNK, Settings, State, decode, prefill
from haiku_mqa.model import Model, Params


class BatchDecode:
    """One model, with a batch of rows that have a context behind them.

    Attributes:
      batch_size: B, rows.
      bytes_per_step: Of weights and caches that one step of all rows reads.

    Example:
      >>> from haiku_mqa import DecoderConfig, build
      >>> model = build(DecoderConfig(
      ...     vocab_size=256, num_layers=1, num_heads=2, d_model=8, d_ff=16))
      >>> rows = BatchDecode(
      ...     model, model.init(jax.random.key(0)), batch_size=2, context=5)
      >>> rows.run() > 0
      True
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        batch_size: int,
        context: int,
        is_read: bool = True,
    ):
        """Reads random tokens, and decodes once, so that all is compiled.

        Args:
          model: The model.
          params: Its parameters.
          batch_size: B, rows.
          context: How many tokens each row has read before decoding begins.
          is_read: Whether they are read, all but the last, or merely counted as read:
            how long a step takes does not depend on what its cache holds, and a long
            context takes long to read.
        """
        config = model.config
        self.batch_size = batch_size
        self.bytes_per_step = weight_bytes_per_token(model, params) + batch_size * (
            context + CHUNK
        ) * cache_bytes_per_token(config)
        self._model = model
        self._params = jax.device_put(params)
        self._settings = Settings(Dials(), None, jnp.zeros(0, jnp.int32))  # greedy
        draw = np.random.default_rng(0)
        length = context if is_read else 1
        tokens = draw.integers(0, config.vocab_size, (batch_size, length), np.int32)
        cache = model.init_cache(batch_size, context + CHUNK)
        read = jnp.full(batch_size, context - length, jnp.int32)
        self._start = prefill(
            model,
            self._params,
            tokens,
            np.full(batch_size, length, np.int32),
            dataclasses.replace(cache, lengths=read),
            self._settings,
        )
        self.run()

    def run(self) -> float:
        """Decodes ``CHUNK`` tokens in each row.

        Returns:
          Seconds per token: those of the call, over rows times tokens.
        """
        # A copy, made before the clock is read: decoding takes what it is given.
        state: State = jax.block_until_ready(jax.tree.map(jnp.copy, self._start))
        steps = jnp.int32(CHUNK)
        start = time.perf_counter()
        jax.block_until_ready(
            decode(self._model, self._params, state, steps, self._settings)
        )
        seconds = time.perf_counter() - start
        return seconds / (self.batch_size * CHUNK)


def cache_bytes_per_token(config: DecoderConfig) -> int:
    """Returns how many bytes a cache holds of one token of one row.

    Args:
      config: Of the model.

    Example:
      >>> config = DecoderConfig(
      ...     vocab_size=256, num_layers=2, num_heads=8, d_model=64, d_ff=256)
      >>> cache_bytes_per_token(config)  # 2 layers, a key and a value of 8 float32
      128
    """
    sizes = config.key_size + config.value_size
    itemsize = jnp.dtype(config.dtype).itemsize
    return config.num_layers * config.num_kv_heads * sizes * itemsize


def decode_figures(
    batch: BatchDecode, seconds: Sequence[float], bandwidth: float
) -> dict[str, Any]:
    """Returns what decoding costs a token, and the least that it could cost.

    Args:
      batch: What was decoded.
      seconds: Per token, of each run.
      bandwidth: Bytes per second that memory was read at.

    Returns:
      Microseconds: of each run, their median, and the limit, at which all that a step
      reads is read at memory's speed.
    """
    limit = batch.bytes_per_step / bandwidth / batch.batch_size
    return {
        "decode_us_per_token_runs": [1e6 * each for each in seconds],
        "decode_us_per_token": 1e6 * statistics.median(seconds),
        "limit_us_per_token": 1e6 * limit,
    }


def decode_in_turns(
    batches: Sequence[BatchDecode],
    repeats: int,
    *,
    measure_bandwidth: Callable[[], float] = read_bandwidth,
    on_run: Callable[[], object] = lambda: None,
) -> tuple[list[list[float]], float]:
    """Decodes with each model in turn, as often as asked.

    Args:
      batches: The models, each with its rows.
      repeats: How often, >= 1.
      measure_bandwidth: Called once a repeat.
      on_run: Called after each run.

    Returns:
      Seconds per token of each model's runs, and the median of bytes per second that
      memory was read at.
    """
    seconds: list[list[float]] = [[] for _ in batches]
    bandwidths = []
    for _ in range(repeats):
        bandwidths.append(measure_bandwidth())
        for batch, runs in zip(batches, seconds, strict=True):
            runs.append(batch.run())
            on_run()
    return seconds, statistics.median(bandwidths)
