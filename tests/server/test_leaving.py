"""Clients that leave, and a server that stops."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import socket
import threading

import httpx
import openai
import pytest

from tests.server.serving import GREEDY, make_service, running, until


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_its_slot(url, service, stream):
    body = json.dumps({"prompt": "x", "max_tokens": 90, "stream": stream})
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    engine = service.engine
    host, port = url.removeprefix("http://").split(":")
    with engine._turns.lock:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall((head + body).encode())
            until(lambda: engine.num_waiting == 1)
        # Gone by now; no turn was made, so it is not done but let go.
        until(lambda: engine.num_waiting == 0)


def test_stop_finishes_what_is_open_and_refuses_what_comes(loaded):
    service = make_service(loaded)
    with running(service) as (url, server), httpx.Client(timeout=60) as kept:
        kept.get(f"{url}/health")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asked = {"prompt": "In the end", "max_tokens": 40, **GREEDY}
        whole = client.completions.create(**asked).choices[0].text
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with service.engine._turns.lock:
                asking = pool.submit(client.completions.create, **asked)
                until(lambda: service.engine.num_waiting == 1)
                service.is_closing = True
                refused = kept.post(f"{url}/v1/completions", json={"prompt": "x"})
                health = kept.get(f"{url}/health")
                server.handle_exit(signal.SIGTERM, None)
            assert asking.result().choices[0].text == whole
        client.close()
    assert (refused.status_code, health.status_code) == (503, 503)
    assert refused.json()["error"]["code"] == "stopping"
    assert health.json()["status"] == "stopping"


def test_what_outlasts_the_grace_is_told_that_the_server_stops(loaded):
    service = make_service(loaded)
    with running(service) as (url, _):
        answers = {}

        def ask(stream: bool) -> None:
            body = {"prompt": "x", "max_tokens": 90, "stream": stream}
            answers[stream] = httpx.post(f"{url}/v1/completions", json=body, timeout=60)

        asking = [threading.Thread(target=ask, args=(s,)) for s in (False, True)]
        with service.engine._turns.lock:
            for thread in asking:
                thread.start()
            until(lambda: service.engine.num_waiting == 2)
            stop = threading.Thread(target=service.engine.stop, kwargs={"timeout": 0})
            stop.start()
            for thread in asking:
                thread.join()
        stop.join()
    assert answers[False].status_code == 503
    assert "the server is stopping" in answers[True].text
    assert "[DONE]" not in answers[True].text
