"""What a body asks a server for: fields of OpenAI's API, checked one by one."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from haiku_mqa.errors import unknown_name
from haiku_mqa.generation import Sampling
from haiku_mqa.server.api_errors import ApiError, bad_field
from haiku_mqa.server.fields import flag, number, shown, whole, wrong

_COMMON = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "n",
    "stream",
    "stream_options",
    "stop",
    "seed",
    "logprobs",
)
_CHAT = ("messages", "max_completion_tokens", "top_logprobs")
_COMPLETION = ("prompt",)
# Fields that would change the answer, and the values at which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
# Fields that say nothing of the answer.
_PASSED_OVER = ("user", "metadata", "store", "service_tier", "safety_identifier")
_MOST_STOPS = 4
_MOST_ALTERNATIVES = 20
_COMPLETION_TOKENS = 16  # what OpenAI's API gives where max_tokens is left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for.

    Attributes:
      prompts: Texts, or lists of token ids; none where there are messages.
      messages: Of a chat; ``None`` in a plain completion.
      max_tokens: Of each choice at most; ``None`` is what the context leaves.
      may_be_shorter: Whether ``max_tokens`` is a default, which the context may cut.
      sampling: How tokens are chosen.
      seed: Of the first choice of each prompt.
      choices: How many each prompt gets.
      logprobs: Whether the answer says how likely each token was.
      top_logprobs: How many of the likeliest tokens it names at each place.
      stops: Texts before which a choice ends.
      stream: Whether text is sent as it comes.
      include_usage: Whether a stream ends with the number of tokens.
    """

    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None
    may_be_shorter: bool
    sampling: Sampling
    seed: int
    choices: int
    logprobs: bool
    top_logprobs: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_json(data: bytes) -> dict[str, Any]:
    """Returns the object in a body.

    Args:
      data: The body.

    Raises:
      ApiError: It is not JSON, or not an object.
    """
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body must be JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be an object, got {_kind(body)}")
    return body


def read_order(body: Mapping[str, Any], *, chat: bool, model: str) -> Order:
    """Returns what a body asks for.

    Args:
      body: Its fields.
      chat: Whether messages are to be answered; else prompts are continued.
      model: The name of the one that there is.

    Raises:
      ApiError: A field is unknown, missing, or not as it should be.
    """
    own = _CHAT if chat else _COMPLETION
    fields = {name: value for name, value in body.items() if value is not None}
    for name in fields:
        if name not in (*_COMMON, *own, *_NEUTRAL, *_PASSED_OVER):
            allowed = (*_COMMON, *own)
            raise bad_field(name, str(unknown_name("field", name, allowed)))
        if name in _NEUTRAL and fields[name] not in _NEUTRAL[name]:
            raise bad_field(
                name, f"{name} = {shown(fields[name])} is not supported; leave it out"
            )
    asked = fields.get("model", model)
    if asked != model:
        message = str(unknown_name("model", str(asked), [model]))
        raise ApiError(404, message, param="model", code="model_not_found")
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        raise wrong("stream_options", "an object", options)
    limit = "max_completion_tokens" if "max_completion_tokens" in fields else None
    limit = limit or ("max_tokens" if "max_tokens" in fields else None)
    default = None if chat else _COMPLETION_TOKENS
    logprobs, top_logprobs = _logprobs(fields, chat=chat)
    return Order(
        prompts=() if chat else _prompts(fields),
        messages=_messages(fields) if chat else None,
        max_tokens=whole(fields, limit, 1, None) if limit else default,
        may_be_shorter=limit is None,
        sampling=_sampling(fields),
        # Any whole number will do for OpenAI's API, also one below zero.
        seed=whole(fields, "seed", None, None) % 2**32
        if "seed" in fields
        else secrets.randbits(32),
        choices=whole(fields, "n", 1, 128) if "n" in fields else 1,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        stops=_stops(fields),
        stream=flag("stream", fields.get("stream", False)),
        include_usage=flag(
            "stream_options.include_usage", options.get("include_usage") or False
        ),
    )


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    numbers = {
        name: number(fields, name, default)
        for name, default in (
            ("temperature", 1.0),
            ("top_p", 1.0),
            ("min_p", 0.0),
            ("repetition_penalty", 1.0),
            ("presence_penalty", 0.0),
            ("frequency_penalty", 0.0),
        )
    }
    top_k = whole(fields, "top_k", 1, None) if "top_k" in fields else None
    try:
        return Sampling(**numbers, top_k=top_k, logit_bias=_biases(fields))
    except ValueError as error:
        raise bad_field(str(error).partition(" ")[0], str(error)) from None


def _biases(fields: Mapping[str, Any]) -> dict[int, float] | None:
    biases = fields.get("logit_bias")
    if not biases:
        return None
    if not isinstance(biases, dict):
        raise wrong("logit_bias", "an object of token ids and numbers", biases)
    for token, bias in biases.items():
        # JSON has texts for names; isdecimal alone takes digits of other scripts too.
        is_id = token.isascii() and token.isdecimal() and len(token) < 10
        if not is_id or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise wrong("logit_bias", "of token ids and numbers", {token: bias})
        if not -100 <= bias <= 100:
            raise wrong("logit_bias", "of numbers from -100 to 100", bias)
    return {int(token): float(bias) for token, bias in biases.items()}


def _logprobs(fields: Mapping[str, Any], *, chat: bool) -> tuple[bool, int]:
    """Returns whether likelihoods are asked for, and how many alternatives."""
    if not chat:
        # One number says both; false is what older clients send for none.
        if fields.get("logprobs", False) is False:
            return False, 0
        return True, whole(fields, "logprobs", 0, _MOST_ALTERNATIVES)
    asked = flag("logprobs", fields.get("logprobs", False))
    if "top_logprobs" not in fields:
        return asked, 0
    top = whole(fields, "top_logprobs", 0, _MOST_ALTERNATIVES)
    if top and not asked:
        raise wrong("top_logprobs", "0 where logprobs is not true", top)
    return asked, top


def _prompts(fields: Mapping[str, Any]) -> tuple[str | tuple[int, ...], ...]:
    prompt = fields.get("prompt")
    if prompt is None:
        raise bad_field("prompt", "prompt must be given")
    if isinstance(prompt, str) or _is_ids(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise wrong("prompt", "a text, token ids, or a list of either", prompt)
    for each in prompt:
        if not isinstance(each, str) and not _is_ids(each):
            raise wrong("prompt", "a text, token ids, or a list of either", each)
    return tuple(each if isinstance(each, str) else tuple(each) for each in prompt)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
    )


def _messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns messages with OpenAI's ways to say the same undone; the rest as it is."""
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise wrong("messages", "a list of {role, content}", messages)
    plain = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong(f"messages[{place}]", "{role, content}", message)
        message = {name: value for name, value in message.items() if value is not None}
        if isinstance(message.get("content"), list):
            message["content"] = _joined(place, message["content"])
        if message.get("role") == "developer":
            message["role"] = "system"
        plain.append(message)
    return plain


def _joined(place: int, parts: list[Any]) -> str:
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise bad_field(
                "messages",
                f"messages[{place}].content must be of parts of type 'text', got "
                f"{shown(part)}",
            )
    return "".join(part["text"] for part in parts)


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(each, str) and each for each in stops)
    ):
        raise wrong("stop", f"a text, or up to {_MOST_STOPS}, none empty", stop)
    return tuple(stops)


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false"}.get(
        type(value), "a number" if isinstance(value, int | float) else "null"
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
