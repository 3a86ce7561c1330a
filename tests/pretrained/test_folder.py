"""Folders of Hugging Face's kind: read with care, written whole."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

import haiku_mqa as hm
from haiku_mqa import pretrained
from tests.models import drawn_params

CONFIG = hm.DecoderConfig(
    vocab_size=29, num_layers=2, num_heads=4, num_kv_heads=2, d_model=32, d_ff=40
)
UNTIED = hm.DecoderConfig.from_dict({**CONFIG.to_dict(), "tie_embeddings": False})
LAYER = "model.layers.0"


@pytest.fixture(scope="module")
def params():
    return drawn_params(hm.build(CONFIG))


@pytest.fixture
def folder(tmp_path, params) -> Path:
    hm.save_pretrained(tmp_path / "model", CONFIG, params, family="llama")
    return tmp_path / "model"


def _change_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Writes tensors anew: others in place of some, ``None`` in place of none."""
    path = folder / "model.safetensors"
    tensors = {
        **load_file(path),
        **{n.replace("__", "."): t for n, t in changes.items()},
    }
    save_file({n: t for n, t in tensors.items() if t is not None}, path)


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def _check_equal(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, dict(ours), dict(theirs))


# --- There and back ---------------------------------------------------------------


def test_what_was_written_is_read_again(folder, params):
    model, again = hm.from_pretrained(folder)
    assert model.config == CONFIG
    _check_equal(again, params)
    assert pretrained.is_pretrained_folder(folder)
    assert pretrained.config_from_folder(folder) == CONFIG


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back_byte_for_byte(tmp_path, dtype):
    data = {**CONFIG.to_dict(), "dtype": dtype, "param_dtype": dtype}
    config = hm.DecoderConfig.from_dict(data)
    params = drawn_params(hm.build(config))
    hm.save_pretrained(tmp_path / "model", config, params, family="llama")
    model, again = hm.from_pretrained(tmp_path / "model", dtype=dtype)
    assert model.config == config
    _check_equal(again, params)
    assert json.loads((tmp_path / "model/config.json").read_bytes())["torch_dtype"] == (
        dtype
    )


def test_first_layers_are_those_of_the_whole(folder, params):
    model, first = hm.from_pretrained(folder, num_layers=1)
    assert model.config.num_layers == 1
    _check_equal(first, {m: p for m, p in params.items() if "layer_1" not in m})


@pytest.mark.parametrize("count", [0, 3, 1.5])
def test_there_must_be_as_many_layers_as_are_asked_for(folder, count):
    with pytest.raises(
        ValueError, match="num_layers must be a whole number from 1 to 2"
    ):
        hm.from_pretrained(folder, num_layers=count)


def test_weights_are_cut_into_files_that_an_index_names(tmp_path, params):
    folder = tmp_path / "model"
    hm.save_pretrained(folder, CONFIG, params, family="llama", max_shard_size=10_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    for file in files:
        inside = load_file(folder / file)
        assert {index["weight_map"][name] for name in inside} == {file}
        size = sum(tensor.nbytes for tensor in inside.values())
        assert size <= 10_000 or len(inside) == 1
    assert index["metadata"]["total_size"] == 4 * sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    _check_equal(hm.from_pretrained(folder)[1], params)


def test_reading_takes_little_more_memory_than_what_is_read(tmp_path):
    sizes = {"vocab_size": 997, "num_layers": 4, "num_heads": 4, "d_model": 256}
    config = hm.DecoderConfig(**sizes, d_ff=700)
    folder = tmp_path / "model"
    params = drawn_params(hm.build(config))
    hm.save_pretrained(folder, config, params, family="llama")
    hm.from_pretrained(folder, keep=lambda *_: None)  # what is made once
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    tracemalloc.start()
    try:
        hm.from_pretrained(folder, keep=lambda *kept: kept[-1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result <= peak <= 1.3 * result


def test_files_of_the_model_without_its_head_are_read_too(folder, params):
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    _check_equal(hm.from_pretrained(folder)[1], params)


def test_buffers_and_a_second_copy_of_a_tied_matrix_are_passed_over(folder, params):
    embedding = np.asarray(params["decoder_lm/embed"]["embeddings"])
    inverse = np.ones(4, np.float32)
    changes = {f"{LAYER}.self_attn.rotary_emb.inv_freq": inverse}
    _change_tensors(folder, lm_head__weight=embedding, **changes)
    _check_equal(hm.from_pretrained(folder)[1], params)


# --- Tensors that are not the config's --------------------------------------------


def test_all_that_is_wrong_with_tensors_is_listed_together(folder):
    changes = {
        "model.norm.weight": None,
        "model.extra.weight": np.ones(3, np.float32),
        f"{LAYER}.mlp.up_proj.weight": np.ones((32, 40), np.float32),
        f"{LAYER}.input_layernorm.weight": np.ones(32, np.int32),
    }
    _change_tensors(folder, **changes)
    with pytest.raises(hm.FormatError) as raised:
        hm.from_pretrained(folder)
    for fault in (
        "missing tensors: model.norm.weight",
        "unknown tensors: 'model.extra.weight'",
        f"wrong shape: {LAYER}.mlp.up_proj.weight [32, 40] instead of [40, 32]",
        f"not of floating point: {LAYER}.input_layernorm.weight I32",
        "some lie the other way round: were they transposed?",
    ):
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    ("tied", "change", "hint"),
    [
        (True, np.ones((29, 32), np.float32), "lm_head.weight is not the embedding"),
        (False, None, "tie_word_embeddings is false: is it true?"),
    ],
)
def test_output_matrix_that_does_not_fit_the_config_has_a_hint(
    folder, tied, change, hint
):
    _change_config(folder, tie_word_embeddings=tied)
    _change_tensors(folder, lm_head__weight=change)
    with pytest.raises(hm.FormatError, match=hint):
        hm.from_pretrained(folder)


def test_tensors_of_another_family_have_a_hint(folder):
    save_file(
        {"wte": np.ones(3, np.float32)}
        | {f"h.{i}": np.ones(3, np.float32) for i in range(3)},
        folder / "model.safetensors",
    )
    with pytest.raises(hm.FormatError, match="of another family than 'llama'"):
        hm.from_pretrained(folder)


def test_tensors_that_one_other_family_has_are_said_to_be_its(folder):
    norm = np.ones(32, np.float32)
    _change_tensors(folder, **{f"{LAYER}.pre_feedforward_layernorm.weight": norm})
    with pytest.raises(
        hm.FormatError, match="of the family 'gemma2' or 'gemma3_text' and not 'llama'"
    ):
        hm.from_pretrained(folder)


def test_tensors_that_their_makers_named_have_a_hint_of_their_rotary_pairs(folder):
    save_file(
        {"layers.0.attention.wq.weight": np.ones((32, 32), np.float32)},
        folder / "model.safetensors",
    )
    _change_config(folder, num_hidden_layers=1)
    with pytest.raises(hm.FormatError, match="whose rotary pairs are neighbours"):
        hm.from_pretrained(folder)


def test_vocabulary_of_another_size_has_a_hint(folder):
    _change_config(folder, vocab_size=30)
    with pytest.raises(hm.FormatError, match=r"vocab_size is 30, .* is \[29, 32\]"):
        hm.from_pretrained(folder)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30])
def test_numbers_that_cannot_be_held_are_refused_by_tensor(folder, number):
    _change_tensors(folder, model__norm__weight=np.full(32, number, np.float32))
    with pytest.raises(hm.FormatError, match=r"tensor model\.norm\.weight holds"):
        hm.from_pretrained(folder, dtype="float16")


# --- Files that are damaged, or a stranger's --------------------------------------


def test_more_layers_than_tensors_are_refused_before_they_are_counted(folder):
    _change_config(folder, num_hidden_layers=65_536)
    with pytest.raises(hm.FormatError, match="65536 layers, but there are only 20"):
        hm.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5000, -1])
def test_file_that_was_cut_off_is_refused_by_name(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(hm.FormatError, match=r"model\.safetensors is no safetensors"):
        hm.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 10_000, '"llama"'])
def test_config_that_is_no_mapping_is_refused_by_name(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(hm.FormatError, match=r"config\.json (is no JSON|must hold)"):
        hm.from_pretrained(folder)
    assert not pretrained.is_pretrained_folder(folder)


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "config.json", 3, ""],
)
def test_index_that_leaves_its_folder_is_refused(folder, file):
    index = {"weight_map": {"model.norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(hm.FormatError, match="of its own folder, got"):
        hm.from_pretrained(folder)


@pytest.mark.parametrize("places", [None, [], {}, "model.safetensors"])
def test_index_must_map_tensors_to_files(folder, places):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(hm.FormatError, match="weight_map must map"):
        hm.from_pretrained(folder)


def test_index_that_promises_what_is_not_there_is_refused(folder):
    index = {"weight_map": {"model.lost.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(hm.FormatError, match=r"'model\.lost\.weight' in model\.safe"):
        hm.from_pretrained(folder)


def test_file_that_an_index_names_must_be_there(folder):
    index = {"weight_map": {"model.norm.weight": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        hm.from_pretrained(folder)


# --- Writing ----------------------------------------------------------------------


def test_tokenizer_and_its_ids_are_written(tmp_path, params):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    ids = {"bos_token": 1, "end_tokens": (2, 3)}
    for name, given in ("one", tokenizer), ("other", tmp_path / "one/tokenizer.json"):
        folder = tmp_path / name
        hm.save_pretrained(
            folder, CONFIG, params, family="llama", tokenizer=given, **ids
        )
        assert (folder / "tokenizer.json").read_text() == tokenizer.to_str()
        about = json.loads((folder / "generation_config.json").read_bytes())
        assert (about["bos_token_id"], about["eos_token_id"]) == (1, [2, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": 3}, "or the path of a tokenizer.json, got int"),
        ({"end_tokens": (29,)}, "end_tokens must be a whole number from 0 to 28"),
        ({"max_shard_size": 0}, "max_shard_size must be a whole number >= 1"),
        ({"family": "gpt2"}, "config is not one that family 'gpt2' can hold"),
        ({"family": "gpt5"}, "model_type = 'gpt5' is not supported"),
    ],
)
def test_nothing_is_left_of_what_cannot_be_written(tmp_path, params, options, message):
    with pytest.raises(ValueError, match=message):
        hm.save_pretrained(
            tmp_path / "model", CONFIG, params, **{"family": "llama", **options}
        )
    assert not list(tmp_path.iterdir())


def test_ids_are_those_of_the_tokenizer_where_none_are_given(tmp_path, params):
    tokenizer = hm.text.BytePairTokenizer([])
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    params = drawn_params(hm.build(config))
    hm.save_pretrained(
        tmp_path / "a", config, params, family="llama", tokenizer=tokenizer
    )
    about = json.loads((tmp_path / "a/generation_config.json").read_bytes())
    assert about["eos_token_id"] == [256]


def test_arguments_that_stand_in_another_s_place_are_named(tmp_path, params):
    with pytest.raises(ValueError, match="folder must be a path, got DecoderConfig"):
        hm.save_pretrained(CONFIG, params, tmp_path, family="llama")
    with pytest.raises(ValueError, match="config must be a DecoderConfig, got dict"):
        hm.save_pretrained(tmp_path / "model", params, CONFIG, family="llama")


def test_folder_that_is_not_empty_is_left_as_it_is(folder, params):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="must not be there, or be an empty"):
        hm.save_pretrained(folder, CONFIG, params, family="llama")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_parameters_that_are_not_the_configs_are_refused(tmp_path, params):
    with pytest.raises(ValueError, match="missing decoder_lm/unembed/w"):
        hm.save_pretrained(tmp_path / "model", UNTIED, params, family="llama")


def test_quantized_parameters_are_refused(tmp_path, params):
    quantized = hm.quantize_params(hm.build(CONFIG), params)
    with pytest.raises(ValueError, match="quantized ones cannot be written"):
        hm.save_pretrained(tmp_path / "model", CONFIG, quantized, family="llama")
