"""``haiku-mqa chat``: a talk with a model, turn by turn."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _options, _sampling
from haiku_mqa.cli._files import check_argument, replacing
from haiku_mqa.cli._models import load_model
from haiku_mqa.cli._screen import counted, say
from haiku_mqa.errors import unknown_name
from haiku_mqa.streaming import text_decoder

if TYPE_CHECKING:
    import jax

    from haiku_mqa.generation import Conversation
    from haiku_mqa.zoo.loading import LoadedModel

_NEW_TOKENS = 512

_DESCRIPTION = """\
Talk with a model: type a line, read its answer, type the next. The model sees the
whole talk, through its chat template, and reads no part of it twice: what it has
read stays in the cache.

Ctrl-C stops an answer, and Ctrl-D leaves. Lines that begin with / are commands:

  /reset       forget the talk, and begin anew
  /save FILE   write the talk to a file, as JSON
  /help        list the commands
  /exit        leave
  //...        say a line that begins with /

Where standard input is no terminal, each of its lines is a turn, and nothing but
answers is printed.
"""

_EPILOG = """\
examples:
  haiku-mqa chat
  haiku-mqa chat --system "Answer in one line." --temperature 0.7 --seed 7
  haiku-mqa chat --repetition-penalty 1.1
  echo "What is the capital of France?" | haiku-mqa chat
"""

_HELP = """\
/reset       forget the talk, and begin anew
/save FILE   write the talk to a file, as JSON
/help        list the commands
/exit        leave; so does Ctrl-D
//...        say a line that begins with /
Ctrl-C       stop an answer"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``chat``."""
    parser = _options.add_verb(
        verbs,
        "chat",
        help="talk with a model",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="how the model is to behave")
    parser.add_argument(
        "--max-new-tokens",
        type=_options.whole(1),
        metavar="N",
        default=_NEW_TOKENS,
        help="how long an answer may be, in tokens (default: %(default)s, or what the "
        "context leaves)",
    )
    _sampling.add_sampling(parser, "0")
    parser.set_defaults(temperature=0.0)
    _sampling.add_penalties(parser)
    _options.add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Answers line after line, until there is no other.

    Args:
      args: As parsed.

    Returns:
      0.

    Raises:
      ValueError: The model has no chat template, options contradict each other, or
        standard input is not UTF-8.
      FloatingPointError: The model's logits were NaN.
    """
    if args.system is not None:
        check_argument("--system", args.system)
    _sampling.check_sampling(args)
    loaded = load_model(args.model, dtype=args.dtype)
    if getattr(loaded.tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"model {args.model!r} has no chat template; 'haiku-mqa generate' takes it"
        )
    talk = _Talk(loaded, args)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f"{args.model} listens; /help lists commands, and Ctrl-D leaves")
    for line in _lines(is_terminal):
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not _obey(line, talk):
                break
            continue
        with _interrupts(is_terminal) as is_stopped:
            talk.answer(line[line.startswith("//") :], is_stopped)
    return 0


class _Talk:
    """What was said so far, and the model that answers."""

    def __init__(self, loaded: LoadedModel, args: argparse.Namespace):
        """Begins with the system's word, if there is one."""
        from haiku_mqa.generation import Conversation

        self._tokenizer: Any = loaded.tokenizer
        self._args = args
        self._context = loaded.model.config.max_length
        self._sampling = _sampling.sampling_of(args)
        self._conversation: Conversation = Conversation(
            loaded.model,
            loaded.params,
            sampling=self._sampling,
            end_tokens=tuple(getattr(loaded.tokenizer, "end_tokens", ())),
        )
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system's word."""
        system = self._args.system
        self.messages = [] if system is None else [_message("system", system)]
        self._turns = 0
        self._conversation.reset()

    def answer(self, question: str, is_stopped: Callable[[], bool]) -> None:
        """Prints the answer to a question as it is chosen.

        Args:
          question: What the user says.
          is_stopped: Whether the user has heard enough.
        """
        asked = [*self.messages, _message("user", question)]
        try:
            ids = list(self._tokenizer.encode_chat(asked))
        except ValueError as error:  # a text that the model has no tokens for
            say(f"error: {error}")
            return
        room = self._context - len(ids)
        if room < 1:
            say(
                f"the context of {counted(self._context, 'token')} is full: /reset "
                "begins anew"
                if self._turns
                else f"this is {counted(len(ids), 'token')} long, and the context of "
                f"{self._context:,} holds no answer beside it"
            )
            return
        most = min(self._args.max_new_tokens, room)
        pieces: list[str] = []
        count = 0
        try:
            for piece, tokens in self._pieces(ids, most):
                sys.stdout.write(piece)
                sys.stdout.flush()
                pieces.append(piece)
                count += tokens
                if is_stopped():
                    break
        finally:
            sys.stdout.write("\n")  # whatever comes next begins a line
            sys.stdout.flush()
        if is_stopped() and not count:
            return  # neither was said
        self.messages = [*asked, _message("assistant", "".join(pieces))]
        self._turns += 1
        if count == room:
            say("the context is full: /reset begins anew")
        elif count == most:
            say(f"the answer was cut at {counted(most, 'token')}")

    def _pieces(self, ids: list[int], most: int) -> Iterator[tuple[str, int]]:
        """Yields text as it becomes whole, and how many tokens came with it."""
        decoder = text_decoder(self._tokenizer)
        for tokens in self._conversation.ask(ids, max_new_tokens=most, rng=self._rng()):
            yield "".join(map(decoder.push, tokens)), len(tokens)
        yield decoder.finish(), 0

    def _rng(self) -> jax.Array | None:
        if self._sampling.is_greedy:
            return None
        import jax

        # The first answer is that of 'generate --chat', and each has its own luck.
        key = jax.random.key(self._args.seed)
        return jax.random.fold_in(key, self._turns) if self._turns else key


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _obey(line: str, talk: _Talk) -> bool:
    """Does what a command says; returns whether the talk goes on."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command == "/exit":
        return False
    if command == "/help":
        print(_HELP)
    elif command == "/reset":
        talk.reset()
        say("the talk is forgotten")
    elif command == "/save":
        _save(rest, talk.messages)
    else:
        commands = ("/exit", "/help", "/reset", "/save")
        say(f"error: {unknown_name('command', command, commands)}")
    return True


def _save(name: str, messages: list[dict[str, str]]) -> None:
    if not name:
        say("error: /save needs the name of a file")
        return
    text = json.dumps(messages, indent=2, ensure_ascii=False) + "\n"
    try:
        with replacing(Path(name).expanduser()) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        say(f"error: {name}: {error.strerror}")
    else:
        say(f"{counted(len(messages), 'message')} written to {name}")


def _lines(is_terminal: bool) -> Iterator[str]:
    """Yields what the user types, line by line."""
    if is_terminal:
        # Of itself it gives input() the arrow keys and the lines of before.
        with contextlib.suppress(ImportError):  # not everywhere
            import readline  # noqa: F401
    while True:
        try:
            yield check_argument("standard input", input("> " if is_terminal else ""))
        except EOFError:
            if is_terminal:
                print()  # the shell's prompt begins a line
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()
            say("Ctrl-D leaves")
        except UnicodeDecodeError as error:
            raise ValueError(
                "standard input must be UTF-8, got the byte "
                f"0x{error.object[error.start]:02x}"
            ) from None


@contextlib.contextmanager
def _interrupts(is_terminal: bool) -> Iterator[Callable[[], bool]]:
    """Gives what tells whether Ctrl-C was pressed, which then stops nothing else.

    A second Ctrl-C interrupts whatever is going on: a program that is being compiled
    looks at nothing.
    """
    if not is_terminal:
        yield lambda: False
        return
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    except KeyboardInterrupt:
        pass  # whatever was lost of the cache is read again
    finally:
        signal.signal(signal.SIGINT, before)
