"""What proposers propose, one call at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haiku_mqa import Sampling
from haiku_mqa.generation import Draft, PromptLookup
from haiku_mqa.generation.acceptance import draw_of
from tests.models import example, example_params

SIZE, ROWS = 12, 3
GREEDY = draw_of([Sampling(temperature=0.0)], 29, None)
LOOKUP = PromptLookup(ngram=3, num_tokens=4)


@jax.jit
def _propose(lookup, text, known, room):
    return lookup.propose(text, known, room, None, known, GREEDY)


def _looked_up(rows: list[list[int]], room: int = 4, lookup=LOOKUP) -> list[list[int]]:
    """Returns what is proposed for each row; behind its end the text is rubbish."""
    rows = rows + [[0]] * (ROWS - len(rows))
    text = np.full((ROWS, SIZE), 1, np.int32)
    for row, tokens in enumerate(rows):
        text[row, : len(tokens)] = tokens
    known = np.array([len(row) for row in rows], np.int32)
    found = _propose(lookup, text, known, np.full(ROWS, room, np.int32))
    assert found.scores is None
    assert found.memory is None
    lengths = found.lengths.tolist()
    return [
        tokens[:length]
        for tokens, length in zip(found.tokens.tolist(), lengths, strict=True)
    ]


def _naive(tokens: list[int], room: int) -> list[int]:
    """The same by trying every place, the best of them last."""
    best, found = (0, 0), []
    for end in range(len(tokens) - 1):
        run = 0
        while run < LOOKUP.ngram and run <= end and tokens[end - run] == tokens[~run]:
            run += 1
        following = tokens[end + 1 :][: LOOKUP.num_tokens]
        if run and (run, len(following)) >= best:
            best, found = (run, len(following)), following
    return found[:room]


@given(
    rows=st.lists(
        st.lists(st.integers(0, 2), min_size=1, max_size=SIZE),
        min_size=ROWS,
        max_size=ROWS,
    ),
    room=st.integers(0, 4),
)
def test_lookup_is_what_trying_every_place_finds(rows, room):
    assert _looked_up(rows, room) == [_naive(row, room) for row in rows]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([5, 6, 7, 8, 9, 5, 6], [7, 8, 9, 5]),  # what followed the last time
        ([1, 6, 7, 2, 6, 8, 1, 6], [7, 2, 6, 8]),  # a longer run before a later one
        ([6, 2, 1, 1, 1, 6, 3, 1, 1, 1, 6], [3, 1, 1, 1]),  # the later of two
        ([4, 4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4]),  # enough follows, though earlier
        ([2, 3, 4], []),  # nothing was there before
        ([7], []),
    ],
)
def test_lookup_proposes_what_followed(tokens, expected):
    assert _looked_up([tokens])[0] == expected


def test_lookup_looks_at_no_longer_run_than_it_is_told():
    tokens = [1, 6, 7, 2, 6, 8, 1, 6, 0, 1, 6]
    short = PromptLookup(ngram=1, num_tokens=4)
    assert _looked_up([tokens], lookup=short)[0] == [8, 1, 6, 0][:4]
    tokens = [1, 6, 7, 2, 2, 2, 6, 8, 8, 8, 1, 6]
    assert _looked_up([tokens], lookup=short)[0] == [8, 8, 8, 1]
    assert _looked_up([tokens])[0] == [7, 2, 2, 2]


def test_lookup_proposes_no_more_than_there_is_room_for():
    assert _looked_up([[5, 6, 7, 8, 5]], room=2)[0] == [6, 7]
    assert _looked_up([[5, 6, 7, 8, 5]], room=0)[0] == []


def test_draft_reads_what_it_has_missed_and_goes_on_greedily():
    model, params = example("grouped"), example_params("grouped")
    draft = Draft(model, params, num_tokens=3)
    text = np.array([[1, 2, 3, 4, 0, 0], [5, 6, 7, 0, 0, 0]], np.int32)
    known = jnp.array([4, 3], jnp.int32)

    @jax.jit
    def propose(draft, room):
        read = jnp.arange(2) < jnp.array([[2], [2]])
        memory = draft.begin(jnp.asarray(text[:, :2]), read, 12)  # 2 and 1 behind
        return draft.propose(jnp.asarray(text), known, room, memory, known, GREEDY)

    found = propose(draft, jnp.array([3, 2], jnp.int32))
    assert found.lengths.tolist() == [3, 2]
    assert found.memory.lengths.tolist() == [6, 4]  # all but the last proposal
    forward = jax.jit(lambda tokens: model.apply(params, None, tokens).logits)
    for row, length in enumerate([3, 2]):
        read = [*text[row, : known[row]], *found.tokens[row, :length].tolist()]
        padded = np.zeros((1, 8), np.int32)
        padded[0, : len(read)] = read
        best = forward(padded)[0].argmax(axis=-1).tolist()
        start = int(known[row])
        assert read[start:] == best[start - 1 : start - 1 + length]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
@pytest.mark.parametrize("field", ["ngram", "num_tokens"])
def test_numbers_that_are_no_counts_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number >= 1, got"):
        PromptLookup(**{field: value})


def test_draft_refuses_what_is_no_model_and_no_number():
    with pytest.raises(ValueError, match="model must be a Model"):
        Draft(example_params("grouped"), example("grouped"))
    with pytest.raises(ValueError, match="num_tokens must be a whole number >= 1"):
        Draft(example("grouped"), example_params("grouped"), num_tokens=0)
