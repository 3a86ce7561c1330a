"""What the families near Llama read of a config, and what they cannot say of one."""

from __future__ import annotations

import dataclasses

import pytest

from haiku_mqa import DecoderConfig, LinearScaling
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained import family_named

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
NEAR = ["gemma", "gemma2", "gemma3_text", "granite", "olmo2", "qwen3", "smollm3"]


def _config(family: str, **keys) -> DecoderConfig:
    return family_named(family).config_of({**SIZES, **keys})


@pytest.mark.parametrize("family", NEAR)
def test_keys_that_are_not_known_are_refused_by_name(family):
    with pytest.raises(ValueError, match="num_experts = 8 is not supported"):
        _config(family, num_experts=8)


@pytest.mark.parametrize("family", NEAR)
def test_keys_of_a_config_mean_that_config(family):
    config = _config(family)
    again = family_named(family).config_of(family_named(family).keys_of(config))
    assert again.rotaries == config.rotaries
    assert again.windows == config.windows
    assert dataclasses.replace(again, rope_theta=1.0, sliding_window=None) == (
        dataclasses.replace(config, rope_theta=1.0, sliding_window=None)
    )


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("gemma", {"hidden_act": "relu", "hidden_activation": "gelu_new"}),
        ("gemma", {"use_bidirectional_attention": True}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"factor": 2.0}}}),
        (
            "smollm3",
            {
                "use_sliding_window": False,
                "sliding_window": 4,
                "layer_types": ["full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(family, keys):
    with pytest.raises(ValueError, match="is not supported") as error:
        _config(family, **keys)
    assert any(name in str(error.value) for name in keys)


@pytest.mark.parametrize("bits", [[1], [1, 2], [1, True], "10"])
def test_layers_without_positions_are_told_by_as_many_bits(bits):
    with pytest.raises(FormatError, match="no_rope_layers must be a list of 2 zeros"):
        _config("smollm3", no_rope_layers=bits)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "rope_theta", (500.0, None)),
        ("llama", "rope_scaling", (LinearScaling(factor=2.0), None)),
        ("llama", "residual_scale", 0.5),
        ("gemma", "embedding_scale", 2.0),
        ("gemma2", "attn_scale", 0.3),
        ("qwen3", "qk_norm_span", "all_heads"),
        ("olmo2", "qk_norm_span", "head"),
        ("smollm3", "rope_theta", (500.0, 300.0)),
        ("olmo2", "logit_scale", 2.0),
    ],
)
def test_a_family_names_the_field_that_it_cannot_say(family, field, value):
    config = dataclasses.replace(_config(family), **{field: value})
    with pytest.raises(ValueError, match=f"can hold: .*{field} = "):
        family_named(family).keys_of(config)


def test_positions_of_gemma3_are_the_same_in_the_keys_of_old_and_of_late():
    late = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    }
    old = {
        "rope_theta": 700.0,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    pattern = {"sliding_window_pattern": 2}
    config = _config("gemma3_text", rope_parameters=late, **pattern)
    assert config == _config("gemma3_text", **old, **pattern)
    assert config.rotaries == ((30.0, None), (700.0, LinearScaling(factor=8.0)))
    assert config.windows == (4096, None)


@pytest.mark.parametrize("divisor", [3.0, 7.0, 8, 13.0, 16.0])
def test_divisor_of_logits_means_the_same_after_it_was_written(divisor):
    family, config = family_named("granite"), _config("granite", logits_scaling=divisor)
    assert config.logit_scale == 1 / divisor
    assert family.config_of(family.keys_of(config)).logit_scale == config.logit_scale
