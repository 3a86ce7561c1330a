"""GGUF files: what is read is what was written, or one line says why not."""

import os
import pathlib
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained.gguf import read_gguf

STRING, ARRAY, UINT32, UINT8, BOOL = 8, 9, 4, 0, 7
F32, Q4_0 = 0, 2


def _can_quantize(kind):
    try:
        gguf.quants.quantize(np.zeros((1, 256), np.float32), kind)
    except (NotImplementedError, AttributeError):
        return False
    return True


QUANTIZABLE = [kind for kind in gguf.GGMLQuantizationType if _can_quantize(kind)]


# --- A file, byte by byte ---------------------------------------------------------


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return u64(len(data)) + data


def pair(key, kind, value):
    return string(key) + u32(kind) + value


def tensor(name, sizes, kind=F32, offset=0, dimensions=None):
    count = len(sizes) if dimensions is None else dimensions
    sizes = b"".join(map(u64, sizes))
    return string(name) + u32(count) + sizes + u32(kind) + u64(offset)


def contents(pairs=(), tensors=(), data=b"", *, version=3, counts=None):
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = b"GGUF" + u32(version) + u64(tensor_count) + u64(pair_count)
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def write(tmp_path):
    def write(data: bytes) -> pathlib.Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def small_file(path):
    """Writes a file with a bit of everything; returns what it holds."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_token_list(["a", "é", "<|end|>"])
    writer.add_token_types([1, 1, 3])
    rows = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("quantized", gguf.quantize(rows, kind), raw_dtype=kind)
    writer.add_tensor("plain", rows[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- What was written is read -----------------------------------------------------


@given(
    strings=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=9),
    whole=st.integers(0, 2**32 - 1),
    wide=st.integers(-(2**63), 2**63 - 1),
    number=st.floats(width=32, allow_nan=False),
    flag=st.booleans(),
    numbers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9),
)
@settings(deadline=None, max_examples=50)
def test_metadata_comes_back_as_it_was_written(
    tmp_path_factory, strings, whole, wide, number, flag, numbers
):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("strings", strings)
    writer.add_key_value("string", strings[0], gguf.GGUFValueType.STRING)
    writer.add_uint32("whole", whole)
    writer.add_int64("wide", wide)
    writer.add_float32("number", number)
    writer.add_bool("flag", flag)
    writer.add_array("numbers", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = read_gguf(path).metadata
    assert metadata.pop("numbers").tolist() == numbers
    assert metadata == {
        "general.architecture": "llama",
        "strings": strings,
        "string": strings[0],
        "whole": whole,
        "wide": wide,
        "number": number,
        "flag": flag,
    }


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=lambda kind: kind.name)
def test_tensors_of_every_kind_come_back_as_gguf_itself_reads_them(tmp_path, kind):
    rows = np.random.default_rng(0).normal(size=(3, 5, 256)).astype(np.float32)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("weight", gguf.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weight = read_gguf(path).tensors["weight"]
    theirs = gguf.GGUFReader(path).tensors[0]
    numbers = weight.dequantize()
    assert (weight.kind, weight.shape) == (kind.name, rows.shape)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, gguf.dequantize(theirs.data, kind))


def test_dequantized_numbers_are_a_copy_that_can_be_written(tmp_path):
    small_file(tmp_path / "model.gguf")
    plain = read_gguf(tmp_path / "model.gguf").tensors["plain"]
    numbers = plain.dequantize()
    numbers[:] = 0
    assert plain.dequantize().any()


def test_version_two_is_read(write):
    path = write(contents([pair("a", UINT32, u32(7))], version=2))
    assert read_gguf(path).metadata == {"a": 7}


def test_another_alignment_is_kept_to(write):
    alignment = pair("general.alignment", UINT32, u32(64))
    head = contents([alignment], [tensor("w", [2])])
    data = np.float32([1, 2]).tobytes()
    path = write(head + bytes(-len(head) % 64) + data)
    assert read_gguf(path).tensors["w"].dequantize().tolist() == [1, 2]


def test_the_real_file_is_read_as_gguf_itself_reads_it(smollm2_file):
    ours = read_gguf(smollm2_file)
    theirs = gguf.GGUFReader(smollm2_file)
    assert len(ours.tensors) == 272
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor_ in theirs.tensors:
        np.testing.assert_array_equal(
            ours.tensors[tensor_.name].data, tensor_.data.reshape(-1).view(np.uint8)
        )
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        assert ours.metadata[key] == theirs.fields[key].contents()


# --- What is damaged is refused ---------------------------------------------------


def why_refused(path):
    """Returns the message with which all of a file is refused; "" if it is read."""
    try:
        for tensor_ in read_gguf(path).tensors.values():
            tensor_.dequantize()
    except FormatError as error:
        return str(error)
    return ""


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    small_file(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "part.gguf"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert why_refused(path)


def test_a_file_with_any_one_bit_flipped_is_read_or_refused(tmp_path):
    small_file(tmp_path / "whole.gguf")
    data = bytearray((tmp_path / "whole.gguf").read_bytes())
    path = tmp_path / "flipped.gguf"
    messages = []
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        messages.append(why_refused(path))
        data[bit // 8] ^= 1 << bit % 8
    assert sum(map(bool, messages)) > 1000
    assert not any("\n" in message for message in messages)


@given(data=st.binary(max_size=300))
@settings(deadline=None)
def test_arbitrary_bytes_after_the_magic_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(b"GGUF" + u32(3) + u64(1) + u64(2) + data)
    with pytest.raises(FormatError):
        read_gguf(path)


ONE = pair("a", UINT32, u32(1))
DATA = bytes(64)
DAMAGED = {
    "empty": (b"", "byte 0: the file is empty"),
    "magic": (b"GGML" + bytes(20), "byte 0: the file begins with b'GGML'"),
    "version_1": (contents(version=1), "byte 4: .* must be 2 or 3, got 1"),
    "big_endian": (contents(version=3 << 24), "byte 4: .*big-endian"),
    "tensor_count": (contents(counts=(2**40, 0)), "byte 8: the number of tensors"),
    "pair_count": (contents(counts=(0, 2**63)), "byte 16: the number of metadata"),
    "key_length": (
        contents([u64(2**40) + b"key"]),
        "byte 24: the length of a metadata key is 1099511627776",
    ),
    "key_too_long": (contents([pair("k" * 70_000, UINT32, u32(1))]), "longer than"),
    "key_not_utf8": (contents([pair(b"a\xff", UINT32, u32(1))]), "byte 33: .*UTF-8"),
    "string_length": (contents([pair("a", STRING, u64(2**64 - 1))]), "length of 'a'"),
    "string_not_utf8": (contents([pair("a", STRING, string(b"\xc3"))]), "not UTF-8"),
    "unknown_value_type": (contents([pair("a", 99, u32(1))]), "unknown type 99"),
    "unknown_array_type": (
        contents([pair("a", ARRAY, u32(99) + u64(1))]),
        "array of the unknown type 99",
    ),
    "boolean": (contents([pair("a", BOOL, b"\x02")]), "'a' holds 2, not a boolean"),
    "booleans": (
        contents([pair("a", ARRAY, u32(BOOL) + u64(3) + b"\0\1\3")]),
        "byte 51: 'a' holds 3, not a boolean",
    ),
    "array_count": (
        contents([pair("a", ARRAY, u32(UINT8) + u64(2**40))]),
        "byte 41: the length of 'a' is 1099511627776",
    ),
    "string_array_count": (
        contents([pair("a", ARRAY, u32(STRING) + u64(2**40))]),
        "byte 41: the number of strings in 'a'",
    ),
    "string_in_array_length": (
        contents([pair("a", ARRAY, u32(STRING) + u64(1) + u64(2**63))]),
        "past the end",
    ),
    "string_in_array_not_utf8": (
        contents([pair("a", ARRAY, u32(STRING) + u64(1) + string(b"ab\xff"))]),
        "byte 59: a string of 'a' is not UTF-8",
    ),
    "nested_5000_deep": (
        contents([pair("a", ARRAY, (u32(ARRAY) + u64(1)) * 5000)]),
        "array of arrays",
    ),
    "duplicate_key": (contents([ONE, ONE]), "metadata key 'a' is there twice"),
    "alignment": (
        contents([pair("general.alignment", UINT32, u32(24))]),
        "power of two, got 24",
    ),
    "alignment_zero": (
        contents([pair("general.alignment", UINT32, u32(0))]),
        "power of two, got 0",
    ),
    "alignment_text": (
        contents([pair("general.alignment", STRING, string("x\n" * 999))]),
        "power of two, got 'x",
    ),
    "duplicate_tensor": (
        contents([], [tensor("w", [1]), tensor("w", [1], offset=32)], DATA),
        "tensor 'w' is there twice",
    ),
    "no_dimensions": (contents([], [tensor("w", [])], DATA), "1 to 4 dimensions"),
    "many_dimensions": (
        contents([], [tensor("w", [1], dimensions=2**31)], DATA),
        "1 to 4 dimensions, got 2147483648",
    ),
    "size_zero": (contents([], [tensor("w", [4, 0])], DATA), "has the size 0"),
    "sizes_overflow": (
        contents([], [tensor("w", [2**32, 2**32])], DATA),
        "past the end of the file",
    ),
    "sizes_overflow_to_little": (
        contents([], [tensor("w", [2**62 + 1, 4])], DATA),
        "past the end of the file",
    ),
    "unknown_tensor_type": (
        contents([], [tensor("w", [4], kind=4)], DATA),
        "unknown type 4",
    ),
    "part_of_a_block": (
        contents([], [tensor("w", [33], kind=Q4_0)], DATA),
        "multiple of 32 long, got 33",
    ),
    "offset_past_the_end": (
        contents([], [tensor("w", [1], offset=2**40)], DATA),
        "past the end of the file",
    ),
    "offset_wraps": (
        contents([], [tensor("w", [1], offset=2**64 - 32)], DATA),
        "past the end of the file",
    ),
    "offset_misaligned": (
        contents([], [tensor("w", [1], offset=4)], DATA),
        "multiple of 32, got 4",
    ),
    "overlap": (
        contents([], [tensor("w", [9]), tensor("v", [9], offset=32)], bytes(80)),
        "tensor 'v' overlaps another",
    ),
    "name_on_two_lines": (
        contents([], [tensor("w\nw", [2**40])], DATA),
        r"tensor 'w\\nw' ends",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header_is_refused_in_one_line_that_names_file_and_byte(case, write):
    data, message = DAMAGED[case]
    path = write(data)
    with pytest.raises(FormatError, match=message) as error:
        read_gguf(path)
    assert str(error.value).startswith(f"{path}: byte ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250


def test_a_kind_without_arithmetic_is_refused_when_dequantized(write):
    kind = gguf.GGMLQuantizationType.Q8_K
    size = gguf.GGML_QUANT_SIZES[kind][1]
    path = write(contents([], [tensor("w", [256], kind=kind)], bytes(size)))
    with pytest.raises(FormatError, match="'w' is stored as Q8_K"):
        read_gguf(path).tensors["w"].dequantize()


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / "absent.gguf")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not a regular file"):
        read_gguf(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        read_gguf(tmp_path / "pipe.gguf")
