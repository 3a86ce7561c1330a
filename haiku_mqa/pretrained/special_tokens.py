"""Which tokens begin and end what a model reads and writes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """What stands around a text, and how messages become one.

    Attributes:
      bos_token: The id that begins a sequence.
      end_tokens: Ids that end an answer; the first ends a sequence.
      prefix: Ids that the file asks to put before a text.
      suffix: Ids that it asks to put after.
      chat_template: Jinja, or ``None``.

    Example:
      >>> tokens = SpecialTokens(
      ...     bos_token=1, end_tokens=(2,), prefix=(1,), suffix=(), chat_template=None)
      >>> [*tokens.prefix, 7, 8, *tokens.suffix]
      [1, 7, 8]
    """

    bos_token: int | None
    end_tokens: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    chat_template: str | None
