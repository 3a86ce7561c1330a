"""A model folder gives back what was written, or says all that is wrong with it."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haiku_mqa import model_folder
from haiku_mqa.errors import FormatError
from tests.folders import write_model_folder
from tests.models import EXAMPLES, example_params

CONFIG = EXAMPLES["multi_query"]
every_example = pytest.mark.parametrize("name", EXAMPLES)


def assert_equal(found, wanted):
    assert {m: set(leaves) for m, leaves in found.items()} == {
        m: set(leaves) for m, leaves in wanted.items()
    }

    def same(one, other):
        assert one.dtype == other.dtype
        assert bool((jnp.asarray(one) == other).all())

    jax.tree.map(same, found, {module: dict(wanted[module]) for module in found})


@every_example
def test_folder_gives_back_config_and_weights(name, tmp_path):
    folder = write_model_folder(
        tmp_path / "model", EXAMPLES[name], params=example_params(name)
    )
    assert model_folder.is_model_folder(folder)
    assert model_folder.read_config(folder) == EXAMPLES[name]
    read = model_folder.read_weights(folder, EXAMPLES[name])
    assert_equal(read, example_params(name))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_keep_the_dtype_that_they_were_written_in(dtype, tmp_path):
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype), example_params("multi_query")
    )
    folder = write_model_folder(tmp_path / "model", CONFIG, params=params)
    assert_equal(model_folder.read_weights(folder, CONFIG), params)


def test_metadata_of_weights_is_read_back(tmp_path):
    told = {"step": "250", "validation_loss": "1.5"}
    folder = write_model_folder(tmp_path / "model", CONFIG, metadata=told)
    assert model_folder.read_metadata(folder) == told
    assert model_folder.read_metadata(write_model_folder(tmp_path / "other")) == {}


def test_parameters_lie_under_their_own_paths(tmp_path):
    from safetensors import safe_open

    folder = write_model_folder(tmp_path / "model", CONFIG)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        names = file.keys()
        assert "decoder_lm/decoder/layer_0/attention/query/w" in names


# --- What is no model folder ----------------------------------------------------------


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", '{"model_type": "llama"}', '{"format": 1}']
)
def test_folder_of_something_else_is_none(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert not model_folder.is_model_folder(tmp_path)


def test_path_that_is_no_folder_is_none(tmp_path):
    assert not model_folder.is_model_folder(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert not model_folder.is_model_folder(tmp_path / "file")


# --- Damage ---------------------------------------------------------------------------


def fields_of(config):
    return {"format": model_folder.FORMAT, **config.to_dict()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "haiku_mqa decoder 9"}, "format must be 'haiku_mqa decoder 1'"),
        ({"num_haeds": 3}, "num_haeds"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide"),
        ({"d_model": "wide"}, "d_model"),
    ],
)
def test_config_that_is_wrong_is_told_with_its_file_and_field(
    change, message, tmp_path
):
    (tmp_path / "config.json").write_text(json.dumps(fields_of(CONFIG) | change))
    with pytest.raises(FormatError, match=message) as error:
        model_folder.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null"])
def test_config_that_is_damaged_is_a_format_error(data, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(FormatError, match="is no decoder's config"):
        model_folder.read_config(tmp_path)


def test_config_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        model_folder.read_config(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_weights_that_are_cut_are_a_format_error(keep, tmp_path):
    folder = write_model_folder(tmp_path / "model", CONFIG)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model\.safetensors is no .*, or damaged"):
        model_folder.read_weights(folder, CONFIG)
    with pytest.raises(FormatError, match=r"model\.safetensors is no .*, or damaged"):
        model_folder.read_metadata(folder)


def test_weights_that_are_not_there_are_told_of_as_a_run_that_is_young(tmp_path):
    folder = write_model_folder(tmp_path / "model", CONFIG)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there are no weights") as error:
        model_folder.read_weights(folder, CONFIG)
    assert error.value.filename == str(folder / "model.safetensors")


def test_all_that_is_wrong_with_weights_is_listed_at_once(tmp_path):
    params = {m: dict(leaves) for m, leaves in example_params("multi_query").items()}
    layer = "decoder_lm/decoder/layer_0"
    del params[f"{layer}/attention/query"]
    params[f"{layer}/attention/querry"] = {"w": np.zeros((2, 3), np.float32)}
    params["decoder_lm/embed"]["embeddings"] = np.zeros((29, 31), np.float32)
    w = params[f"{layer}/attention/key"]["w"]
    params[f"{layer}/attention/key"]["w"] = np.zeros(w.shape, np.int32)
    folder = write_model_folder(tmp_path / "model", CONFIG, params=params)
    with pytest.raises(FormatError) as error:
        model_folder.read_weights(folder, CONFIG)
    assert str(error.value) == (
        f"{folder / 'model.safetensors'} is not of its config: "
        f"{layer}/attention/query/w is missing; "
        f"{layer}/attention/querry/w is no parameter; "
        "decoder_lm/embed/embeddings is [29, 31], not [29, 32]; "
        f"{layer}/attention/key/w is of I32, not of floating point"
    )
