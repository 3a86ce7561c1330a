"""``haiku-mqa serve``: a model behind the part of OpenAI's API that it can keep."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haiku_mqa.cli import _options
from haiku_mqa.cli._failures import MissingExtra
from haiku_mqa.cli._models import load_model
from haiku_mqa.cli._screen import counted, say
from haiku_mqa.zoo.discovery import is_path

if TYPE_CHECKING:
    import uvicorn

    from haiku_mqa.server import Service
    from haiku_mqa.zoo.loading import LoadedModel

_LONGEST_CONTEXT = 2048  # of a slot where none is asked for: all of it is held

_DESCRIPTION = """\
Serve a model to programs that speak OpenAI's API:

  POST /v1/chat/completions   answer messages, through the model's chat template
  POST /v1/completions        continue a prompt
  GET  /v1/models, /health

Both answer as a whole or, with "stream": true, as the text comes. Requests share one
batch of --slots rows, which they join and leave at any time; further ones wait, and
beyond --max-waiting they are refused with 429. Each gets the text that it would get
alone with its seed. A prompt that begins as an earlier one did, as a conversation
does, is read only from where they part.

On SIGTERM or SIGINT new requests are refused with 503, and those that are open have
--grace seconds to come to their end. A second SIGINT ends all at once.

There is no authentication: beyond this machine, put something in front that has.
"""

_EPILOG = """\
examples:
  haiku-mqa serve
  haiku-mqa serve --model shakespeare-mqa --port 8080
  haiku-mqa serve --slots 16 --context 1024 --quantize int8 --cache int8
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "The capital of France is", "max_tokens": 8}'
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb ``serve``."""
    parser = _options.add_verb(
        verbs,
        "serve",
        help="serve a model to programs that speak OpenAI's API",
        run=run,
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _options.add_model(parser)
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="what clients call the model (default: the last part of --model)",
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=_options.whole(0, 65535),
        metavar="N",
        default=8000,
        help="the port; 0 is any that is free (default: %(default)s)",
    )
    for option, least, default, text in (
        ("--slots", 1, 8, "how many requests are answered at once"),
        ("--max-waiting", 0, 64, "how many more may wait for a slot"),
        ("--max-body", 1, 1_000_000, "the longest body that is read, in bytes"),
        ("--grace", 0, 30, "seconds that open requests get when the server stops"),
    ):
        parser.add_argument(
            option,
            type=_options.whole(least),
            metavar="N",
            default=default,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--context",
        type=_options.whole(2),
        metavar="N",
        help="the most tokens of a request, prompt and answer together (default: the "
        f"model's context, or {_LONGEST_CONTEXT} where that is longer)",
    )
    _options.add_dtype(parser)
    _options.add_quantize(parser)
    parser.add_argument(
        "--cache",
        choices=("int8",),
        metavar="int8",
        help="hold keys and values in a byte a number: a quarter of the memory, for "
        "more slots or a longer context",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal.

    Args:
      args: As parsed.

    Returns:
      0 where all that was open came to its end or was refused.

    Raises:
      ValueError: There is no such model, it has no tokenizer, or its context is
        shorter than ``--context``.
      MissingExtra: starlette or uvicorn is not installed.
      OSError: The address cannot be listened on.
      KeyboardInterrupt: A second SIGINT came.
    """
    for library in ("starlette", "uvicorn"):
        if importlib.util.find_spec(library) is None:
            raise MissingExtra("serving", "serve")
    with _listening(args.host, args.port) as listener:
        loaded = load_model(args.model, dtype=args.dtype, quantize=args.quantize)
        service = _service(loaded, args)
        say("compiling")
        service.engine.warm_up()
        server = _server(service, args.grace)
        with service.engine:
            listener.listen()  # so that who reads the next line can come at once
            say(f"serving {service.name} on {_url(listener)}; {_scale(service)}")
            if not _is_loopback(listener):
                say(
                    "whoever reaches this address can use it: nothing asks who they are"
                )
            server.run(sockets=[listener])
            if server.force_exit:
                raise KeyboardInterrupt
            say("stopped")
    return 0


def _service(loaded: LoadedModel, args: argparse.Namespace) -> Service:
    from haiku_mqa.generation import Engine
    from haiku_mqa.server import Service

    if loaded.tokenizer is None:
        raise ValueError(f"model {args.model!r} has no tokenizer to read text with")
    longest = loaded.model.config.max_length
    context = args.context or min(longest, _LONGEST_CONTEXT)
    if context > longest:
        raise ValueError(
            f"--context must be at most {longest}, the context of {args.model}, got "
            f"{context}"
        )
    engine = Engine(
        loaded.model,
        loaded.params,
        slots=args.slots,
        max_length=context,
        max_waiting=args.max_waiting,
        cache_dtype=args.cache,
    )
    name = args.name or _short_name(args.model)
    return Service(
        engine=engine, tokenizer=loaded.tokenizer, name=name, max_body=args.max_body
    )


def _server(service: Service, grace: int) -> uvicorn.Server:
    import uvicorn

    from haiku_mqa.server import create_app

    class Server(uvicorn.Server):
        """Tells the service of a signal, and returns where uvicorn raises it anew."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:
                self.force_exit = True
                return
            service.is_closing = self.should_exit = True
            # Not here: a signal comes between any two lines of this thread, of which
            # one may hold the engine's lock.
            threading.Thread(
                target=service.engine.stop, kwargs={"timeout": grace}
            ).start()

    return Server(
        uvicorn.Config(
            create_app(service),
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            # What the engine lets go after its grace is told to clients first.
            timeout_graceful_shutdown=grace + 5,
        )
    )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # So that a server can follow another at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _scale(service: Service) -> str:
    engine = service.engine
    return f"{counted(engine.slots, 'slot')} of {counted(engine.max_length, 'token')}"


def _short_name(source: str) -> str:
    if not is_path(source):
        return source
    path = Path(source).resolve()
    return path.stem if path.suffix == ".gguf" else path.name
