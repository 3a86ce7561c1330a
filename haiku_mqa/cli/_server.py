"""The server's routes: the part of OpenAI's API that a language model can keep."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from haiku_mqa.cli._server_choices import Choice, StoppedText, merged
from haiku_mqa.cli._server_errors import ApiError, bad_field, crowded, stopping
from haiku_mqa.cli._server_orders import Order, read_json, read_order
from haiku_mqa.cli._text_decoders import text_decoder
from haiku_mqa.errors import EngineFull, EngineStopped, unknown_name
from haiku_mqa.generation import Engine

_CLIENT_IS_GONE = 499  # as nginx has it; nobody reads it


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


def create_app(service: Service) -> Starlette:
    """Returns the application of a service, of which the engine is running already."""
    routes = _Routes(service)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat_completions, methods=["POST"]),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _client_is_gone,
            Exception: _unexpected_error,
        },
    )


class _Routes:
    def __init__(self, service: Service):
        self._service = service

    async def health(self, request: Request) -> Response:
        del request
        engine = self._service.engine
        status = "stopping" if self._service.is_closing else "ok"
        figures = {
            "status": status,
            "running": engine.num_running,
            "waiting": engine.num_waiting,
            "slots": engine.slots,
        }
        return _json(figures, 200 if status == "ok" else 503)

    async def models(self, request: Request) -> Response:
        del request
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._service.name:
            message = str(unknown_name("model", name, [self._service.name]))
            raise ApiError(404, message, param="model", code="model_not_found")
        return _json(self._model())

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, _Completion(self._service.name))

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, _ChatCompletion(self._service.name))

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "haiku_mqa",
        }

    async def _answer(self, request: Request, shape: _Shape) -> Response:
        service = self._service
        service.check_room()
        body = read_json(await _body(request, service.max_body))
        order = read_order(body, chat=shape.is_chat, model=service.name)
        # A long text takes a tokenizer a while, and others are served meanwhile.
        prompts = await run_in_threadpool(service.encoded, order)
        choices = service.choices(order, prompts)
        read = sum(map(len, prompts))
        if order.stream:
            events = _events(shape, choices, read, order.include_usage)
            return _EventStream(events, choices)
        return await _whole_answer(request, shape, choices, read)


async def _whole_answer(
    request: Request, shape: _Shape, choices: Sequence[Choice], read: int
) -> Response:
    texts = ["" for _ in choices]

    async def collect() -> None:
        async for choice, piece in merged(choices):
            texts[choice.index] += piece or ""

    collecting = asyncio.create_task(collect())
    leaving = asyncio.create_task(_departure(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=_CLIENT_IS_GONE)
        await collecting
    finally:
        for task in (collecting, leaving):
            task.cancel()
        for choice in choices:
            choice.cancel()
    found = [shape.whole(c, text) for c, text in zip(choices, texts, strict=True)]
    return _json(shape.answer(found) | {"usage": _usage(choices, read)})


async def _events(
    shape: _Shape, choices: Sequence[Choice], read: int, include_usage: bool
) -> AsyncIterator[str]:
    try:
        for choice in choices:
            for opening in shape.openings(choice):
                yield _event(shape.chunk([opening]))
        async for choice, piece in merged(choices):
            yield _event(shape.chunk([shape.part(choice, piece)]))
        if include_usage:
            yield _event(shape.chunk([]) | {"usage": _usage(choices, read)})
        yield "data: [DONE]\n\n"
    except ApiError as error:  # the status has been sent already
        yield _event(error.to_dict())


class _EventStream(StreamingResponse):
    """Server-sent events; whoever leaves before the end cancels what makes them."""

    def __init__(self, events: AsyncIterator[str], choices: Sequence[Choice]):
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )
        self._choices = choices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for choice in self._choices:
                choice.cancel()


class _Shape(abc.ABC):
    """What the fields of an answer are called."""

    is_chat = False
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str):
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def answer(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.kind, "choices": choices}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_kind, "choices": choices}

    def openings(self, choice: Choice) -> list[dict[str, Any]]:
        """Returns what a stream says of a choice before its text."""
        del choice
        return []

    @abc.abstractmethod
    def whole(self, choice: Choice, text: str) -> dict[str, Any]:
        """Returns a choice with all its text."""

    @abc.abstractmethod
    def part(self, choice: Choice, piece: str | None) -> dict[str, Any]:
        """Returns a choice with a piece of its text, or with its end."""


class _Completion(_Shape):
    def whole(self, choice: Choice, text: str) -> dict[str, Any]:
        return self._choice(choice, text, choice.finish_reason)

    def part(self, choice: Choice, piece: str | None) -> dict[str, Any]:
        reason = choice.finish_reason if piece is None else None
        return self._choice(choice, piece or "", reason)

    def _choice(self, choice: Choice, text: str, reason: str | None) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
        }


class _ChatCompletion(_Shape):
    is_chat = True
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def openings(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._choice(choice, "delta", {"role": "assistant", "content": ""})]

    def whole(self, choice: Choice, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._choice(choice, "message", message, choice.finish_reason)

    def part(self, choice: Choice, piece: str | None) -> dict[str, Any]:
        if piece is None:
            return self._choice(choice, "delta", {}, choice.finish_reason)
        return self._choice(choice, "delta", {"content": piece})

    def _choice(
        self, choice: Choice, field: str, said: Any, reason: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            field: said,
            "logprobs": None,
            "finish_reason": reason,
        }


async def _body(request: Request, most: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can make a browser send any other kind unasked.
        raise ApiError(
            415, f"the content type must be application/json, got {kind or 'none'!r}"
        )
    too_long = ApiError(413, f"the body must be at most {most:,} bytes long")
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > most:
            raise too_long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_long
        parts.append(part)
    return b"".join(parts)


async def _departure(request: Request) -> None:
    """Returns when the client is gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _usage(choices: Sequence[Choice], read: int) -> dict[str, int]:
    made = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
    }


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _json(
    data: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    # Escaped to ASCII: a body can hold half a surrogate pair, and name it wrong here.
    return Response(
        json.dumps(data), status, media_type="application/json", headers=headers
    )


async def _api_error(request: Request, error: Exception) -> Response:
    del request
    if not isinstance(error, ApiError):
        raise error
    return _json(error.to_dict(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.url.path}: {error.detail}"
    found = ApiError(error.status_code, message)
    return _json(found.to_dict(), error.status_code, dict(error.headers or {}))


async def _client_is_gone(request: Request, error: Exception) -> Response:
    del request, error
    return Response(status_code=_CLIENT_IS_GONE)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    del request
    message = f"unexpected {type(error).__name__}; the server's log has more of it"
    return _json(ApiError(500, message).to_dict(), 500)
