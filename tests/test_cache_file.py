"""A cache in a file is the cache, or is refused with the reason."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from haiku_mqa.cache_file import load_cache, read_cache_file, save_cache
from haiku_mqa.errors import FormatError
from haiku_mqa.model import Model
from tests.cache_forms import FORMS, config_of, filled
from tests.models import drawn_params, example, example_params


def _owner(form):
    return example(FORMS[form][0]), example_params(FORMS[form][0])


def _saved(folder, form="static"):
    path = folder / "past.safetensors"
    save_cache(path, filled(form), *_owner(form))
    return path


def _rewritten(path, change):
    """Writes the file anew, with its header or its arrays changed."""
    with safe_open(path, "numpy") as file:
        header = dict(file.metadata())
        names = file.keys()
        arrays = {name: file.get_tensor(name) for name in names}
    change(header, arrays)
    save_file(arrays, path, header)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_cache_comes_back_bit_for_bit(form, tmp_path):
    loaded = load_cache(_saved(tmp_path, form), *_owner(form))
    assert jax.tree.structure(loaded) == jax.tree.structure(filled(form))
    for got, wanted in zip(
        jax.tree.leaves(loaded), jax.tree.leaves(filled(form)), strict=True
    ):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_resized_cache_whose_windows_would_now_be_rings_comes_back(tmp_path):
    model, params = _owner("endless")
    cache = model.init_cache(1, 3, ring=True).resized(8)  # a window of 3
    save_cache(tmp_path / "past", cache, model, params)
    loaded = load_cache(tmp_path / "past", model, params)
    assert [layer.window for layer in loaded.layers] == [None, None]
    assert loaded.capacity == 8


def test_arrays_beside_a_cache_come_back(tmp_path):
    extra = {"tokens": np.arange(3)}
    save_cache(tmp_path / "past", filled("static"), *_owner("static"), extra)
    _, found = read_cache_file(tmp_path / "past", *_owner("static"))
    assert {name: a.tolist() for name, a in found.items()} == {"tokens": [0, 1, 2]}


def test_cache_of_another_model_is_refused_by_what_differs(tmp_path):
    path, (_, params) = _saved(tmp_path), _owner("static")
    other = Model(dataclasses.replace(config_of("static"), rope_theta=300.0))
    message = r"the cache of another model: rope_theta = 500.0, not 300.0$"
    with pytest.raises(ValueError, match=message):
        load_cache(path, other, params)


def test_cache_of_other_parameters_is_refused(tmp_path):
    model, _ = _owner("static")
    with pytest.raises(ValueError, match="is the cache of other parameters"):
        load_cache(_saved(tmp_path), model, drawn_params(model, seed=1))


def test_cache_of_another_model_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="cache is not of this model: layers/0/keys"):
        save_cache(tmp_path / "past", filled("static"), *_owner("ring"))
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_not_there_is_told_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load_cache(tmp_path / "none", *_owner("static"))


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_truncated_file_is_a_format_error(size, tmp_path):
    path = _saved(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError, match="is no safetensors file, or damaged"):
        load_cache(path, *_owner("static"))


def _set(place, name, value):
    def change(header, arrays):
        (header if place == "header" else arrays)[name] = value

    return change


def _form(**fields):
    def change(header, arrays):
        header["form"] = json.dumps({**json.loads(header["form"]), **fields})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("header", "format", "pt"), "is no cache: format must be"),
        (_set("header", "form", "[]"), "does not tell what cache it holds"),
        (_set("header", "form", "{"), "does not tell what cache it holds"),
        (_form(max_length="9"), "max_length must be a int, got '9'"),
        (_form(rings=[False]), "does not tell what cache it holds"),
        (_form(dtype="int9"), "unknown dtype 'int9'"),
        (_form(max_length=9), r"layers/0/keys is float32 \[2, 2, 16, 8\], not"),
        (_set("arrays", "lengths", np.int64([1, 2])), "lengths is int64"),
        (_set("arrays", "lengths", np.int32([1, -2])), "lengths has -2, below zero"),
        (_set("arrays", "more", np.zeros(1)), "more is none of its arrays"),
        (lambda header, arrays: arrays.pop("positions"), "positions is missing"),
    ],
)
def test_file_that_is_no_whole_cache_says_what_is_wrong(change, message, tmp_path):
    path = _rewritten(_saved(tmp_path), change)
    with pytest.raises(FormatError, match=message):
        load_cache(path, *_owner("static"))
