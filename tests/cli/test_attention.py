"""Heat maps: that the picture is whole, and shows what was asked for."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from haiku_mqa import load_pretrained
from haiku_mqa.cli import _heat_maps
from haiku_mqa.cli.attention import _visible

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the drawing, instead of being drawn."""
    calls = []

    def draw(maps, labels, *, path, **titles):
        calls.append({"maps": maps, "labels": labels, **titles})
        path.write_bytes(b"picture")

    monkeypatch.setattr(_heat_maps, "draw", draw)
    return calls


def test_attention_writes_a_picture(run, tmp_path):
    output = tmp_path / "attention.png"
    words = ("--layers", 0, "--heads", 0, "--output", output)
    done = run("attention", "--model", "mqa-decoder", *words, "a $b$")
    assert done.code == 0, done.err
    assert output.read_bytes().startswith(PNG)
    assert "1 heat map of 5 tokens" in done.out
    assert [file.name for file in tmp_path.iterdir()] == ["attention.png"]


def test_weights_are_those_of_the_model(run, tiny, tmp_path, drawn):
    words = ("--layers", "1", "--heads", "0,2-3", "--output", tmp_path / "a.png")
    done = run("attention", "--model", tiny, *words, "the end")
    assert done.code == 0, done.err
    [call] = drawn
    loaded = load_pretrained(tiny)
    tokens = jnp.asarray([loaded.tokenizer.encode("the end")])
    out = loaded.model.apply(loaded.params, None, tokens, return_attention=True)
    np.testing.assert_allclose(
        call["maps"][0], out.attention[1][0, jnp.array([0, 2, 3])], atol=1e-6
    )
    assert call["labels"] == ["the", "·", "e", "n", "d"]
    assert call["rows"] == ["layer 1"]
    assert call["columns"] == ["head 0", "head 2", "head 3"]


def test_layers_and_heads_have_defaults(run, tmp_path, drawn):
    words = ("--model", "mqa-decoder", "--output", tmp_path / "a.png")
    assert run("attention", *words, "hi").code == 0
    assert drawn[0]["rows"] == ["layer 0", "layer 3", "layer 5"]
    assert drawn[0]["columns"] == [f"head {i}" for i in range(4)]


def test_random_weights_follow_the_seed(run, tmp_path, drawn):
    words = ("--model", "mqa-decoder", "--output", tmp_path / "a.png", "--layers", 1)
    for seed in (0, 0, 1):
        done = run("attention", *words, "--seed", seed, "hello")
        assert f"with seed {seed}" in done.err
    first, again, other = (call["maps"] for call in drawn)
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_ending_says_the_format(run, tmp_path, ending):
    output = tmp_path / f"a.{ending}"
    words = ("--layers", 0, "--heads", "0-1", "--output", output)
    assert run("attention", "--model", "mqa-decoder", *words, "ab").code == 0
    assert output.read_bytes().startswith({"svg": b"<?xml", "pdf": b"%PDF"}[ending])


def _saved(monkeypatch, tmp_path, maps, labels, rows, columns):
    """Draws, and returns the figure as it was when it was saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k))[1],
    )
    _heat_maps.draw(
        np.asarray(maps, np.float32),
        labels,
        rows=rows,
        columns=columns,
        title="a model reads “$x$”",
        path=tmp_path / "a.svg",
    )
    return figures[0], (tmp_path / "a.svg").read_text()


def _uniform(count):
    lower = np.tril(np.ones((count, count)))
    return lower / lower.sum(axis=1, keepdims=True)


def test_picture_names_maps_and_tokens_and_leaves_the_future_blank(
    monkeypatch, tmp_path
):
    maps = np.broadcast_to(_uniform(3), (2, 2, 3, 3))
    figure, svg = _saved(
        monkeypatch,
        tmp_path,
        maps,
        ["a", "$b", "·c"],
        ["layer 0", "layer 4"],
        ["h", "i"],
    )
    for text in ("layer 0, h", "layer 4, i", "$b", "·c", "share of attention"):
        assert text in svg
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 4
    for image in images:
        blank = np.ma.getmaskarray(image.get_array())
        assert (blank == np.triu(np.ones((3, 3), bool), k=1)).all()
        assert image.get_clim() == (0.0, 1.0)
    assert len({id(image.get_cmap()) for image in images}) == 1


def test_no_attention_does_not_look_like_the_future():
    assert _heat_maps._COLOURS(0.0)[:3] != (1.0, 1.0, 1.0)


@pytest.mark.parametrize("count", [1, 40, 300])
def test_labels_are_legible_and_do_not_overlap(monkeypatch, tmp_path, count):
    figure, _ = _saved(
        monkeypatch, tmp_path, _uniform(count)[None, None], ["ab"] * count, ["l"], ["h"]
    )
    labels = figure.axes[0].get_yticklabels()
    figure.draw_without_rendering()
    assert labels[0].get_fontsize() >= 5
    boxes = sorted(label.get_window_extent().y0 for label in labels)
    height = labels[0].get_fontsize() / 72 * figure.dpi
    gaps = [b - a for a, b in itertools.pairwise(boxes)]
    assert all(gap >= 0.99 * height for gap in gaps)


def test_title_is_wrapped_where_the_picture_is_small(monkeypatch, tmp_path):
    monkeypatch.setattr(_heat_maps, "_TITLE_LETTERS", 3)
    figure, _ = _saved(monkeypatch, tmp_path, [[[[1.0]]]], ["a"], ["l"], ["h"])
    assert "\n" in figure.get_suptitle()


def test_heads_of_one_layer_are_wrapped(monkeypatch, tmp_path):
    maps = np.ones((1, 9, 1, 1))
    heads = [f"head {i}" for i in range(9)]
    figure, svg = _saved(monkeypatch, tmp_path, maps, ["a"], ["layer 0"], heads)
    assert all(f"layer 0, {head}" in svg for head in heads)
    rows = {round(axes.get_position().y0, 3) for axes in figure.axes if axes.images}
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" the", "·the"), ("\n", "⏎"), ("\x00", "x00"), ("a" * 30, "a" * 13 + "…")],
)
def test_token_is_made_visible(token, shown):
    assert _visible(token) == shown


def test_bytes_that_are_no_letters_are_shown_as_numbers(run, tmp_path, drawn):
    words = ("--model", "mqa-decoder", "--output", tmp_path / "a.png")
    run("attention", *words, "é")
    assert drawn[0]["labels"] == ["xC3", "xA9"]


def test_token_of_a_script_that_the_font_lacks_is_no_warning(run, tiny, tmp_path):
    words = ("--model", tiny, "--layers", 0, "--heads", 0)
    done = run("attention", *words, "--output", tmp_path / "a.png", "日")
    assert done.code == 0
    assert not re.search("warning", done.err, re.IGNORECASE)
