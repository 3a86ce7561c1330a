"""Configs of runs that are written down: in the package, in a file, in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from haiku_mqa.errors import unknown_name
from haiku_mqa.training.run.config import RunConfig

_RECIPES = Path(__file__).parent.parent / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Returns the names of the runs that come with the package.

    Example:
      >>> "default" in recipe_names()
      True
    """
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.json")))


def load_run_config(name_or_path: str | os.PathLike[str] = "default") -> RunConfig:
    """Returns the config of a recipe, of a file, or of a run that began.

    Args:
      name_or_path: A name of ``recipe_names``; or a JSON file of ``RunConfig``'s
        fields, of which all but ``model`` may be left out; or a run's folder.

    Returns:
      The config.

    Raises:
      ValueError: There is no such recipe (the nearest is named) or file, or the
        file is no run config; the message says why.

    Example:
      >>> load_run_config("nanogpt-cpu").optimizer.total_steps
      2000
    """
    path = Path(name_or_path)
    text = os.fspath(name_or_path)
    if text in recipe_names():
        path = _RECIPES / f"{text}.json"
    elif path.is_dir():
        path = path / "run.json"
        if not path.exists():
            raise ValueError(f"{text} holds no run: there is no run.json in it")
    elif not path.exists():
        if path.suffix == ".json" or len(path.parts) > 1:
            raise ValueError(f"run config {text!r}: there is no such file")
        raise unknown_name("recipe", text, recipe_names())
    try:
        data = json.loads(path.read_bytes())
        if isinstance(data, dict) and "format" in data:  # a run wrote it
            data = data.get("config")
        if not isinstance(data, dict):
            raise ValueError(f"it must be an object, got {data!r:.40}")
        return RunConfig.from_dict(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no run config: {error}") from None
