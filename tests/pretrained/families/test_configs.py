"""Every key of a ``config.json`` counts, or is refused by name; and back again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import haiku_mqa as hm
from haiku_mqa.pretrained import Family, family_named, family_names
from haiku_mqa.pretrained.families._family import param_shapes
from tests.models import EXAMPLES
from tests.pretrained.families.all_cases import CASES

LLAMA = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
every_case = pytest.mark.parametrize("case", list(CASES), ids=" ".join)
every_family = pytest.mark.parametrize("name", family_names())


def _read(**changes: Any) -> hm.DecoderConfig:
    return family_named("llama").config_of({**LLAMA, **changes})


# --- Back again -------------------------------------------------------------------

# Keys that can take any number in every family that has them.
_NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.integers(1, 2**20),
    "max_position_embeddings": st.integers(1, 2**20),
    "n_positions": st.integers(1, 2**20),
    "intermediate_size": st.integers(1, 2**16),
    "n_inner": st.integers(1, 2**16) | st.none(),
    "ffn_hidden_size": st.integers(1, 2**16) | st.none(),
    "rms_norm_eps": st.floats(1e-12, 1e-2),
    "layer_norm_epsilon": st.floats(1e-12, 1e-2),
    "rope_theta": st.floats(1.5, 1e9),
    "sliding_window": st.integers(1, 2**20) | st.none(),
    "max_window_layers": st.integers(0, 4),
    "attention_dropout": st.floats(0, 0.9),
    "resid_pdrop": st.floats(0, 0.9),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "bias": st.booleans(),
}
_OWN = {
    "llama": {"intermediate_size", "rms_norm_eps", "rope_theta", "attention_bias"}
    | {"attention_dropout", "max_position_embeddings", "mlp_bias"},
    "mistral": {"intermediate_size", "rms_norm_eps", "rope_theta", "sliding_window"},
    "qwen2": {"intermediate_size", "rope_theta", "sliding_window", "max_window_layers"},
    "gpt2": {"n_inner", "n_positions", "layer_norm_epsilon", "resid_pdrop"},
    "gpt_bigcode": {"n_inner", "n_positions", "layer_norm_epsilon", "resid_pdrop"},
    "falcon": {"ffn_hidden_size", "layer_norm_epsilon", "rope_theta", "bias"}
    | {"attention_dropout"},
    "qwen3": {"intermediate_size", "rms_norm_eps", "attention_bias"},
    "gemma": {"intermediate_size", "rms_norm_eps", "max_position_embeddings"},
    "gemma2": {"intermediate_size", "rms_norm_eps", "attention_dropout"},
    "gemma3_text": {"intermediate_size", "rms_norm_eps", "attention_dropout"},
    "olmo2": {"intermediate_size", "rms_norm_eps", "rope_theta", "attention_bias"},
    "smollm3": {"intermediate_size", "rms_norm_eps", "attention_bias", "mlp_bias"},
    "granite": {"intermediate_size", "rms_norm_eps", "attention_bias", "mlp_bias"},
    "cohere": {"intermediate_size", "attention_bias", "rope_theta"},
    "starcoder2": {"intermediate_size", "rope_theta", "max_position_embeddings"},
    "phi3": {"intermediate_size", "rms_norm_eps", "rope_theta"},
    "stablelm": {"intermediate_size", "rope_theta", "attention_dropout"},
    "glm4": {"intermediate_size", "rms_norm_eps", "attention_bias"},
    "gpt_neox": {"intermediate_size", "max_position_embeddings", "attention_bias"},
    "gptj": {"n_inner", "n_positions", "layer_norm_epsilon"},
}


@st.composite
def _keys_of(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Draws keys: those of a case, some with other values."""
    own = _OWN[name] | {"vocab_size", "tie_word_embeddings"}
    cases = [keys for (family, _, _), keys in CASES.items() if family == name]
    changes = st.fixed_dictionaries({}, optional={k: _NUMBERS[k] for k in own})
    return {**draw(st.sampled_from(cases)), **draw(changes)}


@every_family
@given(data=st.data())
def test_config_that_was_read_is_written_so_that_it_is_read_again(name, data):
    family = family_named(name)
    config = family.config_of(data.draw(_keys_of(name)))
    written = json.loads(json.dumps(family.keys_of(config)))
    assert family.config_of(written) == config
    assert written["model_type"] == name


@every_family
@pytest.mark.parametrize("example", EXAMPLES)
def test_config_is_written_whole_or_refused_by_field(name, example):
    family, config = family_named(name), EXAMPLES[example]
    keys = _written(family, config)
    if isinstance(keys, str):
        assert f"family {name!r} can hold: " in keys
        return
    again = family.config_of(json.loads(json.dumps(keys)))
    assert param_shapes(again) == param_shapes(config)


def _written(family: Family, config: hm.DecoderConfig) -> dict[str, Any] | str:
    """Returns the keys of a config, or why there are none."""
    try:
        return family.keys_of(config)
    except ValueError as error:
        return str(error)


def test_what_a_family_cannot_hold_is_named_by_its_field():
    config = EXAMPLES["windowed"]
    with pytest.raises(ValueError, match=r"'llama' can hold: .*qk_norm = True, not"):
        family_named("llama").keys_of(config)


# --- Tensors ----------------------------------------------------------------------


@every_case
def test_tensors_hold_every_parameter_once_and_give_it_back(case):
    family = family_named(case[0])
    config = family.config_of(CASES[case])
    shapes = param_shapes(config)
    held: list[str] = []
    for tensor, shape in family.tensors_of(config):
        foreign = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) + 1
        ours = [np.zeros(shapes[path], np.int64) for path in tensor.ours]
        back = np.zeros_like(foreign)
        for theirs, mine in tensor.pairs(config, foreign, ours):
            mine[...] = theirs
        for theirs, mine in tensor.pairs(config, back, ours):
            theirs[...] = mine
        np.testing.assert_array_equal(back, foreign)
        assert all(part.all() for part in ours)
        held += tensor.ours
    assert sorted(held) == sorted(shapes)


# --- What is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 8),
        ("quantization_config", {"quant_method": "gptq"}),
        ("attention_multiplier", 0.5),
        ("pretraining_tp", 2),
        ("is_encoder_decoder", True),
        ("hidden_act", "xielu"),
        ("add_cross_attention", 0),
    ],
)
def test_key_that_is_not_supported_is_named_with_its_value(key, value):
    with pytest.raises(ValueError, match=rf"{key} = .*not supported"):
        _read(**{key: value})


def test_all_keys_that_are_not_supported_are_named_together():
    with pytest.raises(ValueError, match="num_experts = 8, router = 'top' are not"):
        _read(num_experts=8, router="top")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("hidden_size", "32", "a whole number from 1 to"),
        ("hidden_size", 32.0, "a whole number from 1 to"),
        ("hidden_size", True, "a whole number from 1 to"),
        ("hidden_size", 2**40, "a whole number from 1 to"),
        ("num_hidden_layers", 0, "a whole number from 1 to 65536"),
        ("num_hidden_layers", 10**6, "a whole number from 1 to 65536"),
        ("rms_norm_eps", float("nan"), "a number > 0"),
        ("rms_norm_eps", "1e-5", "a number > 0"),
        ("rope_theta", 1, "a number > 1"),
        ("attention_dropout", 1.0, r"in \[0, 1\)"),
        ("attention_bias", 1, "true or false"),
        ("hidden_act", ["silu"], "one of 'gelu'"),
        ("rope_scaling", "linear", "a mapping or null"),
        ("rope_scaling", {"rope_type": "linear", "factor": []}, "a number > 0"),
    ],
)
def test_value_that_cannot_be_is_refused_with_what_is_allowed(key, value, allowed):
    with pytest.raises(hm.FormatError, match=f"{key}.* must be {allowed}"):
        _read(**{key: value})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads"])
def test_key_that_is_missing_is_named(key):
    with pytest.raises(hm.FormatError, match=f"{key} is missing"):
        _read(**{key: None})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, r"rope_scaling\.type = 'dynamic' is not"),
        ({"rope_type": "su"}, r"rope_scaling\.rope_type = 'su' is not"),
        ({"rope_type": "longrope"}, r"rope_scaling\.short_factor is missing"),
        ({"rope_type": "longrope", "short_factor": [0]}, "a list of numbers > 0"),
        ({"type": "linear", "factor": 2.0, "a": 1}, r"rope_scaling\.a = 1 is not"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": False}, "truncate = False"),
        ({"rope_type": "linear", "factor": 0.5}, r"factor must be a number >= 1"),
    ],
)
def test_scaling_that_is_not_supported_is_named(scaling, message):
    with pytest.raises(ValueError, match=message):
        _read(rope_scaling=scaling)


def test_rotary_positions_are_said_in_one_way_alone():
    scaling = {"rope_type": "default"}
    with pytest.raises(ValueError, match="one alone is allowed"):
        _read(rope_scaling=scaling, rope_parameters=scaling)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("qwen2", {"layer_types": ["full_attention"] * 2}, "a list of 1 texts"),
        ("qwen2", {"layer_types": ["chunked"]}, "unknown layer_types 'chunked'"),
        ("falcon", {"alibi": True}, "alibi = True is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx = True"),
        ("gpt_bigcode", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
    ],
)
def test_what_one_family_does_not_do_is_named(name, keys, message):
    own = next(keys for (family, _, _), keys in CASES.items() if family == name)
    with pytest.raises(ValueError, match=message):
        family_named(name).config_of({**own, "num_hidden_layers": 1, **keys})


@pytest.mark.parametrize("name", ["gemma9", "_family", "os", "../llama", ""])
def test_family_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match="not supported; allowed: cohere, falcon"):
        family_named(name)


@pytest.mark.parametrize("name", [None, 3, ["llama"]])
def test_family_must_be_a_text(name):
    with pytest.raises(hm.FormatError, match="model_type must be a text"):
        family_named(name)
