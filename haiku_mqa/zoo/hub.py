"""Models on the Hugging Face Hub, by names of their own."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from haiku_mqa.errors import FetchError

PREFIX = "hf:"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"hf:({_PART}/{_PART})(?:@([\w][\w./-]*))?", re.ASCII)
# No weights but safetensors: what others are made of can run when it is read.
_WANTED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)
# Beside them, in folders, lie the same weights again for other programs.
_UNWANTED = ("*/*", "consolidated*.safetensors")


def is_hub_name(source: str) -> bool:
    """Returns whether a model's source is a name on the hub.

    Args:
      source: What a user wrote.

    Example:
      >>> is_hub_name("hf:org/name"), is_hub_name("./hf:org/name")
      (True, False)
    """
    return source.startswith(PREFIX)


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """Returns which repository a name means, and which revision of it.

    Args:
      name: ``hf:ORG/NAME``, with ``@REVISION`` for a branch, a tag or a commit.

    Returns:
      ``ORG/NAME``, and the revision; ``None`` is the newest.

    Raises:
      ValueError: It is no such name.

    Example:
      >>> parse_hub_name("hf:org/name@v1.0")
      ('org/name', 'v1.0')
    """
    found = _NAME.fullmatch(name)
    if found is None or ".." in name or "--" in name:
        raise ValueError(
            f"a name on the hub must be hf:ORG/NAME or hf:ORG/NAME@REVISION, got "
            f"{name!r}"
        )
    return found[1], found[2]


def folder_of(name: str, *, progress: bool = True) -> Path:
    """Returns the folder of a model on the hub, which is fetched if need be.

    Fetched by the hub's own client, into its own cache and with its own settings
    (``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT``): config, safetensors and tokenizer
    alone. What was fetched is found again without a network.

    Args:
      name: ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``.
      progress: Whether a download shows bars, where stderr is a terminal.

    Returns:
      The folder.

    Raises:
      ValueError: It is no such name.
      FetchError: There is no such model, it cannot be reached, or the extra ``hub``
        is not installed.
    """
    repository, revision = parse_hub_name(name)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FetchError(f"{name} needs the extra 'hub': pip install 'haiku-mqa[hub]'")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
                tqdm_class=_bars(progress),
            )
        )
    # Its errors, and those of what it is made of, have no class in common.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FetchError(f"{name} could not be fetched: {reason}") from error


def _bars(progress: bool) -> type:
    """Returns the client's own bars, that show on a terminal alone or nowhere."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            options["disable"] = options.get("disable") if progress else True
            super().__init__(*args, **options)

    return Bar
