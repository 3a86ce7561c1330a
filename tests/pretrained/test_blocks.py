"""Blocks of a file's numbers: the same bits as gguf's own, whatever they hold."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa.pretrained._blocks import floats


def is_undone(kind):
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


KINDS = [kind.name for kind in gguf.GGMLQuantizationType if is_undone(kind)]


def test_gguf_undoes_the_kinds_that_files_are_made_of():
    usual = {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    assert usual < {*KINDS}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_blocks_become_what_gguf_makes_of_them(kind, data):
    number = gguf.GGMLQuantizationType[kind]
    _, block_bytes = gguf.GGML_QUANT_SIZES[number]
    rows, blocks = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    start = data.draw(st.integers(0, 3)) * block_bytes  # bytes; an odd one too
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = rows * blocks * block_bytes
    if kind in ("F32", "F16"):  # gguf itself views these where they lie
        start = 0
    stored = draw.integers(0, 256, start + size, np.uint8)[start:].reshape(rows, -1)
    stored.flags.writeable = False  # as a mapped file is
    with np.errstate(all="ignore"):  # any bytes: scales can be NaN
        ours, theirs = floats(kind, stored), gguf.dequantize(stored, number)
    assert (ours.dtype, ours.shape) == (np.float32, theirs.shape)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        ours[finite].view(np.uint32), theirs[finite].view(np.uint32)
    )


def test_a_kind_without_arithmetic_cannot_be_undone():
    with pytest.raises(NotImplementedError):
        floats("Q8_1", np.zeros((1, 36), np.uint8))
