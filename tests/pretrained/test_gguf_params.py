"""The decoder in a GGUF file, told in this library's words."""

from pathlib import Path

import gguf
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa.config import DecoderConfig
from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained.gguf import GGUFFile, GGUFTensor, read_gguf
from haiku_mqa.pretrained.gguf_params import (
    config_from_gguf,
    params_from_gguf,
    unpermute_rotary,
)
from haiku_mqa.pretrained.loading import read_pretrained
from haiku_mqa.rope_scaling import LinearScaling, YarnScaling

TIED = ["token_embd.weight"]
UNTIED = ["token_embd.weight", "output.weight"]
METADATA = {
    "general.architecture": "llama",
    "llama.vocab_size": 11,
    "llama.block_count": 2,
    "llama.context_length": 32,
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
}
SIZES = {
    "token_embd": (11, 16),
    "output_norm": (16,),
    "blk.{}.attn_norm": (16,),
    "blk.{}.ffn_norm": (16,),
    "blk.{}.attn_q": (16, 16),
    "blk.{}.attn_k": (8, 16),
    "blk.{}.attn_v": (8, 16),
    "blk.{}.attn_output": (16, 16),
    "blk.{}.ffn_gate": (24, 16),
    "blk.{}.ffn_up": (24, 16),
    "blk.{}.ffn_down": (16, 24),
}


def with_metadata(**changes):
    """Returns the metadata with llama's keys (``__`` for ``.``) set, or gone."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    merged = METADATA | {f"llama.{key}": value for key, value in named.items()}
    return {key: value for key, value in merged.items() if value is not None}


def config_of(metadata, names, **options):
    """Returns the config of a file with such metadata, and tensors so named."""
    one = np.ones(1, np.float32).view(np.uint8)
    tensors = {name: GGUFTensor(name, (1,), "F32", one) for name in names}
    return config_from_gguf(GGUFFile(Path("a.gguf"), metadata, tensors), **options)


def random_tensors(*, untied=False, seed=0):
    random = np.random.default_rng(seed)
    sizes = SIZES | ({"output": (11, 16)} if untied else {})
    return {
        f"{name.format(i)}.weight": random.normal(size=shape).astype(np.float32)
        for i in range(2)
        for name, shape in sizes.items()
    }


@pytest.fixture
def read_back(tmp_path):
    """Returns a function that writes tensors to a file, and reads the file."""

    def read_back(tensors):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        for key, value in METADATA.items():
            if isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return read_gguf(tmp_path / "model.gguf")

    return read_back


@pytest.fixture(scope="module")
def smollm2(smollm2_file):
    return read_pretrained(smollm2_file)


# --- The config -------------------------------------------------------------------


def test_the_config_of_smollm2_is_as_published(smollm2):
    assert smollm2.config == DecoderConfig(
        vocab_size=49_152,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        d_model=576,
        d_ff=1536,
        max_length=8192,
        rope_theta=100_000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
    )


def test_a_config_is_what_the_keys_say():
    metadata = with_metadata(
        attention__key_length=8,
        attention__value_length=6,
        rope__dimension_count=4,
        rope__freq_base=500.0,
    )
    config = config_of(metadata, UNTIED, dtype="bfloat16")
    assert config == DecoderConfig(
        vocab_size=11,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_model=16,
        d_ff=24,
        key_size=8,
        value_size=6,
        max_length=32,
        rope_theta=500.0,
        rope_fraction=0.5,
        tie_embeddings=False,
        param_dtype="bfloat16",
        dtype="bfloat16",
    )


def test_keys_that_may_be_left_out_have_the_formats_defaults():
    config = config_of(with_metadata(attention__head_count_kv=None), TIED)
    assert (config.num_kv_heads, config.key_size, config.value_size) == (4, 4, 4)
    assert (config.rope_theta, config.rope_fraction) == (10_000.0, 1.0)


@pytest.mark.parametrize(("tensors", "tied"), [(TIED, True), (UNTIED, False)])
def test_embeddings_are_tied_where_there_is_no_output_tensor(tensors, tied):
    assert config_of(METADATA, tensors).tie_embeddings is tied


def test_the_vocabulary_is_counted_where_its_size_is_not_told():
    metadata = with_metadata(vocab_size=None) | {"tokenizer.ggml.tokens": ["a"] * 7}
    assert config_of(metadata, TIED).vocab_size == 7


def test_a_vocabulary_of_another_size_than_told_is_refused():
    metadata = METADATA | {"tokenizer.ggml.tokens": ["a"] * 7}
    with pytest.raises(FormatError, match=r"vocab_size is 11, but .* has 7"):
        config_of(metadata, TIED)


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({"rope__scaling__type": "none"}, None),
        ({"rope__scaling__factor": 2.0}, LinearScaling(factor=2.0)),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            LinearScaling(factor=4.0),
        ),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 8,
            },
            YarnScaling(factor=4.0, original_max_length=8),
        ),
    ],
)
def test_rotary_scaling_is_read(changes, scaling):
    assert config_of(with_metadata(**changes), TIED).rope_scaling == scaling


@pytest.mark.parametrize(
    ("divisors", "message"),
    [
        ([1.0], r"must be \[2\], got \[1\]"),
        ([1.0, 0.5], "must be of numbers >= 1"),
        ([1.0, np.nan], "must be of numbers >= 1"),
        ([5.0, 3.0], "is not supported: its numbers are not those of Llama 3's"),
    ],
)
def test_frequencies_divided_by_another_rule_are_refused(read_back, divisors, message):
    divided = {"rope_freqs.weight": np.float32(divisors)}
    file = read_back(random_tensors() | divided)
    with pytest.raises(ValueError, match=f"tensor rope_freqs.weight {message}"):
        config_from_gguf(file)


@pytest.mark.parametrize("architecture", ["mamba", None, 7, ["llama"]])
def test_another_architecture_is_refused(architecture):
    metadata = METADATA | {"general.architecture": architecture}
    with pytest.raises(
        ValueError, match=r"general\.architecture must be one of falcon, gemma, llama"
    ):
        config_of(metadata, TIED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8),
        ("expert_count", np.array([0, 8])),
        ("attention__causal", False),
        ("attention__sliding_window", 4096),
        ("attention__scale", 0.5),
        ("embedding_scale", 12.0),
        ("logit_scale", 0.5),
        ("rope__scaling__attn_factor", 1.5),
        ("rope__scaling__type", "longrope"),
        ("what_nobody_has_heard_of", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match="llama." + key.replace("__", r"\.")):
        config_of(with_metadata(**{key: value}), TIED)


def test_experts_that_are_none_are_let_pass():
    config_of(with_metadata(expert_count=0, expert_used_count=0), TIED)


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention__head_count",
        "attention__layer_norm_rms_epsilon",
        "vocab_size",
    ],
)
def test_a_missing_key_is_named(key):
    with pytest.raises(FormatError, match=f"{key.replace('__', '.')} is missing"):
        config_of(with_metadata(**{key: None}), TIED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 2**31),
        ("block_count", "2"),
        ("block_count", True),
        ("attention__head_count", np.array([4, 4])),
        ("attention__head_count", 2**32 - 1),
        ("attention__head_count_kv", 2**32 - 1),
        ("attention__layer_norm_rms_epsilon", float("nan")),
        ("rope__freq_base", float("inf")),
        ("rope__freq_base", -1.0),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name_at_once(key, value):
    with pytest.raises(FormatError, match=rf"llama\.{key.replace('__', '.')} must be"):
        config_of(with_metadata(**{key: value}), TIED)


def test_more_layers_than_tensors_are_refused_before_they_are_looped_over(read_back):
    config = config_of(with_metadata(block_count=2**16), TIED)
    with pytest.raises(FormatError, match="block_count is 65536, but"):
        params_from_gguf(read_back(random_tensors()), config)


# --- The parameters ---------------------------------------------------------------


@pytest.mark.parametrize("untied", [False, True])
def test_parameters_fit_the_model_of_the_config(read_back, untied):
    from haiku_mqa.model import build

    file = read_back(random_tensors(untied=untied))
    config = config_from_gguf(file)
    params = params_from_gguf(file, config)
    tokens = jnp.zeros((1, 3), jnp.int32)
    made = jax.eval_shape(build(config).init, jax.random.key(0), tokens)
    assert jax.tree.map(_signature, params) == jax.tree.map(_signature, made)


def _signature(array):
    return array.shape, array.dtype


def test_matrices_are_transposed_and_tables_are_not(read_back):
    tensors = random_tensors(untied=True)
    file = read_back(tensors)
    params = params_from_gguf(file, config_from_gguf(file))
    for name, path, leaf, transposed in (
        ("token_embd", "embed", "embeddings", False),
        ("output_norm", "decoder/final_norm", "scale", False),
        ("output", "unembed", "w", True),
        ("blk.1.attn_norm", "decoder/layer_1/attention_norm", "scale", False),
        ("blk.1.ffn_norm", "decoder/layer_1/feed_forward_norm", "scale", False),
        ("blk.1.attn_v", "decoder/layer_1/attention/value", "w", True),
        ("blk.1.attn_output", "decoder/layer_1/attention/linear", "w", True),
        ("blk.1.ffn_gate", "decoder/layer_1/feed_forward/gate", "w", True),
        ("blk.1.ffn_up", "decoder/layer_1/feed_forward/up", "w", True),
        ("blk.1.ffn_down", "decoder/layer_1/feed_forward/down", "w", True),
    ):
        weight = tensors[f"{name}.weight"]
        expected = weight.T if transposed else weight
        np.testing.assert_array_equal(params[f"decoder_lm/{path}"][leaf], expected)


def test_queries_and_keys_are_those_that_a_converter_would_permute(read_back):
    tensors = random_tensors()
    file = read_back(tensors)
    params = params_from_gguf(file, config_from_gguf(file))
    for name, heads, path in (("attn_q", 4, "query"), ("attn_k", 2, "key")):
        split_half = np.asarray(
            params[f"decoder_lm/decoder/layer_0/attention/{path}"]["w"]
        )
        # What is done on the way into a GGUF file: [2, H / 2] becomes [H / 2, 2].
        permuted = split_half.T.reshape(heads, 2, 2, 16).swapaxes(1, 2).reshape(-1, 16)
        np.testing.assert_array_equal(permuted, tensors[f"blk.0.{name}.weight"])


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_unpermuted_rows_give_the_same_attention(data):
    heads, half, rest = (
        data.draw(st.integers(least, 3), name)
        for name, least in (("heads", 1), ("half", 1), ("rest", 0))
    )
    size, rotary_size = 2 * half + rest, 2 * half
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    query, key = random.normal(size=(2, heads * size, 5))
    x, y = random.normal(size=(2, 5))
    positions = random.integers(0, 1000, size=2)

    def scores(turn, query, key):
        q = turn((query @ x).reshape(heads, size), positions[0])
        k = turn((key @ y).reshape(heads, size), positions[1])
        return (q * k).sum(-1)

    def angles(position):
        return position * 10.0 ** -np.arange(half)

    def interleaved(vectors, position):
        pairs = vectors[:, 0:rotary_size:2] + 1j * vectors[:, 1:rotary_size:2]
        pairs = pairs * np.exp(1j * angles(position))
        return np.concatenate([pairs.real, pairs.imag, vectors[:, rotary_size:]], 1)

    def split_half(vectors, position):
        pairs = vectors[:, :half] + 1j * vectors[:, half:rotary_size]
        pairs = pairs * np.exp(1j * angles(position))
        return np.concatenate([pairs.real, pairs.imag, vectors[:, rotary_size:]], 1)

    ours = [unpermute_rotary(w, heads, rotary_size) for w in (query, key)]
    np.testing.assert_allclose(
        scores(split_half, *ours), scores(interleaved, query, key), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parameters_are_of_the_dtype_asked_for(read_back, dtype):
    file = read_back(random_tensors())
    config = config_from_gguf(file, dtype=dtype)
    params = params_from_gguf(file, config)
    assert {array.dtype for array in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_all_faults_are_listed_in_one_line(read_back):
    tensors = random_tensors()
    del tensors["blk.0.ffn_up.weight"]
    tensors["rope_sizes.weight"] = np.ones(2, np.float32)
    tensors["blk.1.attn_k.weight"] = tensors["blk.1.attn_k.weight"].T.copy()
    file = read_back(tensors)
    with pytest.raises(FormatError) as error:
        params_from_gguf(file, config_from_gguf(file))
    assert str(error.value) == (
        f"{file.path}: missing tensors: blk.0.ffn_up.weight; unknown tensors: "
        "'rope_sizes.weight'; tensors of the wrong shape: blk.1.attn_k.weight "
        "[16, 8] instead of [8, 16]"
    )


def test_many_faults_are_counted(read_back):
    extra = {f"blk.{i}.extra.weight": np.ones(1, np.float32) for i in range(20)}
    file = read_back(random_tensors() | extra)
    with pytest.raises(FormatError, match=r"'blk\.7\.extra\.weight' and 12 more$"):
        params_from_gguf(file, config_from_gguf(file))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "output_norm.weight"])
def test_a_number_that_is_not_finite_is_refused_by_name(read_back, name, bad):
    tensors = random_tensors()
    tensors[name].flat[3] = bad
    file = read_back(tensors)
    with pytest.raises(FormatError, match=f"tensor {name} holds NaN or infinity"):
        params_from_gguf(file, config_from_gguf(file))


def test_a_number_too_large_for_the_dtype_is_refused_by_name(read_back):
    tensors = random_tensors()
    tensors["blk.0.attn_q.weight"][0, 0] = 1e6
    file = read_back(tensors)
    config = config_from_gguf(file, dtype="float16")
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight .* for float16"):
        params_from_gguf(file, config)


# --- The real file ----------------------------------------------------------------


def test_smollm2_knows_the_capital_of_france(smollm2):
    from haiku_mqa.model import build

    text = "The capital of France is"
    tokens = jnp.array([smollm2.tokenizer.encode(text)])
    logits = build(smollm2.config).apply(smollm2.params, None, tokens).logits
    assert smollm2.tokenizer.decode([logits[0, -1].argmax()]) == " Paris"
    assert hk.data_structures.tree_size(smollm2.params) == 134_515_008


def test_the_metadata_of_smollm2_is_plain_and_short(smollm2):
    assert smollm2.metadata["general.license"] == "apache-2.0"
    assert smollm2.metadata["general.languages"] == ["en"]
    assert "tokenizer.ggml.tokens" not in smollm2.metadata


@pytest.mark.parity
def test_parameters_are_those_that_transformers_reads(smollm2_file, smollm2):
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype="float32"
    ).state_dict()
    names = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/linear": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward/gate": "mlp.gate_proj",
        "feed_forward/up": "mlp.up_proj",
        "feed_forward/down": "mlp.down_proj",
    }
    pairs = [
        ("embed", "embed_tokens"),
        ("decoder/final_norm", "norm"),
        *(
            (f"decoder/layer_{i}/{ours}", f"layers.{i}.{name}")
            for i in range(smollm2.config.num_layers)
            for ours, name in names.items()
        ),
    ]
    assert {f"decoder_lm/{ours}" for ours, _ in pairs} == set(smollm2.params)
    for ours, name in pairs:
        (leaf, array), *_ = smollm2.params[f"decoder_lm/{ours}"].items()
        expected = theirs[f"model.{name}.weight"].numpy()
        np.testing.assert_array_equal(array, expected.T if leaf == "w" else expected)


# --- Reading a file whole ---------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model", "folder/"])
def test_only_gguf_files_are_read(name):
    with pytest.raises(ValueError, match=r"path must name a \.gguf file, got"):
        read_pretrained(name)


def test_an_error_of_a_file_names_the_file(read_back):
    path = read_back(random_tensors()).path
    with pytest.raises(FormatError, match=f"{path}: metadata 'tokenizer.ggml.model'"):
        read_pretrained(path)


def test_an_unknown_dtype_is_refused_by_name(smollm2_file):
    with pytest.raises(ValueError, match="unknown param_dtype 'float31'"):
        read_pretrained(smollm2_file, dtype="float31")
