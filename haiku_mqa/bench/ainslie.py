"""Ainslie et al. 2023 at a small scale: a multi-head model is given fewer KV heads.

*GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
Checkpoints* converts a trained model and trains it on for a small share of its steps.
Which conversion is best is its figure 4, how much training heals it figure 5, and
what each number of key/value heads costs to decode figure 6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax

from haiku_mqa.bench.batch_decode import (
    BatchDecode,
    cache_bytes_per_token,
    decode_figures,
    decode_in_turns,
)
from haiku_mqa.bench.findings import Findings, command
from haiku_mqa.bench.scale import Scale, Trained, progress_bar, train_once
from haiku_mqa.generation.loop import CHUNK
from haiku_mqa.heads import Method, convert_heads
from haiku_mqa.model import Model, Params, build
from haiku_mqa.text import Tokenizer
from haiku_mqa.training import (
    Corpus,
    OptimizerConfig,
    encode_corpus,
    init_train_state,
    make_loss,
    make_train_step,
    read_corpus,
    split,
    validation_batches,
)
from haiku_mqa.training.data import RandomWindows
from haiku_mqa.training.loss import mean_loss
from haiku_mqa.training.run.config import RunConfig

SHARES = (0.0, 0.025, 0.05, 0.1)
METHODS: tuple[Method, ...] = get_args(Method)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A model that was given fewer KV heads.

    Attributes:
      num_kv_heads: K.
      method: How its heads were made; ``None`` for the multi-head model as it is.
      model: The model.
      params: Its parameters before it is trained on.
    """

    num_kv_heads: int
    method: Method | None
    model: Model
    params: Params


def conversions(base: Model, params: Params, seed: int) -> list[Converted]:
    """Returns a multi-head model, and it with fewer KV heads by every method.

    Args:
      base: The model, K = N.
      params: Its parameters.
      seed: Of heads that are drawn at random.

    Returns:
      The model as it is first, then K from one upwards.
    """
    config = base.config
    found = [Converted(config.num_heads, None, base, params)]
    for heads in range(1, config.num_heads):
        for method in METHODS if config.num_heads % heads == 0 else ():
            converted, fewer = convert_heads(
                config, params, heads, method, rng=jax.random.key(seed)
            )
            found.append(Converted(heads, method, build(converted), fewer))
    return found


class Uptraining:
    """How converted models are trained on: all of them on the same batches.

    As in the paper, by the recipe of the first training: at its learning rate, which
    is constant. Adam's running means begin anew, and so there is a warm-up, within
    the first twentieth of the steps.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, tokenizer: Tokenizer):
        """Reads the corpus as the first training did.

        Args:
          config: Of the first training.
          corpus: What it was trained on.
          tokenizer: What the model reads.
        """
        first = config.optimizer
        self.marks = [round(share * first.total_steps) for share in SHARES]
        self.optimizer = dataclasses.replace(first, warmup_steps=self.marks[-1] // 20)
        train, validation = split(corpus, config.data.validation)
        seq_len, rows = config.data.seq_len, config.data.batch_size
        tokens = encode_corpus(train, tokenizer)
        self._windows = RandomWindows(tokens, seq_len, rows, config.seed)
        self._first_step = first.total_steps  # batches that were not seen yet
        self._validation = list(
            validation_batches(
                encode_corpus(validation, tokenizer),
                seq_len,
                config.data.eval_batch_size or rows,
            )
        )

    def losses(
        self, converted: Converted, on_step: Callable[[], Any]
    ) -> Iterator[float]:
        """Yields the validation loss at each share of the first training's steps.

        Args:
          converted: The model to be trained on.
          on_step: Called after each step.
        """
        model = converted.model
        loss = jax.jit(make_loss(model))
        step = jax.jit(make_train_step(model, self.optimizer), donate_argnums=0)
        state = init_train_state(self.optimizer, converted.params)
        for done in range(self.marks[-1] + 1):
            # Shares of a very short run may fall on one step.
            for _ in range(self.marks.count(done)):
                yield mean_loss(
                    loss(state.params, batch, None) for batch in self._validation
                )
            if done < self.marks[-1]:
                batch = self._windows.batch(self._first_step + done)
                state, _ = step(state, batch, None)
                on_step()


def run_ainslie(
    *,
    steps: int = 1500,
    seed: int = 0,
    batch_size: int = 64,
    context: int = 512,
    repeats: int = 5,
    scale: Scale | None = None,
    corpus: Corpus | None = None,
    progress: bool = False,
    decode_with: Callable[..., Any] = decode_in_turns,
) -> Findings:
    """Trains a multi-head model, converts it in every way, and trains each on.

    Args:
      steps: Of the first training.
      seed: Of all that is drawn.
      batch_size: B of decoding, rows.
      context: How many tokens each row has read before decoding begins.
      repeats: How many runs each median of decoding is of.
      scale: Of the model.
      corpus: What to train on; the embedded one if ``None``.
      progress: Whether a bar is shown on stderr.
      decode_with: As ``decode_in_turns``, which it replaces in tests.

    Returns:
      The table, and every figure.
    """
    scale = scale or Scale()
    corpus = corpus or read_corpus()
    config = scale.run_config(
        steps=steps,
        seed=seed,
        optimizer={"schedule": "constant"},
        max_length=max(scale.seq_len, context + CHUNK),
    )
    with progress_bar(steps, "step", is_shown=progress) as bar:
        bar.set_description("multi-head")
        base = train_once(config, corpus, bar.update)
    converted = conversions(base.model, base.params, seed)
    uptraining = Uptraining(config, corpus, base.tokenizer)
    total = uptraining.marks[-1] * len(converted)
    results = []
    with progress_bar(total, "step", is_shown=progress) as bar:
        for each in converted:
            bar.set_description(f"{each.num_kv_heads} KV heads, {_made(each.method)}")
            losses = list(uptraining.losses(each, bar.update))
            results.append(_result(each, losses))
    one_of_each = [each for each in converted if each.method in (None, METHODS[0])]
    with progress_bar(repeats * len(one_of_each), "run", is_shown=progress) as bar:
        bar.set_description("decoding")
        batches = [
            BatchDecode(each.model, each.params, batch_size=batch_size, context=context)
            for each in one_of_each
        ]
        seconds, bandwidth = decode_with(batches, repeats, on_run=bar.update)
    decoding = [
        {
            "num_kv_heads": each.num_kv_heads,
            **decode_figures(batch, runs, bandwidth),
        }
        for each, batch, runs in zip(one_of_each, batches, seconds, strict=True)
    ]
    settings = {
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "context": context,
        "repeats": repeats,
    }
    return Findings(
        title=f"{scale.num_layers} layers of width {scale.d_model} with "
        f"{scale.num_heads} heads, {steps} steps of {scale.batch_size} rows of "
        f"{scale.seq_len} characters, then converted and trained on",
        columns=_columns(),
        rows=tuple(_rows(results, decoding)),
        notes=_notes(base, uptraining.optimizer, settings, bandwidth),
        data={
            "command": command("ainslie", settings),
            "settings": settings,
            "scale": dataclasses.asdict(scale),
            "corpus_sha256": corpus.sha256,
            "parameters": base.parameters,
            "training_seconds": base.seconds,
            "uptraining_optimizer": uptraining.optimizer.to_dict(),
            "uptraining_steps": uptraining.marks,
            "shares": list(SHARES),
            "bandwidth_bytes_per_second": bandwidth,
            "models": results,
            "decoding": decoding,
        },
    )


# --- What is said of it ---------------------------------------------------------------


def _columns() -> tuple[str, ...]:
    shares = [f"loss, {share:.3g} %" for share in (100 * share for share in SHARES)]
    return ("KV heads K", "made by", *shares, "decode µs/token", "cache bytes/token")


def _made(method: str | None) -> str:
    return "multi-head, unchanged" if method is None else method


def _result(each: Converted, losses: Sequence[float]) -> dict[str, Any]:
    return {
        "num_kv_heads": each.num_kv_heads,
        "method": each.method,
        "validation_losses": list(losses),
        "cache_bytes_per_token": cache_bytes_per_token(each.model.config),
    }


def _rows(
    results: Sequence[dict[str, Any]], decoding: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, ...]]:
    times = {each["num_kv_heads"]: each["decode_us_per_token"] for each in decoding}
    for result in results:
        heads = result["num_kv_heads"]
        yield (
            str(heads),
            _made(result["method"]),
            *(f"{loss:.3f}" for loss in result["validation_losses"]),
            f"{times[heads]:.2f}",
            f"{result['cache_bytes_per_token']:,}",
        )


def _notes(
    base: Trained,
    optimizer: OptimizerConfig,
    settings: dict[str, Any],
    bandwidth: float,
) -> tuple[str, ...]:
    return (
        f"the multi-head model came to {base.validation_loss:.3f} nats per character "
        f"over the whole validation split, in {base.seconds:.0f} s",
        "loss: the same, after training on for that share of its steps, all models on "
        "the same batches, by its own recipe (a constant learning rate of "
        f"{optimizer.learning_rate:g}) with Adam's running means begun anew and "
        f"{optimizer.warmup_steps} steps of warm-up",
        f"decode: {settings['batch_size']} rows with {settings['context']} tokens each "
        f"before, {CHUNK} new ones, greedy, medians of {settings['repeats']}; memory "
        f"was read at {bandwidth / 1e9:.1f} GB/s",
    )
