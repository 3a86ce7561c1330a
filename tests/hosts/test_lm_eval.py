"""lm-evaluation-harness finds the same with this package as with transformers."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

pytestmark = pytest.mark.parity

QUESTIONS = [
    {"q": "To be, or not", "a": " to be", "w": " the crown of France"},
    {"q": "My kingdom for", "a": " a horse", "w": " two"},
    {"q": "Good night, good", "a": " night", "w": " king, and all my lords"},
    {"q": "O", "a": " Romeo", "w": " me"},
    {"q": "What light through yonder", "a": " window breaks?", "w": " day"},
]
_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
TASKS = {
    "chooses": """\
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["{{a}}", "{{w}}"]
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "reads": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}{{a}}{{w}}{{q}}{{w}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "goes_on": """\
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of transformers with a tokenizer of its own."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    texts = [" ".join(question.values()) for question in QUESTIONS]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=300, special_tokens=["<end>"])
    PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<end>", eos_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=bpe.get_vocab_size(),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            max_position_embeddings=24,  # shorter than what is read
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.json"
    data.write_text(json.dumps(QUESTIONS))
    for name, text in TASKS.items():
        head = _TASK.format(name=name, data=data)
        (folder / f"{name}.yaml").write_text(head + text)
    return folder


def _measured(kind, arguments, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from haiku_mqa.hosts import lm_eval_model  # noqa: F401

    return simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=list(TASKS),
        batch_size=3,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


@pytest.fixture(scope="module")
def both(folder, tasks):
    """What the harness finds with this package, and with its own model."""
    ours = _measured("haiku-mqa", {"pretrained": str(folder)}, tasks)
    theirs = _measured("hf", {"pretrained": str(folder), "dtype": "float32"}, tasks)
    return ours, theirs


def test_answers_and_bits_per_byte_are_those_of_the_harness_s_own_model(both):
    ours, theirs = (measured["results"] for measured in both)
    for name in ("acc,none", "acc_norm,none"):
        assert ours["chooses"][name] == theirs["chooses"][name]
    for name in ("bits_per_byte,none", "word_perplexity,none"):
        assert ours["reads"][name] == pytest.approx(theirs["reads"][name], rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_each_answer_is_that_of_the_harness_s_own_model(both, task):
    ours, theirs = (
        {sample["doc_id"]: sample["resps"] for sample in measured["samples"][task]}
        for measured in both
    )
    assert ours.keys() == theirs.keys() == set(range(len(QUESTIONS)))
    for place, answers in theirs.items():
        assert _plain(ours[place]) == pytest.approx(_plain(answers), abs=1e-3)


def _plain(answers):
    """Every number and text in an answer, in order."""
    if isinstance(answers, list | tuple):
        return [part for answer in answers for part in _plain(answer)]
    try:
        return [float(answers)]  # some are written as text, and some are truths
    except ValueError:
        return [hash(answers)]


def test_the_command_prints_the_harness_s_table(folder, tasks, capsys):
    from haiku_mqa.cli import main

    words = [
        "lm-eval",
        "--model",
        str(folder),
        "--tasks",
        "chooses",
        "--batch-size",
        "2",
    ]
    assert main([*words, "--", "--include_path", str(tasks)]) == 0
    assert "|chooses|" in capsys.readouterr().out


def test_the_harness_finds_the_model_where_it_looks():
    (entry,) = metadata.entry_points(group="lm_eval.models", name="haiku-mqa")
    assert entry.load().__name__ == "HaikuLM"


def test_the_harness_knows_the_model_by_both_spellings():
    from lm_eval.api.registry import get_model

    from haiku_mqa.hosts.lm_eval_model import HaikuLM

    assert get_model("haiku-mqa") is get_model("haiku_mqa") is HaikuLM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"max_length": 25}, "max_length must be at most the model's context of 24"),
        ({"max_length": "long"}, "max_length must be a whole number"),
    ],
)
def test_what_no_model_can_do_is_refused(folder, arguments, message):
    from haiku_mqa.hosts.lm_eval_model import HaikuLM

    with pytest.raises(ValueError, match=message):
        HaikuLM(str(folder), **arguments)


def test_a_choice_that_is_not_known_is_refused_by_name(folder):
    from haiku_mqa.hosts.lm_eval_model import HaikuLM

    model = HaikuLM(str(folder))
    with pytest.raises(ValueError, match="num_beams=3; what is known here: until"):
        model._manner({"num_beams": 3})
