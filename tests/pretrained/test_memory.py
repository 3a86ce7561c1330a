"""What reading a file takes: hardly more memory than what is kept of it."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest

from haiku_mqa.pretrained import (
    config_from_gguf,
    params_from_gguf,
    read_gguf,
    save_pretrained,
)

LAYERS, WIDTH, WIDER = 5, 512, 1024

MEASURE = """
import json, sys
from pathlib import Path
import jax
from haiku_mqa.pretrained import (
    config_from_gguf, from_pretrained, params_from_gguf, read_gguf)

def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith(field)).split()[1])

def read_file(path, dtype):
    file = read_gguf(path)
    return params_from_gguf(file, config_from_gguf(file, dtype=dtype))

def read_folder(path, dtype):
    return from_pretrained(path, dtype=dtype)[1]

jax.block_until_ready(jax.device_put(0.0))
small, large, dtype = sys.argv[1:]
read = read_folder if Path(large).is_dir() else read_file
read(small, dtype)  # what is imported and compiled on the way
before = held("VmRSS")
params = read(large, dtype)
jax.block_until_ready(params)
kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps([held("VmHWM") - before, kept]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes a tiny llama, and one of 50 MB, none of whose tensors is much of it."""
    folder = tmp_path_factory.mktemp("memory")
    return (
        _write_file(folder / "small.gguf", 1, 8, 16),
        _write_file(folder / "large.gguf", LAYERS, WIDTH, WIDER),
    )


@pytest.fixture(scope="module")
def folders(files, tmp_path_factory):
    """Writes the same two as folders."""
    for path in files:
        read = read_pretrained_parts(path)
        save_pretrained(path.with_suffix(""), *read, family="llama")
    return tuple(path.with_suffix("") for path in files)


def read_pretrained_parts(path):
    file = read_gguf(path)
    config = config_from_gguf(file)
    return config, params_from_gguf(file, config)


def _write_file(path, layers, width, wider):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(wider)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(wider)
    for name, shape in _shapes(layers, width, wider):
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(layers, width, wider):
    yield from (("token_embd", (wider, width)), ("output_norm", (width,)))
    for i in range(layers):
        yield from ((f"blk.{i}.{n}_norm", (width,)) for n in ("attn", "ffn"))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{i}.{name}", (width, width)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{i}.{name}", (wider, width)
        yield f"blk.{i}.ffn_down", (width, wider)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was held")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["files", "folders"])
def test_reading_takes_little_more_than_what_is_kept(form, dtype, request):
    small, large = map(str, request.getfixturevalue(form))
    command = [sys.executable, "-c", MEASURE, small, large, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    most, kept = json.loads(done.stdout)
    assert most < 1.3 * kept
