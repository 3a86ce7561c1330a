"""One server for all of these tests, asked by OpenAI's own client."""

from __future__ import annotations

import json

import httpx
import jax
import openai
import pytest

from haiku_mqa import load_pretrained
from tests.server.serving import make_service, running
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="package", autouse=True)
def forget_compiled_programs():
    """Frees what these tests compiled, at the end of them all: they share a server."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="package")
def loaded(tmp_path_factory):
    return load_pretrained(write_tiny_gguf(tmp_path_factory.mktemp("m") / "t.gguf"))


@pytest.fixture(scope="package")
def service(loaded):
    return make_service(loaded)


@pytest.fixture(scope="package")
def url(service):
    with running(service) as (url, _):
        yield url


@pytest.fixture(scope="package")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def post(url):
    """``post(path, body)`` -> status and data of an answer, past the client."""

    def send(path, body=None, **options):
        if body is not None:  # escaped, so that half a surrogate pair can be sent
            options["content"] = json.dumps(body)
            options["headers"] = {"Content-Type": "application/json"}
        done = httpx.post(f"{url}/v1/{path}", timeout=60, **options)
        return done.status_code, done.json()

    return send
