"""What a person sees of a run: a plan, a bar, texts, and what came of it."""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from haiku_mqa.cli import _continue
from haiku_mqa.cli._screen import counted
from haiku_mqa.config import DecoderConfig
from haiku_mqa.generation import Sampling
from haiku_mqa.model import Model, Params
from haiku_mqa.text import Tokenizer
from haiku_mqa.training import Corpus, split
from haiku_mqa.training.run.events import (
    Evaluated,
    Event,
    Sampled,
    Started,
    Stepped,
)
from haiku_mqa.training.run.reports import read_metrics

_TEMPERATURE = 0.8  # as generate has it for a model of one corpus
_AT_A_TIME = 32  # tokens of a sample
_STEPS_TO_TELL_BY = 5
_WIDTH = 60  # of what frames a sample
_BAR = "{bar}| {n_fmt}/{total_fmt}{postfix}"
_PROMPT_WORDS, _PROMPT_LETTERS = 4, 40
_TOKENS = {"characters": "characters", "bytes": "bytes", "bpe": "byte pairs"}


class Sampler:
    """Has a model write; at the same step of the same run, the same text."""

    def __init__(self, seed: int):
        """Begins at step zero.

        Args:
          seed: The run's.
        """
        self._seed, self._step = seed, 0

    def observe(self, event: Event) -> None:
        """Takes note of the step.

        Args:
          event: What happened.
        """
        if isinstance(event, Stepped):
            self._step = event.step

    def __call__(
        self,
        model: Model,
        params: Params,
        tokenizer: Tokenizer,
        prompt: str,
        num_tokens: int,
    ) -> str:
        """Returns a prompt and what follows it.

        Args:
          model: The model.
          params: Its parameters.
          tokenizer: What it reads.
          prompt: What the text begins with.
          num_tokens: How many tokens follow.
        """
        steps = _continue.steps(
            model,
            params,
            tokenizer.encode(prompt),
            new_tokens=num_tokens,
            sampling=Sampling(temperature=_TEMPERATURE),
            rng=jax.random.fold_in(jax.random.key(self._seed), self._step),
            end_tokens=tokenizer.end_tokens,
            chunk=_AT_A_TIME,
        )
        return prompt + tokenizer.decode(
            [token for step in steps for token in step.tokens[0]]
        )


class Screen:
    """Shows a run as it goes on.

    Attributes:
      step: How many steps are done.
      started: What the run said when it began.
    """

    def __init__(self, out: str, corpus: Corpus, *, is_quiet: bool):
        """Shows nothing yet.

        Args:
          out: The run's folder, as the user called it.
          corpus: What is read.
          is_quiet: Whether nothing is shown at all.
        """
        self.step = 0
        self.started: Started | None = None
        self._out, self._corpus, self._is_quiet = out, corpus, is_quiet
        self._bar: Any = None
        self._first: tuple[int, float] | None = None  # step here, and when it was done
        self._told: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Shows what is to be shown of an event.

        Args:
          event: What happened.
        """
        if isinstance(event, Started):
            self.started, self.step = event, event.first_step
            self._begin(event)
        elif isinstance(event, Stepped):
            self.step = event.step
            self._stepped(event)
        elif isinstance(event, Evaluated):
            self._told["validation"] = f"{event.validation_loss:.3f}"
            if self._bar is None:
                self._say(self._line(event))
        elif isinstance(event, Sampled):
            self._say(framed(f"step {event.step:,}", event.text))

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _begin(self, event: Started) -> None:
        self._say(plan(event, self._corpus, self._out))
        is_over = event.first_step == event.total_steps
        if not (self._is_quiet or is_over) and sys.stderr.isatty():
            self._bar = tqdm(
                total=event.total_steps,
                initial=event.first_step,
                bar_format=_BAR,
                dynamic_ncols=True,
                leave=False,
                file=sys.stderr,
            )
            self._bar.set_postfix_str("compiling the first step")

    def _stepped(self, event: Stepped) -> None:
        self._told["loss"] = f"{event.metrics.loss:.3f}"
        self._told["speed"] = _per_second(event.tokens_per_second)
        if event.metrics.skipped:
            self._say(
                f"step {event.step:,} is left out: its loss or gradient is not finite"
            )
        if self._bar is not None:
            named = [f"{name} {self._told[name]}" for name in self._names()]
            told = [*self._time_left(event.step), *named, self._told["speed"]]
            self._bar.set_postfix_str(", ".join(told), refresh=False)
            self._bar.update()

    def _time_left(self, step: int) -> list[str]:
        """Returns how long it will take, once that can be told."""
        now = time.perf_counter()
        if self._first is None:  # took as long as its compilation
            self._first = step, now
        first, since = self._first
        if self.started is None or step - first < _STEPS_TO_TELL_BY:
            return []
        # Of all that was done since, so that an evaluation now does not count tenfold.
        left = (now - since) / (step - first) * (self.started.total_steps - step)
        return [f"{tqdm.format_interval(left)} left"]

    def _names(self) -> list[str]:
        return [name for name in ("loss", "validation") if name in self._told]

    def _line(self, event: Evaluated) -> str:
        width = len(f"{self.started.total_steps:,}") if self.started else 0
        best = "best so far" if event.is_best else ""
        cells = [
            f"step {event.step:>{width},}",
            f"loss {self._told.get('loss', '-')}",
            f"validation {self._told['validation']}",
            f"{best:<11}",
            self._told.get("speed", ""),
        ]
        return "  ".join(cells).rstrip()

    def _say(self, text: str) -> None:
        if self._is_quiet:
            return
        # tqdm takes the bar out of the way, if there is one.
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def plan(started: Started, corpus: Corpus, out: str) -> str:
    """Returns what a run is going to do, in a few lines.

    Args:
      started: What the run said.
      corpus: What it reads.
      out: Its folder, as the user called it.
    """
    config, model = started.config, started.decoder_config
    data, optimizer = config.data, config.optimizer
    batch = data.batch_size * data.seq_len
    passes = started.total_steps * batch / started.train_tokens
    rate = f"{optimizer.learning_rate:g}"
    if optimizer.schedule != "constant":
        rate += f", falling to {optimizer.min_learning_rate:g}"
    rows = [
        ("model", f"{_shape(model)}, {counted(started.num_parameters, 'parameter')}"),
        ("heads", _heads(model)),
        (
            "corpus",
            f"{corpus.name}: {counted(started.train_tokens, 'token')} to train on, "
            f"{started.validation_tokens:,} held out",
        ),
        ("tokens", f"{model.vocab_size:,} {_TOKENS[data.tokenizer]}"),
        (
            "steps",
            f"{started.total_steps:,} of {data.batch_size} x {data.seq_len} tokens, "
            f"{passes:.2g} times the corpus",
        ),
        ("optimizer", f"{optimizer.name}, learning rate {rate}"),
        ("folder", out),
    ]
    if 0 < started.first_step < started.total_steps:
        rows.append(("goes on", f"from step {started.first_step:,}"))
    if started.first_step == started.total_steps:
        rows.append(("finished", "all steps were done before"))
    return _aligned(rows) + "\n"


def outcome(out: str, corpus: Corpus, screen: Screen) -> str:
    """Returns what came of a run, in a few lines.

    Args:
      out: Its folder, as the user called it.
      corpus: What it read.
      screen: What showed it.
    """
    started = screen.started
    losses = [
        (line["validation_loss"], line["step"])
        for line in read_metrics(Path(out))
        if line.get("validation_loss") is not None
    ]
    rows = [("folder", out), ("speak with it", _command(out, corpus))]
    if losses:
        loss, step = min(losses)
        told = f"{loss:.4f} nats per token, perplexity {math.exp(loss):.3f}"
        rows.insert(0, ("best validation loss", f"{told}, at step {step:,}"))
        if started is not None and started.config.data.tokenizer != "characters":
            each = loss * _tokens_per_character(started, corpus)
            rows.insert(1, ("", f"{each:.4f} nats per character"))
    return _aligned(rows)


def framed(title: str, text: str) -> str:
    r"""Returns a text between two lines, safe to be shown.

    Args:
      title: What stands in the upper line.
      text: What a model wrote, which may be anything.

    Example:
      >>> print(framed("step 500", "\x1b[2Jto be"))
      ── step 500 ────────────────────────────────────────────────
      �[2Jto be
      ────────────────────────────────────────────────────────────
    """
    # A terminal takes some characters for commands.
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    head = f"── {title} "
    return "\n".join([head.ljust(_WIDTH, "─"), shown.strip("\n"), "─" * _WIDTH])


def _shape(model: DecoderConfig) -> str:
    return f"{counted(model.num_layers, 'layer')} of width {model.d_model:,}"


def _heads(model: DecoderConfig) -> str:
    heads, shared = counted(model.num_heads, "head"), model.num_kv_heads
    if shared == model.num_heads:
        return f"{heads}, each with keys and values of its own (multi-head)"
    kind = "multi-query" if shared == 1 else "grouped-query"
    return f"{heads} that share {counted(shared, 'KV head')} ({kind})"


def _per_second(tokens: float) -> str:
    if tokens < 10_000:
        return f"{tokens:,.0f} tokens/s"
    return f"{tokens / 1000:,.0f}k tokens/s"


def _tokens_per_character(started: Started, corpus: Corpus) -> float:
    _, held_out = split(corpus, started.config.data.validation)
    return started.validation_tokens / held_out.num_characters


def _command(out: str, corpus: Corpus) -> str:
    # A name without a slash could be one of the zoo's.
    path = out if Path(out).is_absolute() or len(Path(out).parts) > 1 else f"./{out}"
    words = ["haiku-mqa", "generate", "--model", path, _prompt(corpus)]
    return " ".join(map(shlex.quote, words))


def _prompt(corpus: Corpus) -> str:
    """Returns the first few words of a corpus, which its model knows how to read."""
    for line in corpus.documents[0][:10_000].splitlines():
        # A dash would be taken for an option.
        words = line.strip().lstrip("-").split(" ")[:_PROMPT_WORDS]
        prompt = " ".join(words)[:_PROMPT_LETTERS].strip()
        if prompt and prompt.isprintable():
            return prompt
    return "..."


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
