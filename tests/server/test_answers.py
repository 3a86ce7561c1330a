"""The server, asked by OpenAI's own client: what it says is what the library says."""

from __future__ import annotations

import concurrent.futures
import threading

import httpx
import jax
import jax.numpy as jnp
import pytest

from haiku_mqa import Sampling
from tests.server.serving import GREEDY, MESSAGES, SLOTS, text_alone


def test_completion_is_what_the_library_generates(client, loaded):
    done = client.completions.create(prompt="In the end", max_tokens=12, **GREEDY)
    ids = loaded.tokenizer.encode("In the end")
    [choice] = done.choices
    assert choice.text == text_alone(loaded, ids, 12)
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
    assert choice.message.content == text_alone(loaded, ids, 8)
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
    assert done.choices[0].text == text_alone(loaded, ids, 8, sampling, 3)


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
    assert done.choices[0].text == text_alone(loaded, ids, 8, sampling, 3)


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
    assert (last.choices, last.usage.total_tokens) == ([], whole.usage.total_tokens)
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
    decode = engine._turns._decode

    def one_at_a_time(*arguments, **options):
        assert turns.acquire(timeout=60)
        return decode(*arguments, **options)

    monkeypatch.setattr(engine._turns, "_decode", one_at_a_time)
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
    assert texts[:2] == [text_alone(loaded, ids, 6, sampling, s) for s in (5, 6)]
    assert texts[2] == text_alone(loaded, loaded.tokenizer.encode("z"), 6, sampling, 5)
    assert done.usage.completion_tokens == 24


def test_prompt_may_be_token_ids(client, loaded):
    ids = loaded.tokenizer.encode("In the end")
    for prompt in (ids, [ids]):
        done = client.completions.create(prompt=prompt, max_tokens=5, **GREEDY)
        assert done.choices[0].text == text_alone(loaded, ids, 5)


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
    assert answers == [text_alone(loaded, loaded.tokenizer.encode(t), 9) for t in texts]


def test_models_and_health_are_told(client, url):
    [model] = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny").id == "tiny"
    health = httpx.get(f"{url}/health").json()
    assert health == {"status": "ok", "running": 0, "waiting": 0, "slots": SLOTS}


# --- How likely it was ----------------------------------------------------------------


def _likely(loaded, ids) -> jax.Array:
    """Returns the model's log-probabilities after each token, ``[T, V]``."""
    logits = loaded.model.apply(loaded.params, None, jnp.array([ids])).logits[0]
    return jax.nn.log_softmax(logits)


def test_completion_tells_how_likely_its_tokens_were(client, loaded):
    prompt = loaded.tokenizer.encode("In the end")
    asked = {"prompt": prompt, "max_tokens": 9, "temperature": 2.0, "seed": 1}
    [choice] = client.completions.create(model="tiny", logprobs=3, **asked).choices
    told = choice.logprobs
    assert "".join(told.tokens).startswith(choice.text[:2])
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 9
    ids = [_id(loaded, text) for text in told.tokens]
    likely = _likely(loaded, [*prompt, *ids])[len(prompt) - 1 : -1]
    own = likely[jnp.arange(9), jnp.array(ids)]
    assert told.token_logprobs == pytest.approx(own.tolist(), abs=1e-4)
    for place, each in enumerate(told.top_logprobs):
        best = jax.lax.top_k(likely[place], 3)[0].tolist()
        assert 3 <= len(each) <= 4  # the token itself may not be among them
        assert sorted(each.values(), reverse=True)[:3] == pytest.approx(best, abs=1e-4)
        assert each[told.tokens[place]] == told.token_logprobs[place]
    plain = client.completions.create(model="tiny", **asked).choices[0]
    alone = client.completions.create(model="tiny", logprobs=0, **asked).choices[0]
    assert plain.logprobs is alone.logprobs.top_logprobs is None
    assert plain.text == alone.text == choice.text
    assert alone.logprobs.token_logprobs == told.token_logprobs


def _id(loaded, text: str) -> int:
    if text.startswith("token_id:"):
        return int(text.removeprefix("token_id:"))
    [token] = loaded.tokenizer.encode(text, control_tokens=True)
    return token


def test_chat_tells_how_likely_its_tokens_were(client, loaded):
    asked = {"messages": MESSAGES, "max_tokens": 8, **GREEDY}
    done = client.chat.completions.create(logprobs=True, top_logprobs=2, **asked)
    [choice] = done.choices
    told = choice.logprobs.content
    prompt = loaded.tokenizer.encode_chat(MESSAGES)
    ids = [_id(loaded, each.token) for each in told]
    likely = _likely(loaded, [*prompt, *ids])[len(prompt) - 1 : -1]
    assert [each.logprob for each in told] == pytest.approx(
        likely.max(axis=-1).tolist(), abs=1e-4
    )
    for each, best in zip(told, jax.lax.top_k(likely, 2)[1].tolist(), strict=True):
        assert [_id(loaded, other.token) for other in each.top_logprobs] == best
        assert each.bytes == (
            None if each.token.startswith("token_id:") else list(each.token.encode())
        )
    bare = client.chat.completions.create(logprobs=True, **asked).choices[0]
    assert [each.top_logprobs for each in bare.logprobs.content] == [[]] * 8
    assert client.chat.completions.create(**asked).choices[0].logprobs is None


@pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
@pytest.mark.parametrize("is_stopped", [False, True], ids=["whole", "stopped"])
def test_stream_tells_of_each_token_once_as_its_text_comes(client, chat, is_stopped):
    asked = {"model": "tiny", "max_tokens": 30, "temperature": 2, "seed": 4}
    if chat:
        create, asked["messages"] = client.chat.completions.create, MESSAGES
        asked["logprobs"] = True
    else:
        create, asked["prompt"] = client.completions.create, "In the end"
        asked["logprobs"] = 0

    def text(choice) -> str:
        if not chat:
            return choice.text
        said = choice.delta if hasattr(choice, "delta") else choice.message
        return said.content or ""

    def told(choice) -> list[tuple[str, float]]:
        if choice.logprobs is None:
            return []
        if chat:
            return [(each.token, each.logprob) for each in choice.logprobs.content]
        logprobs = choice.logprobs
        return list(zip(logprobs.tokens, logprobs.token_logprobs, strict=True))

    # From here on the prompt is known, and read alike by both: in other pieces its
    # sums are rounded otherwise.
    said = text(create(**asked).choices[0])
    if is_stopped:
        asked["stop"] = said[9:12]
    whole = create(**asked).choices[0]
    steps = [step.choices[0] for step in create(stream=True, **asked)]
    assert "".join(map(text, steps)) == text(whole)
    assert [each for step in steps for each in told(step)] == told(whole)
    assert len(told(whole)) < 30 if is_stopped else len(told(whole)) == 30
    assert all(text(step) for step in steps[:-1] if told(step))


def test_usage_tells_what_was_known_from_another_request(client):
    asked = {"prompt": "a prompt that nobody else has", "max_tokens": 2, **GREEDY}
    first, again = (client.completions.create(**asked).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < 5
    assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1
