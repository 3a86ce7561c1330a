"""What a plugin hands a model zoo: one frozen description of one model.

A host may hold any object with these attributes to the contract; nobody has to
import this package to be discovered.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from haiku_mqa.config import DecoderConfig

API_VERSION = 1
"""The newest contract that this package knows; a plugin names the one it keeps."""

NAME_PATTERN = re.compile(r"[a-z0-9._-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """What one must know before using a model, as plain data.

    Attributes:
      description: One line that says what the model is.
      license: The licence of the weights, as an SPDX name where there is one.
      citation: Whom to cite; empty where there is nobody.
      source: Where the weights come from; empty where there are none.
      sha256: Of the weights file, 64 lower-case hexadecimal digits; ``None`` where
        there is no file.
      capabilities: What can be done with the model: ``"logits"``, ``"cache"``
        (decoding with a KV cache), ``"pretrained"`` (it has weights), ``"chat"``
        (its tokenizer has a chat template). Hosts pass over words they do not know.

    Raises:
      ValueError: A field is not of what is allowed; the message names it.

    Example:
      >>> ModelMetadata(description="A small decoder.", license="MIT").capabilities
      ()
      >>> ModelMetadata(description="A small decoder.", sha256="5f3b")
      Traceback (most recent call last):
      ValueError: metadata.sha256 must be None or 64 lower-case hexadecimal digits, \
got '5f3b'
    """

    description: str
    license: str = ""
    citation: str = ""
    source: str = ""
    sha256: str | None = None
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_metadata(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model, as the zero-argument factory of an entry point returns it.

    Attributes:
      api_version: The contract that the plugin keeps; now ``API_VERSION``.
      name: The entry point's name, of ``[a-z0-9._-]``.
      version: The model's own version, in any form.
      config: What the decoder is.
      metadata: Licence, source, citation and capabilities.
      init: ``init(rng, tokens) -> params``, tokens int32 [B, T].
      apply: ``apply(params, rng, tokens, *, positions=None, segment_ids=None,
        mask=None, cache=None)``; its result has ``logits``, float32 [B, T, V], and
        ``cache``.
      init_cache: ``init_cache(batch_size, max_length, dtype=...) -> cache``, lengths
        in tokens.
      load_params: ``load_params() -> params``, the pretrained weights, fetched if
        need be; ``None`` where there are none.
      load_tokenizer: ``load_tokenizer()``, an object with ``encode(text) ->
        list[int]`` and ``decode(ids) -> str``; ``None`` where there is none.

    Raises:
      ValueError: A field is not of what is allowed; the message names it.

    Example:
      >>> from haiku_mqa.config import DecoderConfig
      >>> spec = ModelSpec(
      ...     api_version=API_VERSION, name="tiny", version="1.0",
      ...     config=DecoderConfig(
      ...         vocab_size=256, num_layers=1, num_heads=2, d_model=16, d_ff=32),
      ...     metadata=ModelMetadata(description="A tiny decoder."),
      ...     init=print, apply=print, init_cache=print)
      >>> spec.name, spec.load_params
      ('tiny', None)
    """

    api_version: int
    name: str
    version: str
    config: DecoderConfig
    metadata: ModelMetadata
    init: Callable[..., Any]
    apply: Callable[..., Any]
    init_cache: Callable[..., Any]
    load_params: Callable[..., Any] | None = None
    load_tokenizer: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_spec(self, self.name)


def check_spec(obj: Any, name: str) -> ModelSpec:
    """Returns ``obj``, once it is known to keep the contract of ``ModelSpec``.

    Args:
      obj: Any object with the attributes of ``ModelSpec``; its class and the class
        of its config do not matter.
      name: The name it is registered under.

    Returns:
      ``obj`` itself.

    Raises:
      ValueError: ``obj`` lacks attributes (all are named), is made for a newer
        contract (both versions are named), calls itself something other than
        ``name``, or an attribute is not of what is allowed.

    Example:
      >>> import types
      >>> check_spec(types.SimpleNamespace(api_version=2), "tiny")
      Traceback (most recent call last):
      ValueError: model 'tiny' has api_version 2, this haiku_mqa knows 1: upgrade \
haiku_mqa, or use an older release of the plugin
      >>> check_spec(types.SimpleNamespace(api_version=1, name="tiny", version="1",
      ...     config={}, metadata=None, apply=print), "tiny")
      Traceback (most recent call last):
      ValueError: model 'tiny' (a SimpleNamespace) lacks: init, init_cache, \
load_params, load_tokenizer
    """
    # A newer contract may have other attributes, so its version is read first:
    # what is missing would be the wrong reason.
    if hasattr(obj, "api_version"):
        _check_api_version(obj.api_version, name)
    _require_attributes(
        f"model {name!r}", obj, (field.name for field in dataclasses.fields(ModelSpec))
    )
    spec = cast(ModelSpec, obj)
    if not isinstance(spec.name, str) or not NAME_PATTERN.fullmatch(spec.name):
        raise ValueError(f"name must be of [a-z0-9._-], got {spec.name!r}")
    if spec.name != name:
        raise ValueError(
            f"name must be {name!r}, as the model is registered, got {spec.name!r}"
        )
    if not isinstance(spec.version, str) or not spec.version:
        raise ValueError(f"version must be a string, not empty, got {spec.version!r}")
    _check_callables(spec)
    _check_metadata(spec.metadata)
    if "pretrained" in spec.metadata.capabilities and spec.load_params is None:
        raise ValueError(
            "metadata.capabilities lists 'pretrained', so load_params must not be None"
        )
    return spec


def _check_api_version(version: object, name: str) -> None:
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"api_version must be a whole number >= 1, got {version!r}")
    if version > API_VERSION:
        raise ValueError(
            f"model {name!r} has api_version {version}, this haiku_mqa knows "
            f"{API_VERSION}: upgrade haiku_mqa, or use an older release of the plugin"
        )


def _check_callables(spec: ModelSpec) -> None:
    for field in ("init", "apply", "init_cache"):
        if not callable(getattr(spec, field)):
            raise ValueError(
                f"{field} must be callable, got {type(getattr(spec, field)).__name__}"
            )
    for field in ("load_params", "load_tokenizer"):
        value = getattr(spec, field)
        if value is not None and not callable(value):
            raise ValueError(
                f"{field} must be callable or None, got {type(value).__name__}"
            )


def _check_metadata(metadata: ModelMetadata) -> None:
    _require_attributes(
        "metadata",
        metadata,
        (field.name for field in dataclasses.fields(ModelMetadata)),
    )
    for field in ("description", "license", "citation", "source"):
        value = getattr(metadata, field)
        if not isinstance(value, str):
            raise ValueError(f"metadata.{field} must be a string, got {value!r}")
    sha256 = metadata.sha256
    if sha256 is not None and not (
        isinstance(sha256, str) and _SHA256.fullmatch(sha256)
    ):
        raise ValueError(
            "metadata.sha256 must be None or 64 lower-case hexadecimal digits, got "
            f"{sha256!r}"
        )
    words = metadata.capabilities
    # A lone string would read as a tuple of its letters.
    if not isinstance(words, tuple) or not all(isinstance(w, str) for w in words):
        raise ValueError(
            f"metadata.capabilities must be a tuple of strings, got {words!r}"
        )


def _require_attributes(what: str, obj: object, names: Iterable[str]) -> None:
    missing = sorted(name for name in names if not hasattr(obj, name))
    if missing:
        raise ValueError(f"{what} (a {type(obj).__name__}) lacks: {', '.join(missing)}")
