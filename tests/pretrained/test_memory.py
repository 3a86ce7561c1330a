"""What reading a file takes: hardly more memory than what is kept of it."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest

LAYERS, WIDTH, WIDER = 5, 512, 1024

READ = """
import json, sys
from pathlib import Path
import jax
from haiku_mqa.pretrained import config_from_gguf, params_from_gguf, read_gguf

def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith(field)).split()[1])

jax.block_until_ready(jax.device_put(0.0))
file = read_gguf(sys.argv[1])
config = config_from_gguf(file, dtype=sys.argv[2])
before = held("VmRSS")
params = params_from_gguf(file, config)
jax.block_until_ready(params)
kept = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps([held("VmHWM") - before, kept]))
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """Writes a llama of 50 MB, none of whose tensors is much of it."""
    path = tmp_path_factory.mktemp("memory") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDER)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(WIDER)
    for name, shape in _shapes():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes():
    yield from (("token_embd", (WIDER, WIDTH)), ("output_norm", (WIDTH,)))
    for i in range(LAYERS):
        yield from ((f"blk.{i}.{n}_norm", (WIDTH,)) for n in ("attn", "ffn"))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{i}.{name}", (WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{i}.{name}", (WIDER, WIDTH)
        yield f"blk.{i}.ffn_down", (WIDTH, WIDER)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was held")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_takes_little_more_than_what_is_kept(large_file, dtype):
    command = [sys.executable, "-c", READ, str(large_file), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    most, kept = json.loads(done.stdout)
    assert most < 1.3 * kept
