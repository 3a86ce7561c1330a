"""What a server's routes share: an engine, and how an order becomes its requests."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from haiku_mqa.errors import EngineFull, EngineStopped
from haiku_mqa.generation import Engine
from haiku_mqa.server.api_errors import ApiError, bad_field, crowded, stopping
from haiku_mqa.server.choices import Choice
from haiku_mqa.server.orders import Order
from haiku_mqa.streaming import StoppedText, text_decoder


@dataclasses.dataclass(kw_only=True)
class Service:
    """What the routes share.

    Attributes:
      engine: Makes the tokens; runs in its own thread.
      tokenizer: Of its model.
      name: Of its model, for clients.
      max_body: The longest body that is read, in bytes.
      is_closing: Whether the server was told to stop.
    """

    engine: Engine
    tokenizer: Any
    name: str
    max_body: int
    is_closing: bool = False
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def check_room(self) -> None:
        """Raises ``ApiError`` where a request would be refused, whatever it asks."""
        if self.is_closing:
            raise stopping()
        engine = self.engine
        is_full = engine.num_waiting >= engine.max_waiting
        if is_full and engine.num_running == engine.slots:
            raise crowded("too many requests wait already; try again later")

    def encoded(self, order: Order) -> list[list[int]]:
        """Returns the token ids of an order's prompts. Takes time for a long one.

        Args:
          order: What a client asks for.

        Returns:
          For each prompt its ids; of messages, one prompt.

        Raises:
          ApiError: The model cannot read them.
        """
        try:
            if order.messages is None:
                return [
                    list(self.tokenizer.encode(prompt))
                    if isinstance(prompt, str)
                    else list(prompt)
                    for prompt in order.prompts
                ]
            if getattr(self.tokenizer, "chat_template", None) is None:
                raise ApiError(
                    400,
                    f"model {self.name!r} has no chat template; ask /v1/completions",
                    code="no_chat_template",
                )
            return [list(self.tokenizer.encode_chat(order.messages))]
        except ValueError as error:
            field = "prompt" if order.messages is None else "messages"
            raise bad_field(field, str(error)) from None

    def choices(self, order: Order, prompts: Sequence[Sequence[int]]) -> list[Choice]:
        """Submits all that an order asks for, or nothing.

        Args:
          order: What a client asks for.
          prompts: Its prompts' token ids.

        Returns:
          The choices of the first prompt, then of the next.

        Raises:
          ApiError: A prompt is too long or otherwise not as it should be, there are
            too many, or the server stops.
        """
        engine = self.engine
        most = engine.slots + engine.max_waiting
        if len(prompts) * order.choices > most:
            raise bad_field("n", f"prompts times n must be at most {most}")
        field = "prompt" if order.messages is None else "messages"
        budgets = [self._budget(order, len(prompt), field) for prompt in prompts]
        made: list[Choice] = []
        try:
            for prompt, budget in zip(prompts, budgets, strict=True):
                for sample in range(order.choices):
                    made.append(
                        Choice(
                            len(made),
                            engine,
                            prompt,
                            StoppedText(text_decoder(self.tokenizer), order.stops),
                            max_new_tokens=budget,
                            sampling=order.sampling,
                            seed=(order.seed + sample) % 2**32,
                            end_tokens=tuple(getattr(self.tokenizer, "end_tokens", ())),
                            logprobs=order.logprobs,
                            top_logprobs=order.top_logprobs,
                            sample=sample,
                        )
                    )
        except (EngineFull, EngineStopped, ValueError) as error:
            for choice in made:
                choice.cancel()
            if isinstance(error, EngineFull):
                raise crowded(f"{error}; try again later") from None
            if isinstance(error, EngineStopped):
                raise stopping() from None
            name = str(error).partition(" ")[0]
            wrong = name if name == "logit_bias" else field
            raise bad_field(wrong, str(error)) from None
        return made

    def _budget(self, order: Order, length: int, field: str) -> int:
        context = self.engine.max_length
        left = context - length
        asked = 1 if order.max_tokens is None else order.max_tokens
        if left < (1 if order.may_be_shorter else asked):
            raise bad_field(
                field,
                f"the prompt has {length} tokens and {asked} more are to come: more "
                f"than the {context} that the context holds here",
                code="context_length_exceeded",
            )
        return left if order.max_tokens is None else min(order.max_tokens, left)
