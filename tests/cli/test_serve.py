"""The server, asked by OpenAI's own client: what it says is what the library says."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from haiku_mqa import Sampling, load_pretrained
from haiku_mqa.cli import serve
from haiku_mqa.generation import Engine
from haiku_mqa.server import Service
from tests.folders import write_model_folder
from tests.generation.alone import GREEDY as COLD
from tests.generation.alone import together
from tests.tiny_gguf import write_tiny_gguf

MESSAGES = [{"role": "user", "content": "Hello"}]
SLOTS, WAITING = 2, 2


@contextlib.contextmanager
def _running(service: Service) -> Iterator[tuple[str, object]]:
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


def _service(loaded, **options) -> Service:
    sizes = {"slots": SLOTS, "max_waiting": WAITING, "max_length": 96}
    engine = Engine(loaded.model, loaded.params, **sizes)
    fixed = {"tokenizer": loaded.tokenizer, "name": "tiny", "max_body": 5000}
    return Service(engine=engine, **{**fixed, **options})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_pretrained(write_tiny_gguf(tmp_path_factory.mktemp("m") / "t.gguf"))


@pytest.fixture(scope="module")
def service(loaded):
    return _service(loaded)


@pytest.fixture(scope="module")
def url(service):
    with _running(service) as (url, _):
        yield url


@pytest.fixture(scope="module")
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


def _alone(loaded, ids, new: int, sampling: Sampling = COLD, seed: int = 0) -> str:
    """Returns the text that ``generate`` gives a prompt of at most 40 tokens."""
    asked = (tuple(ids), sampling, seed)
    model, params = loaded.model, loaded.params
    tokens = together(model, params, [asked], longest=40, most=12)[asked]
    return loaded.tokenizer.decode(tokens[:new])


GREEDY = {"model": "tiny", "temperature": 0}


# --- Answers --------------------------------------------------------------------------


def test_completion_is_what_the_library_generates(client, loaded):
    done = client.completions.create(prompt="In the end", max_tokens=12, **GREEDY)
    ids = loaded.tokenizer.encode("In the end")
    [choice] = done.choices
    assert choice.text == _alone(loaded, ids, 12)
    assert choice.finish_reason == "length"
    assert (done.object, done.model) == ("text_completion", "tiny")
    usage = done.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), 12)
    assert usage.total_tokens == len(ids) + 12


def test_chat_answer_is_what_the_library_generates(client, loaded):
    done = client.chat.completions.create(messages=MESSAGES, max_tokens=8, **GREEDY)
    [choice] = done.choices
    assert choice.message.role == "assistant"
    ids = loaded.tokenizer.encode_chat(MESSAGES)
    assert choice.message.content == _alone(loaded, ids, 8)
    assert done.object == "chat.completion"
    assert done.usage.prompt_tokens == len(ids)


def test_sampled_completion_is_what_the_library_draws_with_the_seed(client, loaded):
    done = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=8,
        temperature=2.0,
        top_p=0.9,
        seed=3,
        extra_body={"top_k": 200},
    )
    sampling = Sampling(temperature=2.0, top_p=0.9, top_k=200)
    ids = loaded.tokenizer.encode("x")
    assert done.choices[0].text == _alone(loaded, ids, 8, sampling, 3)


def test_penalties_and_biases_are_those_of_the_library(client, loaded):
    given = {"presence_penalty": 1.0, "frequency_penalty": 0.5}
    more = {"repetition_penalty": 1.5, "min_p": 0.01}
    done = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=8,
        temperature=0.9,
        seed=3,
        logit_bias={"5": 4, "7": -100},
        extra_body=more,
        **given,
    )
    sampling = Sampling(
        temperature=0.9, **given, **more, logit_bias={5: 4.0, 7: -100.0}
    )
    ids = loaded.tokenizer.encode("x")
    assert done.choices[0].text == _alone(loaded, ids, 8, sampling, 3)


@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
def test_stream_gives_piece_by_piece_what_the_whole_answer_says(client, chat):
    options = {"max_tokens": 20, **GREEDY}
    if chat:
        create, options["messages"] = client.chat.completions.create, MESSAGES
    else:
        create, options["prompt"] = client.completions.create, "In the end"
    whole = create(**options)
    chunks = list(
        create(stream=True, stream_options={"include_usage": True}, **options)
    )
    *chunks, last = chunks
    assert (last.choices, last.usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks]
    assert [c.finish_reason for c in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == whole.choices[0].finish_reason == "length"
    if chat:
        assert choices[0].delta.role == "assistant"
        text = "".join(choice.delta.content or "" for choice in choices)
        assert text == whole.choices[0].message.content
    else:
        assert "".join(choice.text for choice in choices) == whole.choices[0].text


def test_stream_gives_text_as_it_is_chosen(client, service, monkeypatch):
    engine, turns = service.engine, threading.Semaphore(0)
    decode = engine._decode

    def one_at_a_time(*arguments):
        assert turns.acquire(timeout=60)
        return decode(*arguments)

    monkeypatch.setattr(engine, "_decode", one_at_a_time)
    steps = client.completions.create(
        prompt="In the end", max_tokens=20, stream=True, **GREEDY
    )
    pieces = []
    for step in steps:  # the next turn waits for this one's text to be here
        pieces.append(step.choices[0].text)
        turns.release()
    assert [len(piece) for piece in pieces] == [1, 8, 8, 3, 0]


def test_prompts_and_samples_have_a_choice_each(client, loaded):
    ids = loaded.tokenizer.encode("x y")
    done = client.completions.create(
        model="tiny", prompt=["x y", "z"], n=2, max_tokens=6, temperature=2.0, seed=5
    )
    texts = [choice.text for choice in done.choices]
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    sampling = Sampling(temperature=2.0)
    assert texts[:2] == [_alone(loaded, ids, 6, sampling, s) for s in (5, 6)]
    assert texts[2] == _alone(loaded, loaded.tokenizer.encode("z"), 6, sampling, 5)
    assert done.usage.completion_tokens == 24


def test_prompt_may_be_token_ids(client, loaded):
    ids = loaded.tokenizer.encode("In the end")
    for prompt in (ids, [ids]):
        done = client.completions.create(prompt=prompt, max_tokens=5, **GREEDY)
        assert done.choices[0].text == _alone(loaded, ids, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_a_stop_and_its_slot_is_let_go(client, service, stream):
    options = {"model": "tiny", "prompt": "In the end", "temperature": 2, "seed": 4}
    whole = client.completions.create(max_tokens=60, **options).choices[0].text
    stop = whole[9:12]
    assert whole.index(stop) == 9
    done = client.completions.create(
        max_tokens=60, stop=["never said", stop], stream=stream, **options
    )
    choices = [c.choices[0] for c in done] if stream else done.choices
    assert "".join(c.text for c in choices) == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"
    assert not service.engine.is_busy


def test_parts_of_a_message_are_read_as_one_text(client):
    def answer(content, role="user"):
        messages = [{"role": role, "content": content}]
        done = client.chat.completions.create(messages=messages, max_tokens=6, **GREEDY)
        return done.usage.prompt_tokens, done.choices[0].message.content

    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert answer(parts) == answer("Hello")
    assert answer("Hello", "developer") == answer("Hello", "system")


def test_answer_without_a_limit_ends_with_the_context(client, service):
    done = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert done.usage.total_tokens == service.engine.max_length
    assert done.choices[0].finish_reason == "length"


def test_more_clients_than_slots_get_their_own_each(client, loaded):
    def ask(text: str) -> str:
        done = client.completions.create(prompt=text, max_tokens=9, **GREEDY)
        return done.choices[0].text

    texts = ["a", "bc", "def", "ghij"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, texts))
    assert answers == [_alone(loaded, loaded.tokenizer.encode(t), 9) for t in texts]


def test_models_and_health_are_told(client, url):
    [model] = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny").id == "tiny"
    health = httpx.get(f"{url}/health").json()
    assert health == {"status": "ok", "running": 0, "waiting": 0, "slots": SLOTS}


# --- Refusals -------------------------------------------------------------------------


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
    with engine._turn:  # no turn is made, so all that comes stays
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
    service = _service(load_pretrained(path))
    with _running(service) as (url, _):
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
    with _running(service) as (url, _):

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
    with _running(_service(load_pretrained(path))) as (url, _):
        body = {"prompt": "x", "stream": False}
        whole = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        parts = httpx.post(
            f"{url}/v1/completions", json={**body, "stream": True}, timeout=60
        )
    assert whole.status_code == 500
    assert "are NaN" in whole.json()["error"]["message"]
    [event] = parts.text.strip().split("\n\n")
    assert "are NaN" in json.loads(event.removeprefix("data: "))["error"]["message"]


# --- Leaving, and stopping ------------------------------------------------------------


def _until(is_so) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_its_slot(url, service, stream):
    body = json.dumps({"prompt": "x", "max_tokens": 90, "stream": stream})
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    engine = service.engine
    host, port = url.removeprefix("http://").split(":")
    with engine._turn:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall((head + body).encode())
            _until(lambda: engine.num_waiting == 1)
        # Gone by now; no turn was made, so it is not done but let go.
        _until(lambda: engine.num_waiting == 0)


def test_stop_finishes_what_is_open_and_refuses_what_comes(loaded):
    service = _service(loaded)
    with _running(service) as (url, server), httpx.Client(timeout=60) as kept:
        kept.get(f"{url}/health")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asked = {"prompt": "In the end", "max_tokens": 40, **GREEDY}
        whole = client.completions.create(**asked).choices[0].text
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with service.engine._turn:
                asking = pool.submit(client.completions.create, **asked)
                _until(lambda: service.engine.num_waiting == 1)
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
    service = _service(loaded)
    with _running(service) as (url, _):
        answers = {}

        def ask(stream: bool) -> None:
            body = {"prompt": "x", "max_tokens": 90, "stream": stream}
            answers[stream] = httpx.post(f"{url}/v1/completions", json=body, timeout=60)

        asking = [threading.Thread(target=ask, args=(s,)) for s in (False, True)]
        with service.engine._turn:
            for thread in asking:
                thread.start()
            _until(lambda: service.engine.num_waiting == 2)
            stop = threading.Thread(target=service.engine.stop, kwargs={"timeout": 0})
            stop.start()
            for thread in asking:
                thread.join()
        stop.join()
    assert answers[False].status_code == 503
    assert "the server is stopping" in answers[True].text
    assert "[DONE]" not in answers[True].text


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name
)
def test_command_serves_until_a_signal(start, tiny, number):
    process = start("serve", "--model", tiny, "--port", 0, "--slots", 1)
    url = None
    while url is None:
        line = process.stderr.readline()
        assert line, "the server ended"
        if "serving tiny on " in line:
            url = line.partition(" on ")[2].partition(";")[0]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        steps = client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, stream=True
        )
        next(iter(steps))
        process.send_signal(number)
        assert list(steps)[-1].choices[0].finish_reason == "length"
    assert process.wait(timeout=120) == 0
    assert process.stderr.read() == "haiku-mqa: stopped\n"


# --- Words ----------------------------------------------------------------------------


def test_serve_without_its_libraries_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("serve", "--model", "shakespeare-mqa")
    assert done.code == 1
    assert done.error == (
        "serving needs the extra 'serve': pip install 'haiku-mqa[serve]'"
    )


def test_port_that_is_taken_is_a_failure_before_the_model_is_loaded(run):
    with serve._listening("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--model", "shakespeare-mqa", "--port", port)
    assert done.code == 1
    assert done.err == (f"haiku-mqa: error: 127.0.0.1:{port}: Address already in use\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "smolm2-135"], "did you mean 'smollm2-135m'?"),
        (["--port", "70000"], "from 0 to 65535, got '70000'"),
        (["--slots", "0"], "a whole number >= 1, got '0'"),
        (["--grce", "3"], "did you mean '--grace'?"),
    ],
)
def test_wrong_words_are_misuse(run, words, message):
    done = run("serve", "--port", 0, *words)
    assert done.code == 2
    assert message in done.error


def test_context_longer_than_the_models_is_misuse(run, tiny):
    done = run("serve", "--port", 0, "--model", tiny, "--context", 200)
    assert done.code == 2
    assert "--context must be at most 128" in done.error
