"""The program ``llm`` finds this package's models, and runs them as its own."""

from __future__ import annotations

import json
import subprocess
import sys

import llm
import pytest
from click.testing import CliRunner
from llm.cli import cli

from haiku_mqa import (
    DecoderConfig,
    Sampling,
    build,
    generate,
    load_pretrained,
    save_pretrained,
)
from haiku_mqa.hosts import llm_plugin
from tests.models import drawn_params
from tests.pretrained.hf_tokenizers import write_tokenizer
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf"))


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny):
    """The folder of llm's user, who has listed a model of their own."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / llm_plugin.FOLDERS).write_text(json.dumps({"tiny": tiny}))
    return tmp_path


def _run(*words):
    return CliRunner().invoke(cli, words)


def _said(tiny, messages, count, sampling=None):
    loaded = load_pretrained(tiny)
    ids = loaded.tokenizer.encode_chat(messages)
    result = generate(
        loaded.model,
        loaded.params,
        [ids],
        max_new_tokens=count,
        sampling=sampling or Sampling(temperature=0.0),
        end_tokens=loaded.tokenizer.end_tokens,
    )
    return loaded.tokenizer.decode(result.tokens[0]), len(ids)


def _message(role, content):
    return {"role": role, "content": content}


def test_every_model_of_the_zoo_and_of_the_user_is_listed(folder):
    listed = _run("models", "list").output
    for name in ("shakespeare-mqa", "smollm2-135m", "mqa-decoder", "tiny"):
        assert f"haiku-mqa/{name}\n" in listed


def test_the_host_starts_without_jax_and_in_spite_of_a_broken_list(folder):
    (folder / llm_plugin.FOLDERS).write_text("{not JSON")
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom llm.cli import cli\n"
        "print(CliRunner().invoke(cli, ['models', 'list']).output)\n"
        "sys.exit('jax' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0
    assert "haiku-mqa/shakespeare-mqa" in ran.stdout
    assert f"{llm_plugin.FOLDERS} is left out" in ran.stdout + ran.stderr


@pytest.mark.parametrize("content", ["[]", '{"name": 3}', '{"name": null}'])
def test_a_list_of_another_form_is_left_out_with_a_word(folder, content, capsys):
    (folder / llm_plugin.FOLDERS).write_text(content)
    assert "shakespeare-mqa" in llm_plugin.sources()
    assert 'it must be {"NAME": "FOLDER", …}' in capsys.readouterr().err


def test_an_answer_is_what_the_library_generates_and_is_logged_with_its_cost(
    folder, tiny
):
    ran = _run("-m", "haiku-mqa/tiny", "Hello", "-s", "Rhyme.", "-o", "max_tokens", "9")
    assert ran.exit_code == 0, ran.output
    messages = [_message("system", "Rhyme."), _message("user", "Hello")]
    text, read = _said(tiny, messages, 9)
    assert ran.output == f"{text}\n"
    (logged,) = json.loads(_run("logs", "--json").output)
    assert logged["response"] == text
    assert (logged["input_tokens"], logged["output_tokens"]) == (read, 9)


def test_a_hugging_face_folder_of_the_user_s_answers_too(folder, tmp_path):
    config = DecoderConfig(
        vocab_size=264, num_layers=1, num_heads=2, d_model=16, d_ff=16, max_length=64
    )
    mine = tmp_path / "mine"
    save_pretrained(mine, config, drawn_params(build(config)), family="llama")
    write_tokenizer(mine)
    (folder / llm_plugin.FOLDERS).write_text(json.dumps({"mine": str(mine)}))
    ran = _run("-m", "haiku-mqa/mine", "the", "-o", "max_tokens", "5")
    text, _ = _said(mine, [_message("user", "the")], 5)
    assert (ran.exit_code, ran.output) == (0, f"{text}\n")


def test_a_stream_and_a_whole_answer_are_the_same_and_options_reach_it(folder, tiny):
    options = ("-o", "max_tokens", "12", "-o", "temperature", "0.7", "-o", "seed", "0")
    streamed = _run("-m", "haiku-mqa/tiny", "Hello", *options).output
    whole = _run("-m", "haiku-mqa/tiny", "Hello", "--no-stream", *options).output
    assert streamed == whole
    assert streamed != _run("-m", "haiku-mqa/tiny", "Hello", *options[:2]).output


def test_a_conversation_reads_no_part_of_itself_twice(folder, tiny):
    talk = llm.get_model("haiku-mqa/tiny").conversation()
    first = talk.prompt("Hello", max_tokens=5)
    answer = first.text()
    second = talk.prompt("And you?", max_tokens=5)
    asked = [
        _message("user", "Hello"),
        _message("assistant", answer),
        _message("user", "And you?"),
    ]
    text, read = _said(tiny, asked, 5)
    assert second.text() == text
    assert second.input_tokens == read
    assert first.token_details == {"reused": 0}
    assert second.token_details["reused"] >= first.input_tokens


def test_one_talk_after_another_does_not_hear_it(folder, tiny):
    model = llm.get_model("haiku-mqa/tiny")
    model.prompt("Something else", max_tokens=5).text()
    text, _ = _said(tiny, [_message("user", "Hello")], 5)
    assert model.prompt("Hello", max_tokens=5).text() == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "haiku-mqa/mqa-decoder"), "has no pretrained weights"),
        (("-m", "haiku-mqa/gone"), "No such file"),
        (("-m", "haiku-mqa/shakespeare-mqa", "-s", "Rhyme."), "no chat template"),
        (("-m", "haiku-mqa/tiny", "-o", "top_p", "2"), "less than or equal to 1"),
        (("-m", "haiku-mqa/tiny", "-o", "max_tokens", "0"), "greater than or equal"),
        (("-m", "haiku-mqa/tiny", "-o", "dtype", "int3"), "float32"),
    ],
)
def test_what_cannot_be_is_refused_with_a_word(folder, tiny, words, message):
    listed = {"tiny": tiny, "gone": str(folder / "gone.gguf")}
    (folder / llm_plugin.FOLDERS).write_text(json.dumps(listed))
    ran = _run(*words, "Hello")
    assert ran.exit_code == 1
    assert message in ran.output
