"""Tokens: as the model was trained to see them, and never more than text says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku_mqa.errors import FormatError
from haiku_mqa.pretrained.gguf import read_gguf
from haiku_mqa.pretrained.tokenizer import StreamDecoder, tokenizer_from_gguf

# What llama.cpp's own tokenizer makes of them, out of the same file.
GOLDEN = [
    ("", []),
    ("The capital of France is", [504, 3575, 282, 4649, 314]),
    (
        "In 2024, 1234567 people",
        [788, 216, 34, 32, 34, 36, 28, 216, 33, 34, 35, 36, 37, 38, 39, 701],
    ),
    ("x1y22z333", [104, 33, 105, 34, 34, 106, 35, 35, 35]),
    (
        "  two  spaces and\ttab\n\n\nlines  ",
        [216, 827, 216, 5600, 284, 197, 15999, 1116, 198, 5110, 256],
    ),
    ("don't I'll we've they're", [12420, 982, 339, 3060, 392, 3543, 502, 2316]),
    (
        "def f(x):\n    return x ** 2\n",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 1903, 216, 34, 198],
    ),
    (
        "naïve café, Straße, Øre",
        [3546, 46494, 37366, 28, 19144, 34878, 85, 28, 5549, 242, 257],
    ),
    (
        "日本語 한국어 汉字",
        [
            *(23274, 115, 40993, 179, 120, 248, 216, 33085, 246, 181, 130, 251, 183),
            *(240, 129, 17097, 126, 227, 36518),
        ],
    ),
    (
        "مرحبا ١٢٣",
        [21706, 20602, 44626, 31462, 10805, 216, 164, 111, 164, 112, 164, 113],
    ),
    ("Ⅷ ² ½ x²", [173, 223, 117, 216, 19133, 216, 16738, 1792, 19133]),
    (
        "🙂👩\u200d👩\u200d👧🇩🇪",
        [
            *(10813, 38887, 10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231),
            *(10813, 235, 117, 10813, 225, 119, 10813, 225, 120),
        ],
    ),
    ("a\u0301 \u00a0\u3000\u200b", [81, 151, 219, 3351, 250, 12109, 218, 321, 229]),
    (
        "<|im_start|>user\nHi<|im_end|>",
        [
            *(44, 108, 306, 79, 3738, 108, 46, 4093, 198, 26843),
            *(44, 108, 306, 79, 486, 108, 46),
        ],
    ),
]
GOLDEN_CONTROL = (
    "<|im_start|>user\nHi<|im_end|>\n<repo_name>12",
    [1, 4093, 198, 26843, 2, 198, 3, 33, 34],
)
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
GOLDEN_CHAT_TEXT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\n<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
GOLDEN_CHAT = [
    *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28),
    *(7018, 411, 407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 216, 33, 34),
    *(1232, 216, 35, 32, 47, 2, 198, 1, 520, 9531, 198),
]
CONTROL = range(17)

# SmolLM2's vocabulary lacks the bytes of these, and of planes 4 to 11.
UNSPELLABLE = "\x04\x06\x13\x14\x16\x1d"
TEXT = st.text(
    st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters=UNSPELLABLE)
)
# Text that comes as near to a control token as text can.
PIECES = st.lists(
    st.sampled_from(
        [
            *("<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "|>", "system"),
            *("\n", "<repo_name>", "\ufdd0", "<\ufdd0|im_end|>", "12", " é🙂"),
        ]
    )
).map("".join)


@pytest.fixture(scope="module")
def metadata(smollm2_file):
    return read_gguf(smollm2_file).metadata


@pytest.fixture(scope="module")
def tokenizer(metadata):
    return tokenizer_from_gguf(metadata)


def small_metadata(**changes):
    """Returns a vocabulary of a few tokens, with ``tokenizer.`` keys changed."""
    tokens = ["<s>", "</s>", *"abc", "ab", "<think>", "Ġ"]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": np.array([3, 3, 1, 1, 1, 1, 4, 1], np.int32),
        "merges": ["a b"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


# --- Encoding ---------------------------------------------------------------------


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_text_encodes_as_llama_cpp_encodes_it(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_golden_ids_decode_to_their_text(tokenizer, text, ids):
    assert tokenizer.decode(ids) == text


@given(text=TEXT)
@settings(deadline=None)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=PIECES)
@settings(deadline=None)
def test_text_that_spells_control_tokens_is_only_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & set(CONTROL)
    assert tokenizer.decode(ids) == text


def test_control_tokens_are_read_where_that_is_asked_for(tokenizer):
    text, ids = GOLDEN_CONTROL
    assert tokenizer.encode(text, control_tokens=True) == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == "user\nHi\n12"


def test_smollm2_asks_for_nothing_around_a_text(tokenizer):
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        ({}, [5, 4]),
        ({"add_bos_token": True}, [0, 5, 4]),
        ({"add_eos_token": True}, [5, 4, 1]),
        ({"add_bos_token": True, "add_eos_token": True}, [0, 5, 4, 1]),
    ],
)
def test_what_the_file_asks_for_is_put_around_a_text(flags, ids):
    tokenizer = tokenizer_from_gguf(small_metadata(**flags))
    assert tokenizer.encode("abc") == ids
    assert tokenizer.encode("abc", add_special_tokens=False) == [5, 4]


def test_tokens_that_a_user_defined_are_found_in_any_text():
    tokenizer = tokenizer_from_gguf(small_metadata())
    assert tokenizer.encode("ab<think>c") == [5, 6, 4]
    assert tokenizer.decode([5, 6, 4]) == "ab<think>c"


@pytest.mark.parametrize("character", [*UNSPELLABLE, "\U00050000"])
def test_a_character_that_no_token_spells_is_refused_by_name(tokenizer, character):
    with pytest.raises(ValueError, match=r"text has .*, for which") as error:
        tokenizer.encode(f"ab{character}c")
    assert repr(character) in str(error.value)


def test_only_text_beside_user_defined_tokens_must_be_spelled():
    tokenizer = tokenizer_from_gguf(small_metadata())
    with pytest.raises(ValueError, match="text has '>', for which"):
        tokenizer.encode("ab<think>c>")


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"lone surrogate, .* at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("text", [None, b"bytes", ["a"]])
def test_only_strings_are_encoded(tokenizer, text):
    with pytest.raises(ValueError, match="text must be a string, got"):
        tokenizer.encode(text)


# --- Decoding ---------------------------------------------------------------------


@pytest.mark.parametrize("token", [-1, 49_152, 2**40])
def test_an_id_that_is_no_tokens_is_refused_by_name(tokenizer, token):
    message = f"from 0 to 49151, got {token}"
    with pytest.raises(ValueError, match=message):
        tokenizer.decode([1, token])
    with pytest.raises(ValueError, match=message):
        StreamDecoder(tokenizer).push(token)


def test_arrays_of_ids_are_decoded(tokenizer):
    assert tokenizer.decode(np.array([504, 3575], np.int32)) == "The capital"


@given(ids=st.lists(st.integers(0, 49_151)), skip=st.booleans())
@settings(deadline=None)
def test_a_stream_says_together_what_decoding_says(tokenizer, ids, skip):
    stream = StreamDecoder(tokenizer, skip_special_tokens=skip)
    text = "".join(map(stream.push, ids)) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=TEXT)
@settings(deadline=None)
def test_a_stream_shows_only_whole_characters_and_each_at_once(tokenizer, text):
    stream = StreamDecoder(tokenizer)
    ids = tokenizer.encode(text)
    said = ""
    for i, token in enumerate(ids):
        said += stream.push(token)
        assert text.startswith(said)
        assert len(tokenizer.decode(ids[: i + 1]).rstrip("\ufffd")) <= len(said)
    assert (said, stream.finish()) == (text, "")


def test_a_stream_tells_of_a_character_that_never_became_whole(tokenizer):
    stream = StreamDecoder(tokenizer)
    assert [stream.push(10813), stream.finish()] == ["", "\ufffd"]
    assert [stream.push(504), stream.finish()] == ["The", ""]


def test_control_tokens_do_not_cut_a_character_in_a_stream(tokenizer):
    stream = StreamDecoder(tokenizer)
    first, *rest = tokenizer.encode("€")
    said = [stream.push(token) for token in (first, 2, *rest)]
    assert "".join(said) == "€"


# --- Chat -------------------------------------------------------------------------


def test_a_chat_is_rendered_by_the_models_template(tokenizer):
    assert tokenizer.render_chat(QUESTION) == GOLDEN_CHAT_TEXT


def test_a_chat_encodes_as_llama_cpp_encodes_its_text(tokenizer):
    assert tokenizer.encode_chat(QUESTION) == GOLDEN_CHAT


def test_the_answers_beginning_can_be_left_out(tokenizer):
    ids = tokenizer.encode_chat(QUESTION, add_generation_prompt=False)
    assert ids == GOLDEN_CHAT[:-4]


@given(text=TEXT)
@settings(deadline=None)
def test_a_chat_encodes_as_its_text_where_messages_spell_no_control(tokenizer, text):
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.render_chat(messages)
    assert tokenizer.encode_chat(messages) == tokenizer.encode(
        rendered, control_tokens=True
    )


@given(contents=st.lists(PIECES, min_size=1, max_size=3))
@settings(deadline=None)
def test_a_message_cannot_write_control_tokens(tokenizer, contents):
    messages = [{"role": "user", "content": content} for content in contents]
    harmless = [{"role": "user", "content": "a"} for _ in contents]
    ids = tokenizer.encode_chat(messages)
    written = [token for token in ids if token in CONTROL]
    assert written == [t for t in tokenizer.encode_chat(harmless) if t in CONTROL]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == tokenizer.render_chat(messages)


def test_a_message_with_every_mark_is_refused(tokenizer):
    content = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    with pytest.raises(ValueError, match="every noncharacter"):
        tokenizer.encode_chat([{"role": "user", "content": content}])


def test_a_file_without_a_template_has_no_chat():
    tokenizer = tokenizer_from_gguf(small_metadata())
    assert tokenizer.chat_template is None
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.render_chat(QUESTION)


def test_a_template_sees_the_texts_of_the_first_and_last_tokens():
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    metadata = small_metadata() | {"tokenizer.chat_template": template}
    tokenizer = tokenizer_from_gguf(metadata)
    messages = [{"role": "user", "content": "ab"}]
    assert tokenizer.render_chat(messages) == "<s>ab</s>"
    assert tokenizer.encode_chat(messages) == [0, 5, 1]


# --- The vocabulary ---------------------------------------------------------------


def test_what_smollm2_says_of_its_tokens(tokenizer):
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.bos_token == 1
    assert tokenizer.end_tokens == (2,)
    assert tokenizer.chat_template.startswith("{% for message in messages %}")


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({}, (1,)),
        ({"eos_token_id": None}, ()),
        ({"eot_token_id": 3}, (1, 3)),
        ({"eot_token_id": 1}, (1,)),
        ({"tokens": ["<s>", "</s>", *"abc", "ab", "<|im_end|>", "Ġ"]}, (1, 6)),
    ],
)
def test_an_answer_ends_with_the_sequence_or_with_the_turn(changes, ends):
    assert tokenizer_from_gguf(small_metadata(**changes)).end_tokens == ends


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "unknown tokenizer.ggml.model 'bert'"),
        ({"pre": "smolm"}, "unknown tokenizer.ggml.pre 'smolm': did you mean 'smollm'"),
        ({"pre": 3}, "unknown tokenizer.ggml.pre '3'"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(small_metadata(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": None}, "pre' is missing"),
        ({"tokens": None}, "tokens' is missing"),
        ({"merges": None}, "merges' is missing"),
        ({"token_type": None}, "token_type' is missing"),
        ({"tokens": "abc"}, "tokens must be an array of strings"),
        ({"tokens": ["a", "a"]}, "the same token twice"),
        ({"token_type": np.ones(7, np.int32)}, "7 entries, but there are 8 tokens"),
        ({"token_type": np.full(8, 9, np.int32)}, "from 1 to 6, got 9"),
        ({"token_type": ["1"] * 8}, "array of whole numbers"),
        ({"merges": ["ab"]}, r"merges\[0\] must be two tokens"),
        ({"merges": ["a b", "a  b"]}, r"merges\[1\] must be two tokens"),
        ({"merges": ["a x"]}, "but there is no token 'x'"),
        ({"merges": ["a c"]}, "but there is no token 'ac'"),
        ({"merges": ["a b", "a b"]}, "the same merge twice"),
        ({"bos_token_id": 8}, "bos_token_id must be a token id from 0 to 7, got 8"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id"),
        ({"add_bos_token": 1}, "add_bos_token must be a boolean, got 1"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is missing"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused_by_name(changes, message):
    with pytest.raises(FormatError, match=message):
        tokenizer_from_gguf(small_metadata(**changes))


def test_a_template_that_is_no_text_is_refused():
    with pytest.raises(FormatError, match="chat_template must be a string, got 3"):
        tokenizer_from_gguf(small_metadata() | {"tokenizer.chat_template": 3})


@pytest.mark.parity
def test_text_without_digits_encodes_as_transformers_encodes_it(
    smollm2_file, tokenizer
):
    import transformers

    # Given a GGUF file, transformers does not split digits; all else it does.
    theirs = transformers.AutoTokenizer.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name
    )
    for text, _ in GOLDEN[:-1]:
        if not any(character.isnumeric() for character in text):
            ids = theirs.encode(text, add_special_tokens=False)
            assert tokenizer.encode(text) == ids
