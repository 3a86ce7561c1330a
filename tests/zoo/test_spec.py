import dataclasses
import re
import subprocess
import sys
import types

import pytest

from haiku_mqa.config import DecoderConfig
from haiku_mqa.zoo.spec import API_VERSION, ModelMetadata, ModelSpec, check_spec


def _spec(**changes) -> ModelSpec:
    fields = {
        "api_version": API_VERSION,
        "name": "tiny",
        "version": "1.0",
        "config": DecoderConfig(
            vocab_size=16, num_layers=1, num_heads=2, d_model=8, d_ff=16
        ),
        "metadata": ModelMetadata(description="A tiny decoder."),
        "init": print,
        "apply": print,
        "init_cache": print,
    }
    return ModelSpec(**{**fields, **changes})


def _duck(**changes) -> types.SimpleNamespace:
    """A spec that owes nothing to our classes."""
    metadata = types.SimpleNamespace(
        description="", license="", citation="", source="", sha256=None, capabilities=()
    )
    fields = {
        "api_version": 1,
        "name": "tiny",
        "version": "1.0",
        "config": {"vocab_size": 16},
        "metadata": metadata,
        "init": print,
        "apply": print,
        "init_cache": print,
        "load_params": None,
        "load_tokenizer": None,
    }
    return types.SimpleNamespace(**{**fields, **changes})


def test_spec_is_frozen_and_keyword_only():
    spec = _spec()
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"
    with pytest.raises(TypeError):
        ModelSpec(1, "tiny")


def test_spec_without_weights_loads_no_params_and_no_tokenizer():
    assert (_spec().load_params, _spec().load_tokenizer) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Tiny"}, "name must be of [a-z0-9._-], got 'Tiny'"),
        ({"name": ""}, "name must be of [a-z0-9._-], got ''"),
        ({"name": None}, "name must be of [a-z0-9._-], got None"),
        ({"version": ""}, "version must be a string, not empty, got ''"),
        ({"version": 1.0}, "version must be a string, not empty, got 1.0"),
        ({"api_version": 0}, "api_version must be a whole number >= 1, got 0"),
        ({"api_version": True}, "api_version must be a whole number >= 1, got True"),
        ({"api_version": "1"}, "api_version must be a whole number >= 1, got '1'"),
        ({"init": None}, "init must be callable, got NoneType"),
        ({"load_params": "a path"}, "load_params must be callable or None, got str"),
        ({"load_tokenizer": 3}, "load_tokenizer must be callable or None, got int"),
    ],
)
def test_spec_refuses_a_wrong_field_by_name_and_value(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _spec(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"license": None}, "metadata.license must be a string, got None"),
        ({"sha256": "AB" * 32}, "metadata.sha256 must be None or 64 lower-case"),
        ({"sha256": 5}, "metadata.sha256 must be None or 64 lower-case"),
        ({"capabilities": "logits"}, "must be a tuple of strings, got 'logits'"),
        ({"capabilities": (1,)}, "must be a tuple of strings, got (1,)"),
    ],
)
def test_metadata_refuses_a_wrong_field_by_name_and_value(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelMetadata(**{"description": "A tiny decoder.", **changes})


def test_spec_refuses_to_call_itself_pretrained_without_weights():
    metadata = ModelMetadata(description="", capabilities=("logits", "pretrained"))
    with pytest.raises(ValueError, match="'pretrained', so load_params must not be"):
        _spec(metadata=metadata)
    assert _spec(metadata=metadata, load_params=print).load_params is print


def test_check_spec_returns_a_duck_typed_spec_itself():
    spec = _duck()
    assert check_spec(spec, "tiny") is spec


def test_check_spec_lists_all_missing_attributes_together():
    spec = _duck()
    del spec.apply, spec.config, spec.load_tokenizer
    with pytest.raises(
        ValueError,
        match=re.escape(
            "model 'tiny' (a SimpleNamespace) lacks: apply, config, load_tokenizer"
        ),
    ):
        check_spec(spec, "tiny")


def test_check_spec_lists_missing_metadata_together():
    spec = _duck(metadata=types.SimpleNamespace(description="", capabilities=()))
    with pytest.raises(ValueError, match="lacks: citation, license, sha256, source"):
        check_spec(spec, "tiny")


def test_check_spec_says_what_a_factory_returned_that_is_no_spec():
    with pytest.raises(ValueError, match=re.escape("(a NoneType) lacks: api_version")):
        check_spec(None, "tiny")


def test_check_spec_refuses_a_future_api_version_by_naming_both():
    with pytest.raises(
        ValueError, match=f"api_version 7, this haiku_mqa knows {API_VERSION}: upgrade"
    ):
        check_spec(_duck(api_version=7), "tiny")


def test_check_spec_blames_the_future_api_version_before_missing_attributes():
    future = types.SimpleNamespace(api_version=API_VERSION + 1)
    with pytest.raises(ValueError, match="upgrade haiku_mqa"):
        check_spec(future, "tiny")


def test_check_spec_refuses_another_name_than_is_registered():
    with pytest.raises(ValueError, match="name must be 'small', as the model is"):
        check_spec(_duck(), "small")


def test_spec_module_imports_neither_jax_nor_haiku():
    code = "import sys, haiku_mqa.zoo.spec; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"jax", "haiku", "numpy"} & set(modules)
