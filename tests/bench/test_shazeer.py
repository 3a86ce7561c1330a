"""The variants of Shazeer's tables, and what is said of them."""

from __future__ import annotations

import json

import pytest

from haiku_mqa.bench.batch_decode import cache_bytes_per_token
from haiku_mqa.bench.scale import Scale
from haiku_mqa.bench.shazeer import run_shazeer, variants
from haiku_mqa.config import DecoderConfig
from haiku_mqa.model import build
from tests.bench.tiny import CORPUS, DECODING, SCALE, decode_with


def _configs() -> list[DecoderConfig]:
    return [
        Scale()
        .run_config(
            steps=20,
            seed=0,
            num_heads=variant.num_heads,
            num_kv_heads=variant.num_kv_heads,
            key_size=variant.key_size,
            d_ff=variant.d_ff,
        )
        .decoder_config(65)
        for variant in variants(Scale())
    ]


def test_variants_have_as_many_parameters_but_for_rounding():
    sizes = [
        sum(x.size for part in build(c).param_shapes.values() for x in part.values())
        for c in _configs()
    ]
    assert max(sizes) - min(sizes) < 0.005 * min(sizes)


def test_variants_but_the_first_have_the_cache_of_one_head():
    sizes = [cache_bytes_per_token(config) for config in _configs()]
    assert sizes[0] == 8 * sizes[1]
    assert set(sizes[1:]) == {sizes[1]}


@pytest.fixture(scope="module")
def found(compiled_once):
    return run_shazeer(
        steps=3,
        seeds=2,
        scale=SCALE,
        corpus=CORPUS,
        decode_with=decode_with,
        **DECODING,
    )


def test_every_variant_is_trained_with_every_seed(found):
    assert [len(v["validation_losses"]) for v in found.data["variants"]] == [2] * 4
    losses = [loss for v in found.data["variants"] for loss in v["validation_losses"]]
    assert len(set(losses)) == len(losses)
    assert all(1 < loss < 4 for loss in losses)  # ln 17 is 2.8


def test_figures_of_decoding_are_those_measured(found):
    first, second, *_ = found.data["variants"]
    assert first["decode_us_per_token"] == pytest.approx(1.0)
    assert second["decode_us_per_token"] == pytest.approx(2.0)
    assert second["fraction_of_limit"] == pytest.approx(
        second["limit_us_per_token"] / 2.0
    )


def test_findings_hold_what_a_reader_needs_to_repeat_them(found):
    data = json.loads(json.dumps(found.to_dict()))
    assert data["command"] == (
        "haiku-mqa bench shazeer --steps 3 --seeds 2 --batch-size 2 --context 5 "
        "--repeats 2"
    )
    assert data["settings"]["seeds"] == [0, 1]
    assert {"cpu", "cores"} <= set(data["hardware"])
    assert {"python", "jax", "haiku-mqa"} <= set(data["versions"])


def test_markdown_has_a_row_for_each_variant(found):
    lines = found.markdown().splitlines()
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {len(found.columns) + 1}
