"""The plugin of the program ``llm``: each model of the zoo is ``haiku-mqa/NAME``.

``llm`` imports every plugin at every command, and one that fails breaks them all. So
nothing but ``llm`` is imported here until a model is asked something.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import llm
from pydantic import Field

if TYPE_CHECKING:
    from haiku_mqa.hosts._llm_talk import Talk

PREFIX = "haiku-mqa/"
FOLDERS = "haiku-mqa.json"


@llm.hookimpl
def register_models(register: Callable[..., None], model_aliases: Any) -> None:
    """Registers each model of the zoo, and each of the user's own.

    Args:
      register: Takes one model.
      model_aliases: Is not used.
    """
    del model_aliases
    for name, source in sources().items():
        register(HaikuModel(name, source))


def sources() -> dict[str, str]:
    """Returns the names of models, and what ``load_pretrained`` is told for each.

    They are the zoo's, by the metadata of what is installed, and those that the file
    ``haiku-mqa.json`` in llm's folder lists: an object from names to folders or files.
    """
    try:
        from haiku_mqa.zoo.discovery import discover

        return {name: name for name in discover()} | _listed(llm.user_dir() / FOLDERS)
    except Exception as error:  # no command of the host may fail for a model's sake
        print(f"haiku-mqa: {error}", file=sys.stderr)
        return {}


def _listed(file: Path) -> dict[str, str]:
    try:
        listed = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        print(f"haiku-mqa: {file} is left out: {error}", file=sys.stderr)
        return {}
    if not isinstance(listed, dict) or not all(
        isinstance(path, str) for path in listed.values()
    ):
        wanted = '{"NAME": "FOLDER", …}'
        print(f"haiku-mqa: {file} is left out: it must be {wanted}", file=sys.stderr)
        return {}
    return {name: str(Path(path).expanduser()) for name, path in listed.items()}


class HaikuModel(llm.Model):
    """One model, as the host knows it; it is loaded when it is first asked.

    Attributes:
      model_id: What ``llm -m`` is told.
    """

    can_stream = True

    # As the host has it: a class of its own in each model.
    class Options(llm.Options):  # pyright: ignore[reportIncompatibleVariableOverride]
        """What ``llm -o`` is told."""

        temperature: float | None = Field(
            default=None,
            ge=0,
            description="How evenly tokens are drawn; 0 always takes the likeliest, "
            "which is the default for a model that answers",
        )
        top_k: int | None = Field(
            default=None, ge=1, description="Draw from this many of the likeliest"
        )
        top_p: float | None = Field(
            default=None,
            gt=0,
            le=1,
            description="Draw from the likeliest whose probabilities reach this sum",
        )
        min_p: float | None = Field(
            default=None,
            ge=0,
            le=1,
            description="Draw from those this many times as likely as the likeliest",
        )
        repetition_penalty: float = Field(
            default=1.0, gt=0, description="Makes what was said less likely; 1 is off"
        )
        seed: int = Field(
            default=0, ge=0, lt=2**32, description="Of what is drawn: the same again"
        )
        max_tokens: int | None = Field(
            default=None, ge=1, description="How long an answer may be, in tokens"
        )
        dtype: Literal["float32", "bfloat16", "float16"] = Field(
            default="float32", description="What weights are held and computed in"
        )
        quantize: Literal["int8"] | None = Field(
            default=None, description="int8 holds matrices in a byte a number"
        )

    def __init__(self, name: str, source: str):
        """Names a model, and loads nothing.

        Args:
          name: Of the model.
          source: What ``load_pretrained`` is told.
        """
        self.model_id = PREFIX + name
        self._source = source
        self._talks: dict[tuple[str, str | None], Talk] = {}

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None = None,
    ) -> Iterator[str]:
        """Yields the answer to a prompt, and says how many tokens it took.

        Args:
          prompt: With the whole talk before it.
          stream: Whether the answer comes in pieces.
          response: Is told how many tokens were read and made.
          conversation: Is not used: the model knows by the text what it has read.

        Raises:
          llm.ModelError: The model cannot be loaded, or cannot answer this.
        """
        del conversation
        said = [_message(message) for message in prompt.messages]
        try:
            talk = self._talk(prompt.options)
            pieces = talk.answer(said, prompt.options)
            yield from pieces if stream else ["".join(pieces)]
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            raise llm.ModelError(str(error)) from error
        response.set_usage(
            input=talk.read, output=talk.made, details={"reused": talk.reused}
        )

    def _talk(self, options: Any) -> Talk:
        form = (options.dtype, options.quantize)
        if form not in self._talks:
            from haiku_mqa.hosts._llm_talk import Talk

            self._talks.clear()  # two of a model would be held, and one is used
            self._talks[form] = Talk(self._source, *form)
        return self._talks[form]


def _message(message: Any) -> dict[str, str]:
    parts = (getattr(part, "text", None) for part in message.parts)
    return {"role": message.role, "content": "".join(part for part in parts if part)}
