"""``haiku-mqa generate``: a prompt's continuation, token by token."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _generate_options, _options, _sampling, _ways
from haiku_mqa.cli._files import check_argument, check_writable, read_text
from haiku_mqa.cli._models import check_name, load_model, over_mesh
from haiku_mqa.cli._processes import first_speaks, join_processes
from haiku_mqa.cli._screen import counted, say

if TYPE_CHECKING:
    from haiku_mqa.generation import Draft, Prefix, PromptLookup
    from haiku_mqa.text import AnyTokenizer
    from haiku_mqa.zoo.loading import LoadedModel


@dataclasses.dataclass(frozen=True)
class _Manner:
    """How a kind of model is asked where the user does not say.

    Attributes:
      temperature: Of the choice.
      new_tokens: How many at most.
      slides: Whether it goes on where its context is full, having forgotten the first
        half.
    """

    temperature: float
    new_tokens: int
    slides: bool


_TO_BE_RIGHT = _Manner(temperature=0.0, new_tokens=64, slides=False)
# A small model of one corpus says the same line for ever where it takes the likeliest
# token. It was trained on pieces of text, so one may begin anywhere.
_OF_A_CORPUS = _Manner(temperature=0.8, new_tokens=500, slides=True)

_DESCRIPTION = """\
Print a prompt and its continuation, token by token, and then a line of figures:

  5 prompt tokens · 64 new tokens · 1.9 s to first token · 41.3 tokens/s

The seconds count from the moment the model is loaded, compiling included; the tokens
per second count those after the second, for which the decode program is compiled.
Compiled programs are kept in the cache folder, so that the next run starts sooner.

A model that was trained on one corpus here, as shakespeare-mqa or a training run, has
defaults of its own: temperature 0.8 and 500 tokens, and where its context is full it
reads the second half of it again and goes on.
"""

_EPILOG = """\
examples:
  haiku-mqa generate "ROMEO:"
  haiku-mqa generate --seed 7 --samples 3 --max-new-tokens 80 "JULIET:"
  haiku-mqa generate --stop "\\n\\n" --file scene.txt
  haiku-mqa generate --model smollm2-135m --beams 4 "The capital of France is"
  haiku-mqa generate --chat --system "Answer in one line." "Why is the sky blue?"
  haiku-mqa generate --file scene.txt --save-prefix scene.safetensors
  haiku-mqa generate --prefix scene.safetensors "ROMEO:"
  haiku-mqa generate --prompt-lookup --temperature 0 "To be, or not to be, to be"
  echo "Good morrow" | haiku-mqa generate -
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``generate``."""
    parser = _options.add_verb(
        verbs,
        "generate",
        help="continue a prompt, or answer it",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.usage = "haiku-mqa generate [OPTION ...] [PROMPT]"
    _generate_options.add_options(
        parser,
        temperature=f"{_TO_BE_RIGHT.temperature:g}; {_OF_A_CORPUS.temperature} for a "
        "model of one corpus",
        new_tokens=f"{_TO_BE_RIGHT.new_tokens}, or what the context leaves; "
        f"{_OF_A_CORPUS.new_tokens} for a model of one corpus",
    )


def run(args: argparse.Namespace) -> int:
    """Prints a continuation as it is generated, or several, and figures.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: The prompt is missing, empty, not UTF-8 or too long for the
        context, options contradict each other, or a prefix is of another model.
      FloatingPointError: The model's logits were NaN.
      OSError: The prefix cannot be read or written.
      ProcessError: Another process did not come, or is gone.
    """
    _generate_options.check_options(args)
    prompt = _prompt(args)
    if args.draft is not None:
        check_name(args.draft)
    if args.save_prefix is not None:
        check_writable(Path(args.save_prefix))
    if args.model is None:
        args.model = _options.LANGUAGE_MODEL if args.chat else _options.PACKED_MODEL
    join_processes(args)
    with first_speaks(args):
        return _generate(args, prompt)


def _generate(args: argparse.Namespace, prompt: str) -> int:
    loaded = load_model(args.model, dtype=args.dtype, quantize=args.quantize)
    loaded = over_mesh(loaded, args.mesh)
    manner = _manner(loaded.tokenizer)
    if args.temperature is None:
        args.temperature = manner.temperature
    _generate_options.check_temperature(args)
    task, told = _task(loaded, prompt, manner, args)
    if args.beams is not None:
        penalty = 1.0 if args.length_penalty is None else args.length_penalty
        figures = _ways.write_beams(task, args.beams, penalty)
    elif args.draft is not None or args.prompt_lookup:
        figures = _ways.write_guessed(task, _proposer(args))
    elif args.samples is not None:
        figures = _ways.write_samples(task, args.samples)
    else:
        figures = _ways.write_one(task)
    print(f"{told} · {figures}")
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None and args.file is not None:
        raise ValueError("give either PROMPT or --file, got both")
    if args.prompt is None and args.file is None and args.prefix is not None:
        return ""  # the text goes on from the prefix itself
    if args.file is not None:
        name, text = "--file", read_text(args.file)
    elif args.prompt is None:
        raise ValueError("give either PROMPT or --file, got neither")
    elif args.prompt == "-":
        name, text = "standard input", read_text("-")
    else:
        name, text = "PROMPT", check_argument("PROMPT", args.prompt)
    if not text:
        raise ValueError(f"{name} must hold some text, and is empty")
    return text


def _encoded(loaded: LoadedModel, prompt: str, args: argparse.Namespace) -> list[int]:
    tokenizer: Any = loaded.tokenizer
    if tokenizer is None:
        raise ValueError(f"model {args.model!r} has no tokenizer to read text with")
    if not args.chat:
        return _encoded_text(tokenizer, prompt, begins=args.prefix is None)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(f"model {args.model!r} has no chat template; leave out --chat")
    messages = [{"role": "user", "content": prompt}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return list(tokenizer.encode_chat(messages))


def _encoded_text(tokenizer: Any, text: str, *, begins: bool) -> list[int]:
    from haiku_mqa.pretrained import ChatTokenizer

    if isinstance(tokenizer, ChatTokenizer):
        # What begins a sequence has no place in the middle of one.
        return tokenizer.encode(text, add_special_tokens=begins)
    return list(tokenizer.encode(text)) if text else []


def _manner(tokenizer: AnyTokenizer | None) -> _Manner:
    from haiku_mqa.text import Tokenizer

    return _OF_A_CORPUS if isinstance(tokenizer, Tokenizer) else _TO_BE_RIGHT


def _task(
    loaded: LoadedModel, prompt: str, manner: _Manner, args: argparse.Namespace
) -> tuple[_ways.Task, str]:
    """Returns what is to be written, and what to tell of the prompt."""
    import jax

    form = {"cache_dtype": args.cache, "ring_cache": args.ring_cache}
    if args.ring_cache and not any(loaded.model.config.windows):
        raise ValueError(
            f"--ring-cache needs a model with sliding windows, and {args.model} has "
            "none"
        )
    prefix = _read_prefix(loaded, args)
    ids = _encoded(loaded, prompt, args)
    told = _told(len(ids), prefix)
    num_read = len(ids) + (len(prefix.tokens) if prefix else 0)
    new_tokens = _budget(loaded, num_read, manner, args)
    if args.save_prefix is not None:
        prefix, ids = _kept(loaded, ids, prefix, args), []
    if prefix is not None:
        form = {}
    sampling = _sampling.sampling_of(args)
    return _ways.Task(
        loaded=loaded,
        # A prompt is part of the text that comes of it; a question is not.
        shown="" if args.chat else prompt,
        ids=ids,
        new_tokens=new_tokens,
        sampling=sampling,
        rng=None if sampling.is_greedy else jax.random.key(args.seed),
        stop=tuple(args.stop or ()),
        logprobs=args.logprobs,
        prefix=prefix,
        form=form,
    ), told


def _told(num_ids: int, prefix: Prefix | None) -> str:
    read = counted(num_ids, "prompt token")
    if prefix is None:
        return read
    before = counted(len(prefix.tokens), "token")
    return f"{read} behind a prefix of {before}" if num_ids else f"prefix of {before}"


def _read_prefix(loaded: LoadedModel, args: argparse.Namespace) -> Prefix | None:
    if args.prefix is None:
        return None
    from haiku_mqa.generation import Prefix

    return Prefix.load(args.prefix, loaded.model, loaded.params)


def _kept(
    loaded: LoadedModel, ids: list[int], prefix: Prefix | None, args: argparse.Namespace
) -> Prefix:
    """Reads a prompt, and writes what came of it to a file."""
    from haiku_mqa.generation import read_prefix

    model, params = loaded.model, loaded.params
    if prefix is None:
        prefix = read_prefix(model, params, ids, dtype=args.cache, ring=args.ring_cache)
    elif ids:
        prefix = prefix.extended(model, params, ids)
    prefix.save(args.save_prefix, model, params)
    size = counted(len(prefix.tokens), "token")
    say(f"{args.save_prefix} holds a prefix of {size}")
    return prefix


def _proposer(args: argparse.Namespace) -> Draft | PromptLookup:
    from haiku_mqa.generation import Draft, PromptLookup

    if args.draft is None:
        return PromptLookup()
    small = load_model(args.draft, dtype=args.dtype)
    return Draft(small.model, small.params)


def _budget(
    loaded: LoadedModel, num_read: int, manner: _Manner, args: argparse.Namespace
) -> int:
    if _slides(manner, args):
        return args.max_new_tokens or manner.new_tokens
    context = loaded.model.config.max_length
    read = counted(num_read, "token")
    left = context - num_read
    if left < 1:
        raise ValueError(
            f"the prompt has {read}, and the context of {args.model} holds "
            f"{context:,}, new tokens included"
        )
    if args.max_new_tokens is None:
        return min(manner.new_tokens, left)
    if args.max_new_tokens > left:
        raise ValueError(
            f"--max-new-tokens must be at most {left}, got {args.max_new_tokens}: the "
            f"prompt has {read}, and the context of {args.model} holds {context:,}"
        )
    return args.max_new_tokens


def _slides(manner: _Manner, args: argparse.Namespace) -> bool:
    """Whether the text goes on where the context is full; only one text can."""
    others = (args.beams, args.samples, args.draft, args.prompt_lookup or None)
    return manner.slides and all(other is None for other in others)
