from __future__ import annotations

import dataclasses
import json
import pickle
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.config import (
    Activation,
    BlockLayout,
    DecoderConfig,
    DType,
    Norm,
    NormPlacement,
    PositionEmbedding,
    QKNormSpan,
)
from haiku_mqa.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
)
from tests.models import EXAMPLES

SIZES = {"vocab_size": 9, "num_layers": 2, "num_heads": 8, "d_model": 64, "d_ff": 32}


def _config(**options) -> DecoderConfig:
    return DecoderConfig(**{**SIZES, **options})


def test_config_defaults_to_one_key_value_head_of_an_equal_share_of_the_width():
    config = _config()
    assert (config.num_kv_heads, config.key_size, config.value_size) == (1, 8, 8)
    assert (config.queries_per_kv_head, config.rotary_size) == (8, 8)


def test_config_value_size_follows_key_size():
    assert _config(key_size=10).value_size == 10
    assert _config(key_size=10, value_size=3).key_size == 10


def test_config_takes_keywords_only_and_cannot_be_changed():
    with pytest.raises(TypeError, match="positional"):
        DecoderConfig(9, 2, 8, 64, 32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        _config().d_model = 3


def test_configs_of_equal_fields_are_equal_and_hash_alike():
    first, second = _config(), _config(num_kv_heads=1, key_size=8)
    assert first == second
    assert hash(first) == hash(second)
    assert first != _config(num_kv_heads=2)


@pytest.mark.parametrize("name", EXAMPLES)
def test_config_survives_json_and_pickle(name):
    config = EXAMPLES[name]
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_config_replaced_in_one_field_checks_all_again():
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads = 8"):
        dataclasses.replace(_config(), num_kv_heads=3)


def test_config_windows_has_one_entry_for_each_layer():
    assert _config().windows == (None, None)
    assert _config(sliding_window=5).windows == (5, 5)
    assert _config(sliding_window=(5, None)).windows == (5, None)


def test_config_takes_a_list_of_windows_as_a_tuple():
    assert _config(sliding_window=[5, None]) == _config(sliding_window=(5, None))


@given(st.integers(1, 64), st.integers(1, 64))
def test_config_takes_kv_heads_that_divide_the_heads_and_refuses_all_others(
    heads, kv_heads
):
    sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "key_size": 2}
    if heads % kv_heads == 0:
        assert _config(**sizes).queries_per_kv_head * kv_heads == heads
    else:
        with pytest.raises(ValueError, match=f"num_heads = {heads}, got {kv_heads}; "):
            _config(**sizes)


@given(st.integers(1, 40), st.floats(0.01, 1.0))
def test_config_takes_rotary_sizes_that_are_even_and_refuses_all_others(
    key_size, fraction
):
    rotated = round(key_size * fraction)
    if rotated >= 2 and rotated % 2 == 0:
        assert _config(key_size=key_size, rope_fraction=fraction).rotary_size == rotated
    else:
        with pytest.raises(ValueError, match=f"even number .* got {rotated}"):
            _config(key_size=key_size, rope_fraction=fraction)


@pytest.mark.parametrize("kind", ["none", "learned", "alibi"])
def test_config_takes_odd_head_sizes_where_nothing_is_rotated(kind):
    assert _config(key_size=3, position_embedding=kind).key_size == 3


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None])
@pytest.mark.parametrize("field", [*SIZES, "num_kv_heads", "max_length"])
def test_config_refuses_a_size_that_is_no_whole_number_above_zero(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number >= 1, got"):
        _config(**{field: value})


@pytest.mark.parametrize("value", [0, -1, 2.0, True])
@pytest.mark.parametrize("field", ["key_size", "value_size", "sliding_window"])
def test_config_refuses_an_optional_size_that_is_no_whole_number(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number >= 1, got"):
        _config(**{field: value})


def test_config_asks_for_a_key_size_where_heads_do_not_divide_the_width():
    with pytest.raises(ValueError, match="key_size must be given where num_heads = 7"):
        _config(num_heads=7)


NUMBERS = ["rope_theta", "rope_fraction", "norm_eps", "residual_scale", "logit_scale"]
OPTIONAL = ["attn_logit_softcap", "attn_scale", "embedding_scale"]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("field", [*NUMBERS, *OPTIONAL, "final_logit_softcap"])
def test_config_refuses_a_number_that_is_not_above_zero(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a number > 0, got"):
        _config(**{field: value})


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "0.1", None, True])
@pytest.mark.parametrize("part", ["embedding", "attention", "residual"])
def test_config_refuses_a_dropout_that_is_no_share(part, value):
    with pytest.raises(ValueError, match=rf"{part}_dropout must be in \[0, 1\), got"):
        _config(**{f"{part}_dropout": value})


FLAGS = [
    field.name
    for field in dataclasses.fields(DecoderConfig)
    if isinstance(field.default, bool)
]


@pytest.mark.parametrize("value", [0, 1, "yes", None])
@pytest.mark.parametrize("field", FLAGS)
def test_config_refuses_a_flag_that_is_neither_true_nor_false(field, value):
    with pytest.raises(ValueError, match=f"{field} must be True or False, got"):
        _config(**{field: value})


CHOICES = {
    "position_embedding": (PositionEmbedding, "rotery", "rotary"),
    "qk_norm_span": (QKNormSpan, "heads", "head"),
    "norm": (Norm, "rmsnorm", "rms"),
    "norm_placement": (NormPlacement, "befor", "before"),
    "block_layout": (BlockLayout, "parralel", "parallel"),
    "activation": (Activation, "gelu_tan", "gelu_tanh"),
    "param_dtype": (DType, "float23", "float32"),
    "dtype": (DType, "bfloat61", "bfloat16"),
}


@pytest.mark.parametrize("field", CHOICES)
def test_config_refuses_an_unknown_choice_and_names_the_nearest(field):
    choices, slip, meant = CHOICES[field]
    with pytest.raises(ValueError, match=f"unknown {field} {slip!r}.*{meant!r}") as e:
        _config(**{field: slip})
    assert all(choice in str(e.value) for choice in typing.get_args(choices))


@pytest.mark.parametrize("windows", [(), (1,), (1, 2, 3)])
def test_config_refuses_windows_for_another_number_of_layers(windows):
    with pytest.raises(ValueError, match=f"num_layers = 2 .* got {len(windows)}"):
        _config(sliding_window=windows)


@pytest.mark.parametrize("field", ["rope_theta", "rope_scaling"])
def test_config_refuses_rotary_positions_for_another_number_of_layers(field):
    with pytest.raises(ValueError, match=f"{field} must have .* = 2 layers, got 3"):
        _config(**{field: (None, None, None)})


def test_config_refuses_a_layer_whose_rotary_base_is_not_above_zero():
    with pytest.raises(ValueError, match="rope_theta must be a number > 0, got 0"):
        _config(rope_theta=(500.0, 0))
    with pytest.raises(ValueError, match="rope_theta must be a number > 0, got None"):
        _config(rope_theta=None)
    with pytest.raises(ValueError, match="rope_scaling must be a LinearScaling"):
        _config(rope_scaling=(None, 2.0))


def test_config_rotaries_has_one_entry_for_each_layer():
    scaling = LinearScaling(factor=2.0)
    assert _config(rope_theta=5.0).rotaries == ((5.0, None),) * 2
    mixed = _config(rope_theta=(5.0, None), rope_scaling=(scaling, None))
    assert mixed.rotaries == ((5.0, scaling), None)
    assert _config(position_embedding="alibi").rotaries == (None, None)


def test_config_of_the_first_layers_keeps_what_each_had():
    config = _config(sliding_window=(5, None), rope_theta=(9.0, None))
    first = config.first_layers(1)
    assert (first.num_layers, first.windows) == (1, (5,))
    assert first.rotaries == ((9.0, None),)
    assert _config().first_layers(1) == _config(num_layers=1)


def test_config_layer_kinds_tell_windows_and_rotary_positions_apart():
    kinds = _config(num_layers=3, rope_theta=(9.0, None, 9.0)).layer_kinds
    assert kinds[0] == kinds[2] != kinds[1]
    assert len(set(_config(sliding_window=(5, None)).layer_kinds)) == 2


def test_config_refuses_a_rope_fraction_above_one():
    with pytest.raises(ValueError, match=r"rope_fraction must be in \(0, 1\], got 1.5"):
        _config(rope_fraction=1.5)


def test_config_refuses_factors_that_are_not_one_for_each_pair():
    scaling = LongRopeScaling(factor=2.0, **LONG)
    with pytest.raises(ValueError, match=r"short_factors must be \d+, one for each"):
        _config(rope_scaling=scaling)


def test_config_refuses_a_rope_scaling_that_is_none_of_ours():
    with pytest.raises(ValueError, match="rope_scaling must be a LinearScaling"):
        _config(rope_scaling={"factor": 2.0})


@pytest.mark.parametrize("layout", ["parallel", "parallel_one_norm"])
def test_config_refuses_norms_on_the_sum_of_parallel_parts(layout):
    with pytest.raises(ValueError, match=f"'sequential', got {layout!r}"):
        _config(block_layout=layout, norm_placement="residual")


LONG = {"short_factors": (1.0,), "long_factors": [2.0], "original_max_length": 64}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_length": 64}


@pytest.mark.parametrize("factor", [0.5, 0, -1, float("inf"), float("nan"), "2", None])
@pytest.mark.parametrize(
    ("scaling", "rest"),
    [
        (LinearScaling, {}),
        (Llama3Scaling, LLAMA3),
        (YarnScaling, {"original_max_length": 64}),
        (LongRopeScaling, LONG),
    ],
)
def test_scaling_refuses_a_factor_below_one(scaling, rest, factor):
    with pytest.raises(ValueError, match=r"rope_scaling\.factor must be a number >= 1"):
        scaling(factor=factor, **rest)


@pytest.mark.parametrize(
    ("scaling", "field", "options"),
    [
        (Llama3Scaling, "low_freq_factor", {**LLAMA3, "low_freq_factor": 4.0}),
        (Llama3Scaling, "low_freq_factor", {**LLAMA3, "low_freq_factor": 0.0}),
        (Llama3Scaling, "original_max_length", {**LLAMA3, "original_max_length": 0}),
        (LongRopeScaling, "original_max_length", {**LONG, "original_max_length": 1}),
        (LongRopeScaling, "long_factors", {**LONG, "long_factors": (0.0,)}),
        (LongRopeScaling, "attention_factor", {**LONG, "attention_factor": 0.0}),
        (YarnScaling, "original_max_length", {"original_max_length": 2.0}),
        (YarnScaling, "beta_slow", {"original_max_length": 64, "beta_slow": 32.0}),
        (YarnScaling, "beta_slow", {"original_max_length": 64, "beta_fast": 0.5}),
        (
            YarnScaling,
            "attention_factor",
            {"original_max_length": 64, "attention_factor": 0.0},
        ),
    ],
)
def test_scaling_refuses_a_field_out_of_range(scaling, field, options):
    with pytest.raises(ValueError, match=rf"rope_scaling\.{field} must be"):
        scaling(factor=2.0, **options)


def test_from_dict_names_the_nearest_field_to_an_unknown_one():
    with pytest.raises(ValueError, match=r"field 'n_heads': did you mean 'num_heads'"):
        DecoderConfig.from_dict({**SIZES, "n_heads": 8})


def test_from_dict_names_what_is_missing():
    with pytest.raises(ValueError, match="fields are missing: d_model, d_ff"):
        DecoderConfig.from_dict({"vocab_size": 9, "num_layers": 2, "num_heads": 8})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "yarm"}, r"rope_scaling.kind 'yarm': did you mean 'yarn'"),
        ({}, r"rope_scaling.kind 'None'"),
        ({"kind": "linear", "facter": 2.0}, "'facter': did you mean 'factor'"),
        ({"kind": "linear"}, "rope_scaling .*factor"),
    ],
)
def test_from_dict_refuses_a_scaling_that_it_cannot_read(scaling, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig.from_dict({**SIZES, "rope_scaling": scaling})
