"""Adapters go to peft and come from it, and both say the same with them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from haiku_mqa import AdaptedModel, DecoderConfig, FormatError, LoRA, build
from haiku_mqa.pretrained import from_pretrained, load_adapters, save_adapters
from haiku_mqa.pretrained.peft import CONFIG as KEYS
from haiku_mqa.pretrained.peft import WEIGHTS

SAME = 1e-4
CONFIG = DecoderConfig(
    vocab_size=31, num_layers=2, num_heads=4, num_kv_heads=2, d_model=16, d_ff=24
)
ADAPTED = AdaptedModel(CONFIG, LoRA(rank=3, alpha=6.0, targets=("query", "down")))
TOKENS = np.asarray([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(scope="module")
def params():
    drawn = ADAPTED.init(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1, drawn)


@pytest.fixture
def folder(tmp_path, params):
    save_adapters(tmp_path, ADAPTED, params, family="llama")
    return tmp_path


def _load(folder, params, family="llama"):
    return load_adapters(folder, build(CONFIG), params, family=family)


def test_adapters_come_back_as_they_were(folder, params):
    adapted, again = _load(folder, params)
    assert adapted == ADAPTED
    assert set(again) == set(params)
    jax.tree.map(np.testing.assert_array_equal, dict(params), dict(again))


def test_names_are_those_of_the_family(folder):
    names = set(load_file(folder / WEIGHTS))
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight" in names
    keys = json.loads((folder / KEYS).read_text())
    assert keys["target_modules"] == ["down_proj", "q_proj"]


def test_a_family_that_fuses_matrices_is_refused_by_name(tmp_path, params):
    with pytest.raises(ValueError, match=r"'gpt2' holds .*/attention/query in tensor"):
        save_adapters(tmp_path, ADAPTED, params, family="gpt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"use_dora": True}, "use_dora must be False, got True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern must be {}"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save must be None"),
        ({"r": 0}, "r must be a whole number from 1"),
        ({"r": 4}, r"is \[3, 16\] and not \[4, 16\]"),
        ({"lora_alpha": "big"}, "lora_alpha must be a number > 0, got 'big'"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a number > 0"),
    ],
)
def test_a_config_of_another_kind_is_refused_by_key(folder, params, change, message):
    keys = json.loads((folder / KEYS).read_text()) | change
    (folder / KEYS).write_text(json.dumps(keys))
    with pytest.raises(ValueError, match=message):
        _load(folder, params)


def test_missing_unknown_and_broken_tensors_are_listed_together(folder, params):
    tensors = load_file(folder / WEIGHTS)
    lost = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    del tensors[lost]
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((3, 16), np.float32)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(FormatError) as error:
        _load(folder, params)
    assert f"{lost} is missing" in str(error.value)
    assert "lm_head.lora_A.weight' is unknown" in str(error.value)


def test_numbers_that_are_not_finite_and_damaged_files_are_refused(folder, params):
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(FormatError, match="holds NaN or infinity"):
        _load(folder, params)
    (folder / WEIGHTS).write_bytes(b"short")
    with pytest.raises(FormatError, match="damaged"):
        _load(folder, params)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny model of transformers, and the folder that it was saved to."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
        )
    ).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


def _peft_logits(model):
    import torch

    with torch.no_grad():
        return model(torch.as_tensor(TOKENS)).logits.numpy()


@pytest.mark.parity
def test_adapters_of_peft_give_the_same_logits_here(theirs, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    model, folder = theirs
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "gate_proj"]
        ),
    ).eval()
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    wrapped.save_pretrained(tmp_path)
    wanted = _peft_logits(wrapped)
    wrapped.unload()
    adapted, params = load_adapters(tmp_path, *from_pretrained(folder), family="llama")
    assert adapted.lora == LoRA(rank=4, alpha=12.0, targets=("query", "value", "gate"))
    logits = adapted.apply(params, None, jnp.asarray(TOKENS)).logits
    np.testing.assert_allclose(logits, wanted, atol=SAME)
    assert np.abs(wanted - _peft_logits(model)).max() > 0.01


@pytest.mark.parity
def test_adapters_of_this_package_give_the_same_logits_in_peft(theirs, tmp_path):
    from peft import PeftModel

    model, folder = theirs
    plain, own = from_pretrained(folder)
    adapted = AdaptedModel(plain.config, LoRA(rank=2, targets=("key", "linear", "up")))
    params = adapted.add_adapters(own, jax.random.key(0))
    params = {
        path: jax.tree.map(lambda x: x + 0.1, leaves)
        if path.endswith("lora")
        else leaves
        for path, leaves in params.items()
    }
    save_adapters(tmp_path, adapted, params, family="llama")
    wrapped = PeftModel.from_pretrained(model, str(tmp_path)).eval()
    wanted = _peft_logits(wrapped)
    wrapped.unload()
    logits = adapted.apply(params, None, jnp.asarray(TOKENS)).logits
    np.testing.assert_allclose(logits, wanted, atol=SAME)
