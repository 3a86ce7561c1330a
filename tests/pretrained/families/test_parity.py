"""Every family's decoders are those that transformers runs, and go back to it whole."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import haiku_mqa as hm
from haiku_mqa.pretrained import family_named, family_names
from tests.pretrained.families.all_cases import CASES
from tests.pretrained.families.cases import VOCAB_SIZE

pytestmark = pytest.mark.parity

LOGITS = 1e-4  # of float32, whose sums are made in another order
GRADIENT = 1e-3  # of a parameter's gradient, by its length
ROUNDED = 1e-5  # of a gradient, beside lengths of about one
ROWS, LENGTH, PADDING = 3, 12, 4
CHUNKS = (5, 1, 6)
NEW_TOKENS = 4
# A program that runs once need not be fast; to compile it takes a third of the time.
_QUICKLY = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Compared:
    """One decoder, run by both."""

    case: tuple[str, str, str]
    folder: Path  # as transformers wrote it
    model: hm.Model
    params: Any
    peer: Any  # the model of transformers
    tokens: np.ndarray  # [B, T]
    mask: np.ndarray  # [B, T]; the last row is padded on the left
    theirs: dict[str, Any]
    ours: dict[str, Any]


@pytest.fixture(scope="module", params=list(CASES), ids=" ".join)
def compared(request, tmp_path_factory) -> Compared:
    family, heads, _ = request.param
    folder = tmp_path_factory.mktemp(family) / "theirs"
    peer = _drawn_peer(family, CASES[request.param])
    peer.save_pretrained(folder)
    model, params = hm.from_pretrained(folder)
    _check_heads(model.config, heads)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (ROWS, LENGTH))
    mask = np.ones((ROWS, LENGTH), bool)
    mask[-1, :PADDING] = False
    return Compared(
        case=request.param,
        folder=folder,
        model=model,
        params=params,
        peer=peer,
        tokens=tokens,
        mask=mask,
        theirs=_run_peer(peer, tokens, mask),
        ours=_run(model, params, tokens, mask),
    )


def _drawn_peer(family: str, keys: dict[str, Any]) -> Any:
    """Returns a model whose parameters, norms and biases too, are all random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **none, **keys)
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return peer


def _check_heads(config: hm.DecoderConfig, heads: str) -> None:
    count = {"multi-head": config.num_heads, "multi-query": 1}
    assert config.num_kv_heads == count.get(heads, 2)


def _run_peer(peer: Any, tokens: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    import torch

    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    ids, seen, places = map(torch.tensor, (tokens, mask.astype(int), positions))
    logits = peer(ids, attention_mask=seen, position_ids=places).logits
    chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    loss = -(chosen * seen[:, :-1]).sum()
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    new = peer.generate(
        ids, attention_mask=seen, do_sample=False, max_new_tokens=NEW_TOKENS
    )
    return {
        "logits": logits.detach().numpy(),
        "grads": grads,
        "new": new[:, LENGTH:].numpy(),
    }


def _run(model: hm.Model, params: Any, tokens: Any, mask: Any) -> dict[str, Any]:
    """Returns logits, gradient and choices, all out of one compiled program."""

    @functools.partial(jax.jit, compiler_options=_QUICKLY)
    def run(params: Any, tokens: jax.Array, mask: jax.Array) -> dict[str, Any]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(params, None, tokens, mask=mask).logits
            log_probs = jax.nn.log_softmax(logits)[:, :-1]
            chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)[..., 0]
            return -jnp.sum(chosen * mask[:, :-1]), logits

        grads, logits = jax.grad(loss, has_aux=True)(params)
        cached, new = _decode(model, params, tokens, mask)
        return {"logits": logits, "grads": grads, "cached": cached, "new": new}

    return jax.device_get(run(params, jnp.asarray(tokens, jnp.int32), mask))


def _decode(
    model: hm.Model, params: Any, tokens: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    cache = model.init_cache(ROWS, LENGTH + NEW_TOKENS)
    pieces, start = [], 0
    for size in CHUNKS:
        here = slice(start, start + size)
        out = model.apply(
            params, None, tokens[:, here], mask=mask[:, here], cache=cache
        )
        pieces.append(out.logits)
        cache, start = out.cache, start + size

    def step(carry: Any, _: None) -> Any:
        cache, token = carry
        out = model.apply(params, None, token[:, None], cache=cache)
        return (out.cache, out.logits[:, -1].argmax(-1).astype(jnp.int32)), token

    first = pieces[-1][:, -1].argmax(-1).astype(jnp.int32)
    _, new = jax.lax.scan(step, (cache, first), None, NEW_TOKENS)
    return jnp.concatenate(pieces, axis=1), new.T


# --- Their logits -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        pytest.param("logits", slice(-1), id="in one call"),
        pytest.param("logits", slice(-1, None), id="padded on the left"),
        pytest.param("cached", slice(None), id="in uneven chunks"),
    ],
)
def test_logits_are_those_of_transformers(compared, kind, rows, record_parity):
    difference = np.abs(compared.ours[kind] - compared.theirs["logits"])
    error = float(difference[rows][compared.mask[rows]].max())
    record_parity(*compared.case, error)
    assert error < LOGITS


def test_greedy_tokens_are_those_of_transformers(compared):
    np.testing.assert_array_equal(compared.ours["new"], compared.theirs["new"])


def test_gradient_is_that_of_transformers(compared):
    for path, ours, theirs in _gradients(compared):
        # That of a key's bias is zero, but for roundings: each query shifts all alike.
        allowed = GRADIENT * np.linalg.norm(theirs) + ROUNDED
        assert np.linalg.norm(ours - theirs) <= allowed, path


# Parameters that transformers calls otherwise than the tensors of its files.
_NAMED_ANEW = {"embed_out.weight": "lm_head.weight"}


def _gradients(compared: Compared):
    config = compared.model.config
    for tensor, _ in family_named(compared.peer.config.model_type).tensors_of(config):
        split = [f"decoder_lm/{path}".rpartition("/") for path in tensor.ours]
        ours = [compared.ours["grads"][module][leaf] for module, _, leaf in split]
        theirs = [np.empty_like(grad) for grad in ours]
        name = _NAMED_ANEW.get(tensor.name, tensor.name)
        foreign = compared.theirs["grads"][name]
        for source, target in tensor.pairs(config, foreign, theirs):
            target[...] = source
        yield from zip(tensor.ours, ours, theirs, strict=True)


# --- And back ---------------------------------------------------------------------


def test_what_is_written_is_what_was_read(compared, tmp_path):
    from transformers import AutoModelForCausalLM

    family = compared.peer.config.model_type
    config = compared.model.config
    hm.save_pretrained(tmp_path / "ours", config, compared.params, family=family)
    _check_same_bytes(compared.folder, tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    _check_same_logits(again.eval(), compared)


def _check_same_bytes(theirs: Path, ours: Path) -> None:
    one, other = (load_file(f / "model.safetensors") for f in (theirs, ours))
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def _check_same_logits(peer: Any, compared: Compared) -> None:
    import torch

    with torch.no_grad():
        logits = peer(torch.tensor(compared.tokens[:-1])).logits.numpy()
    np.testing.assert_allclose(logits, compared.theirs["logits"][:-1], atol=1e-5)


def test_every_family_is_compared():
    assert {family for family, _, _ in CASES} == set(family_names())
