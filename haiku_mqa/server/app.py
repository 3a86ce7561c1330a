"""The routes, from a request to its answer or its stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from haiku_mqa.errors import unknown_name
from haiku_mqa.server.answers import ChatCompletion, Completion, Shape, usage
from haiku_mqa.server.api_errors import ApiError
from haiku_mqa.server.choices import Choice, Piece, joined, merged
from haiku_mqa.server.likelihoods import TokenTexts
from haiku_mqa.server.orders import read_json, read_order
from haiku_mqa.server.service import Service

_CLIENT_IS_GONE = 499  # as nginx has it; nobody reads it


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
        self._names = service.name, TokenTexts(service.tokenizer)

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
        return await self._answer(request, Completion(*self._names))

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, ChatCompletion(*self._names))

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "haiku_mqa",
        }

    async def _answer(self, request: Request, shape: Shape) -> Response:
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
    request: Request, shape: Shape, choices: Sequence[Choice], read: int
) -> Response:
    pieces: list[list[Piece]] = [[] for _ in choices]

    async def collect() -> None:
        async for choice, piece in merged(choices):
            if piece is not None:
                pieces[choice.index].append(piece)

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
    found = [shape.whole(choice, joined(pieces[choice.index])) for choice in choices]
    return _json(shape.answer(found) | {"usage": usage(choices, read)})


async def _events(
    shape: Shape, choices: Sequence[Choice], read: int, include_usage: bool
) -> AsyncIterator[str]:
    try:
        for choice in choices:
            for opening in shape.openings(choice):
                yield _event(shape.chunk([opening]))
        async for choice, piece in merged(choices):
            yield _event(shape.chunk([shape.part(choice, piece)]))
        if include_usage:
            yield _event(shape.chunk([]) | {"usage": usage(choices, read)})
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
