"""What the server cannot do, and how it says so."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from haiku_mqa import load_pretrained
from haiku_mqa.generation import Engine
from haiku_mqa.server import Service
from tests.folders import write_model_folder
from tests.generation.alone import GREEDY as COLD
from tests.generation.alone import together
from tests.server.serving import GREEDY, MESSAGES, SLOTS, WAITING, make_service, running
from tests.tiny_gguf import write_tiny_gguf


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("completions", {}, "prompt", "prompt must be given"),
        ("completions", {"prompt": []}, "prompt", "prompt must be a text, token ids"),
        ("completions", {"prompt": [1, "a"]}, "prompt", "or a list of either, got 1"),
        ("completions", {"prompt": [400]}, "prompt", "ids from 0 to 259"),
        ("completions", {"prompt": ""}, "prompt", "at least one token id"),
        ("completions", {"prompt": "\ud800"}, "prompt", "lone surrogate"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens", ">= 1, got 0"),
        ("completions", {"prompt": "x", "max_tokens": "9"}, "max_tokens", 'got "9"'),
        ("completions", {"prompt": "x", "temperature": -1}, "temperature", "got -1"),
        (
            "completions",
            {"prompt": "x", "top_p": 0},
            "top_p",
            "top_p must be in (0, 1]",
        ),
        ("completions", {"prompt": "x", "top_k": 0}, "top_k", ">= 1, got 0"),
        ("completions", {"prompt": "x", "n": 0}, "n", "whole number >= 1, got 0"),
        ("completions", {"prompt": "x", "n": 9}, "n", "must be at most 4"),
        ("completions", {"prompt": "x", "stop": [""]}, "stop", "none empty"),
        ("completions", {"prompt": "x", "stop": ["a"] * 5}, "stop", "up to 4"),
        (
            "completions",
            {"prompt": "x", "seed": 1.5},
            "seed",
            "whole number, got 1.5",
        ),
        ("completions", {"prompt": "x", "stream": 1}, "stream", "true or false, got 1"),
        (
            "completions",
            {"prompt": "x", "stream_options": 1},
            "stream_options",
            "got 1",
        ),
        ("completions", {"prompt": "x", "logit_bias": [1]}, "logit_bias", "an object"),
        ("completions", {"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias", "ids"),
        ("completions", {"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias", "100"),
        ("completions", {"prompt": "x", "logit_bias": {"999": 1}}, "logit_bias", "999"),
        ("completions", {"prompt": "x", "min_p": 2}, "min_p", "must be in [0, 1]"),
        ("completions", {"prompt": "x", "logprobs": 21}, "logprobs", "from 0 to 20"),
        ("completions", {"prompt": "x", "logprobs": True}, "logprobs", "got true"),
        (
            "completions",
            {"prompt": "x", "top_logprobs": 2},
            "top_logprobs",
            "unknown field 'top_logprobs': did you mean 'logprobs'?",
        ),
        (
            "chat/completions",
            {"messages": MESSAGES, "logprobs": 3},
            "logprobs",
            "true or false, got 3",
        ),
        (
            "chat/completions",
            {"messages": MESSAGES, "top_logprobs": 2},
            "top_logprobs",
            "must be 0 where logprobs is not true, got 2",
        ),
        ("completions", {"prompt": "x", "echo": True}, "echo", "is not supported"),
        ("completions", {"prompt": "x", "max_token": 5}, "max_token", "'max_tokens'?"),
        ("chat/completions", {}, "messages", "must be a list of {role, content}"),
        ("chat/completions", {"messages": []}, "messages", "at least one message"),
        ("chat/completions", {"messages": ["x"]}, "messages", "messages[0] must be"),
        (
            "chat/completions",
            {"messages": [{"role": "usr", "content": "x"}]},
            "messages",
            "did you mean 'user'?",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "parts of type 'text'",
        ),
        ("chat/completions", {"prompt": "x"}, "prompt", "unknown field 'prompt'"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_field_that_is_wrong_is_named(post, path, body, param, message):
    status, data = post(path, body)
    assert status == 400
    assert message in data["error"]["message"]
    assert data["error"]["param"] == param
    assert data["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body must be JSON"),
        (b"[1]", "the body must be an object, got a list"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN is no number"),
        (b'"\xff"', "the body must be JSON"),
        (b"[" * 4000, "the body must be JSON"),
    ],
)
def test_body_that_is_no_object_is_refused(post, content, message):
    headers = {"Content-Type": "application/json"}
    status, data = post("completions", content=content, headers=headers)
    assert status == 400
    assert message in data["error"]["message"]


def test_body_of_another_kind_is_refused(post):
    content, headers = b'{"prompt": "x"}', {"Content-Type": "text/plain"}
    status, data = post("completions", content=content, headers=headers)
    assert status == 415
    assert "must be application/json, got 'text/plain'" in data["error"]["message"]


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "in parts"])
def test_body_that_is_too_long_is_refused(post, is_told):
    data = json.dumps({"prompt": "x" * 6000}).encode()
    content = data if is_told else iter([data[:3000], data[3000:]])
    headers = {"Content-Type": "application/json"}
    status, data = post("completions", content=content, headers=headers)
    assert status == 413
    assert "at most 5,000 bytes" in data["error"]["message"]


def test_prompt_longer_than_the_context_is_refused(client):
    for options in ({"prompt": "x" * 96}, {"prompt": "x" * 90, "max_tokens": 7}):
        with pytest.raises(openai.BadRequestError, match="the context holds") as error:
            client.completions.create(**options, **GREEDY)
        assert error.value.code == "context_length_exceeded"
    messages = [{"role": "user", "content": "x" * 96}]
    with pytest.raises(openai.BadRequestError, match="the context holds"):
        client.chat.completions.create(messages=messages, **GREEDY)


def test_completion_without_a_limit_is_cut_by_the_context(client):
    done = client.completions.create(prompt="x" * 90, **GREEDY)
    assert done.usage.total_tokens == 96


def test_unknown_model_and_path_are_not_found(client, post):
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'") as error:
        client.completions.create(model="tony", prompt="x")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tony")
    status, data = post("embeddings", {"input": "x"})
    assert status == 404
    assert "POST /v1/embeddings" in data["error"]["message"]
    assert post("models", {})[0] == 405


def test_one_request_too_many_is_told_to_come_again(client, service):
    engine = service.engine
    with engine._turns.lock:  # no turn is made, so all that comes stays
        waiting = [engine.submit([1], max_new_tokens=2) for _ in range(SLOTS + WAITING)]
        with pytest.raises(openai.RateLimitError, match="try again later") as error:
            client.completions.create(prompt="x", **GREEDY)
        assert error.value.response.headers["retry-after"] == "1"
        waiting.pop().cancel()
        with pytest.raises(openai.RateLimitError):  # there is room for one of two
            client.completions.create(prompt=["x", "y"], **GREEDY)
        assert engine.num_waiting == len(waiting)
    for request in waiting:
        assert len(request.result().tokens) == 2


def test_model_without_a_chat_template_says_so(tmp_path):
    path = write_tiny_gguf(tmp_path / "plain.gguf", chat=False)
    service = make_service(load_pretrained(path))
    with running(service) as (url, _):
        body = {"messages": MESSAGES}
        done = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert done.status_code == 400
    error = done.json()["error"]
    assert "'tiny' has no chat template; ask /v1/completions" in error["message"]
    assert error["code"] == "no_chat_template"


def test_model_of_a_run_continues_text_and_tells_of_a_character_it_lacks(tmp_path):
    loaded = load_pretrained(write_model_folder(tmp_path / "run"))
    engine = Engine(loaded.model, loaded.params, slots=1)
    service = Service(
        engine=engine, tokenizer=loaded.tokenizer, name="run", max_body=5000
    )
    with running(service) as (url, _):

        def ask(prompt: str) -> dict:
            body = {"prompt": prompt, "max_tokens": 9, "temperature": 0}
            return httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()

        done, refused = ask("to be"), ask("to be é")
    asked = (tuple(loaded.tokenizer.encode("to be")), COLD, 0)
    model, params = loaded.model, loaded.params
    tokens = together(model, params, [asked], longest=20, most=9)[asked]
    assert done["choices"][0]["text"] == loaded.tokenizer.decode(tokens)
    assert "text has 'é'" in refused["error"]["message"]
    assert refused["error"]["param"] == "prompt"


def test_logits_that_are_nan_are_an_error_of_the_server(tmp_path):
    path = write_tiny_gguf(tmp_path / "huge.gguf", scale=1e30)
    with running(make_service(load_pretrained(path))) as (url, _):
        body = {"prompt": "x", "stream": False}
        whole = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        parts = httpx.post(
            f"{url}/v1/completions", json={**body, "stream": True}, timeout=60
        )
    assert whole.status_code == 500
    assert "are NaN" in whole.json()["error"]["message"]
    [event] = parts.text.strip().split("\n\n")
    assert "are NaN" in json.loads(event.removeprefix("data: "))["error"]["message"]
