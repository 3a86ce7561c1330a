"""A server in a thread of this process, and what it must say."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from haiku_mqa import Sampling
from haiku_mqa.cli import serve
from haiku_mqa.generation import Engine
from haiku_mqa.server import Service
from tests.generation.alone import GREEDY as COLD
from tests.generation.alone import together

MESSAGES = [{"role": "user", "content": "Hello"}]
SLOTS, WAITING = 2, 2
GREEDY = {"model": "tiny", "temperature": 0}


@contextlib.contextmanager
def running(service: Service) -> Iterator[tuple[str, object]]:
    """Serves on a free port, in a thread; gives its address and the server."""
    server = serve._server(service, grace=30)
    with serve._listening("127.0.0.1", 0) as listener, service.engine:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            url = serve._url(listener)
            while not server.started:
                time.sleep(0.01)
            yield url, server
        finally:
            server.should_exit = True
            thread.join()


def make_service(loaded, **options) -> Service:
    sizes = {"slots": SLOTS, "max_waiting": WAITING, "max_length": 96}
    engine = Engine(loaded.model, loaded.params, **sizes)
    fixed = {"tokenizer": loaded.tokenizer, "name": "tiny", "max_body": 5000}
    return Service(engine=engine, **{**fixed, **options})


def text_alone(loaded, ids, new: int, sampling: Sampling = COLD, seed: int = 0) -> str:
    """Returns the text that ``generate`` gives a prompt of at most 40 tokens."""
    asked = (tuple(ids), sampling, seed)
    model, params = loaded.model, loaded.params
    tokens = together(model, params, [asked], longest=40, most=12)[asked]
    return loaded.tokenizer.decode(tokens[:new])


def until(is_so) -> None:
    """Waits for what another thread is about to do."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)
