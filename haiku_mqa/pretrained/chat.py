"""From messages to the text of a prompt, through a model file's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from haiku_mqa.errors import unknown_name

ROLES = ("assistant", "system", "tool", "user")

_LONGEST_MESSAGE = 300
# What a template may do: room for the chattiest, and for every text to be touched
# some hundred times.
_STEPS = 200_000
_STEPS_TO_A_MESSAGE = 1_000
_STEPS_TO_A_CHARACTER = 4


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """Renders messages through a chat template, in a sandbox.

    A template comes out of a model file, so it is a stranger's program (run without
    a sandbox, it is CVE-2026-5760). It is given no way out of its own values, no
    files and no other templates, and a bounded number of steps. It sees what
    transformers shows to templates: ``messages``, ``add_generation_prompt``,
    ``bos_token``, ``eos_token``, ``tools`` and ``documents`` (none, both),
    ``raise_exception`` and the filter ``tojson``.

    Args:
      template: The template, in Jinja.
      messages: Mappings of ``role`` (``system``, ``user``, ``assistant`` or
        ``tool``) and ``content``, both strings, oldest first.
      add_generation_prompt: Whether the text ends where the assistant's answer
        begins.
      bos_token: The text of the token that begins a sequence.
      eos_token: The text of the token that ends a sequence.

    Returns:
      The text.

    Raises:
      ValueError: The messages are not as they should be, or the template refuses
        them, is broken, or does what a chat template may not.

    Example:
      >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
      >>> render_chat(template, [{"role": "user", "content": "Hello"}])
      '<user>Hello'
      >>> render_chat("{{ ''.__class__.__mro__ }}", [{"role": "user", "content": ""}])
      Traceback (most recent call last):
      ValueError: chat template: '__class__' of a str is out of bounds
    """
    # Whoever only continues a text starts sooner without it.
    import jinja2

    from haiku_mqa.pretrained import _sandbox

    checked = check_messages(messages)
    if len(template) > _sandbox.LONGEST_SOURCE:
        raise ValueError(
            f"chat template must be at most {_sandbox.LONGEST_SOURCE} characters long, "
            f"got {len(template)}"
        )
    characters = sum(len(message["content"]) for message in checked)
    variables = {
        "messages": checked,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
        # Not left undefined: templates ask whether they are none.
        "tools": None,
        "documents": None,
    }
    steps = (
        _STEPS + _STEPS_TO_A_MESSAGE * len(checked) + _STEPS_TO_A_CHARACTER * characters
    )
    try:
        return _sandbox.render(template, variables, steps)
    except _sandbox.Refusal as refusal:
        reason = _in_one_line(str(refusal))
        raise ValueError(
            f"the chat template refuses these messages: {reason}"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        message = f"chat template, line {error.lineno}: {_in_one_line(error.message)}"
        raise ValueError(message) from None
    except Exception as error:  # A template can raise whatever an expression can.
        message = str(error) or type(error).__name__
        raise ValueError(f"chat template: {_in_one_line(message)}") from None


def check_messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Returns messages as plain dictionaries, or says what is wrong with them.

    Args:
      messages: Mappings of ``role`` and ``content``.

    Returns:
      A list of new dictionaries.

    Raises:
      ValueError: There is no message, or one is not as it should be; it is named.

    Example:
      >>> check_messages([{"role": "usr", "content": "Hello"}])
      Traceback (most recent call last):
      ValueError: unknown messages[0].role 'usr': did you mean 'user'? Allowed: \
assistant, system, tool, user
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(
            "messages must be a list of {'role': ..., 'content': ...}, got "
            f"{type(messages).__name__}"
        )
    if not messages:
        raise ValueError("messages must hold at least one message, got none")
    return [_check_message(f"messages[{i}]", m) for i, m in enumerate(messages)]


def _check_message(name: str, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ValueError(
            f"{name} must be {{'role': ..., 'content': ...}}, got "
            f"{type(message).__name__}"
        )
    for key in message:
        if key not in ("role", "content"):
            raise unknown_name(f"key of {name}", str(key), ("role", "content"))
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            got = type(message[key]).__name__ if key in message else "nothing"
            raise ValueError(f"{name}.{key} must be a string, got {got}")
    # A role can be half of a control token's text, as in '<|' + role + '|>', so
    # only these may be said.
    if message["role"] not in ROLES:
        raise unknown_name(f"{name}.role", message["role"], ROLES)
    return {"role": message["role"], "content": message["content"]}


def _in_one_line(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
