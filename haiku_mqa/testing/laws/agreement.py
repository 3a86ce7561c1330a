"""Agreement with a second reading, with eager, with itself under other names."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from haiku_mqa.model import build
from haiku_mqa.testing.law import Law
from haiku_mqa.testing.laws.common import CLOSE, INF, gap, is_ours, only, seeds
from haiku_mqa.testing.reference import reference_logits
from haiku_mqa.testing.subject import BATCH, LENGTH, Subject


def _shape(subject: Subject, seed: int) -> float:
    tokens = subject.tokens(seed)
    logits = subject.logits(tokens)
    wanted = (BATCH, LENGTH, subject.vocab_size)
    good = logits.shape == wanted and logits.dtype == np.float32
    return 0.0 if good and np.isfinite(logits).all() else INF


def _reference(subject: Subject, seed: int) -> float:
    tokens = subject.tokens(seed)
    wanted = reference_logits(subject.model.config, subject.params, tokens[:1])
    return gap(subject.logits(tokens)[:1], wanted)


def _relabelling(subject: Subject, case: tuple[int, int]) -> float:
    """Renaming the tokens everywhere changes nothing but their names."""
    seed, order_seed = case
    tokens = subject.tokens(seed)
    order = np.random.default_rng(order_seed).permutation(subject.vocab_size)
    params = {path: dict(leaves) for path, leaves in subject.params.items()}
    embed = params["decoder_lm/embed"]
    embed["embeddings"] = embed["embeddings"][np.argsort(order)]
    if "decoder_lm/unembed" in params:
        params["decoder_lm/unembed"] = {
            name: leaf[..., np.argsort(order)]
            for name, leaf in params["decoder_lm/unembed"].items()
        }
    renamed = subject._full(params, order[tokens].astype(np.int32), {})
    return gap(np.asarray(renamed)[..., order], subject.logits(tokens))


def _eager(subject: Subject, seed: int) -> float:
    tokens = jnp.asarray(subject.tokens(seed))
    eager = subject.decoder.apply(subject.params, None, tokens).logits
    return gap(subject.logits(np.asarray(tokens)), eager)


def _gradients(subject: Subject, seed: int) -> float:
    tokens = jnp.asarray(subject.tokens(seed))

    def loss(params: Any) -> jax.Array:
        logits = subject.decoder.apply(params, None, tokens[:, :-1]).logits
        chosen = jax.nn.log_softmax(logits)[
            jnp.arange(BATCH)[:, None], jnp.arange(LENGTH - 1), tokens[:, 1:]
        ]
        return -chosen.mean()

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(subject.params))
    finite = all(bool(jnp.isfinite(g).all()) for g in gradients)
    return 0.0 if finite and any(bool((g != 0).any()) for g in gradients) else INF


def _bfloat16(subject: Subject, seed: int) -> float:
    config = dataclasses.replace(subject.model.config, dtype="bfloat16")
    tokens = subject.tokens(seed)
    narrow = np.asarray(_narrow(config, subject.params, tokens), np.float64)
    wide = np.asarray(subject.logits(tokens), np.float64)
    log_wide, log_narrow = (
        np.asarray(jax.nn.log_softmax(jnp.asarray(x), axis=-1)) for x in (wide, narrow)
    )
    divergence = (np.exp(log_wide) * (log_wide - log_narrow)).sum(axis=-1).mean()
    # A relative error, since decoders differ in how large their logits are.
    relative = gap(narrow, wide) / max(1.0, float(np.abs(wide).max()))
    return max(relative, float(divergence))


def _narrow(config: Any, params: Any, tokens: np.ndarray) -> jax.Array:
    model = build(config)
    return jax.jit(lambda p, t: model.apply(p, None, t).logits)(params, tokens)


AGREEMENT_LAWS: tuple[Law, ...] = (
    Law(
        name="shape",
        statement="Logits are finite float32 [B, T, V].",
        tolerance=0,
        cases=only(seeds),
        error=_shape,
    ),
    Law(
        name="reference",
        statement="Logits are those of the plain float64 decoder of this config.",
        tolerance=5e-5,
        cases=only(seeds),
        error=_reference,
        applies=is_ours,
        most=25,
    ),
    Law(
        name="relabelling",
        statement="Renaming tokens in the tables renames them in the logits.",
        tolerance=CLOSE,
        cases=only(st.tuples(seeds, seeds)),
        error=_relabelling,
        applies=is_ours,
    ),
    Law(
        name="jit",
        statement="Compiled and eager agree.",
        tolerance=CLOSE,
        cases=only(seeds),
        error=_eager,
        most=2,
    ),
    Law(
        name="gradients",
        statement="Gradients of the loss are finite, and not all zero.",
        tolerance=0,
        cases=only(seeds),
        error=_gradients,
        most=1,
    ),
    Law(
        name="bfloat16",
        statement="bfloat16 is near float32, by logits and by divergence.",
        tolerance=0.1,
        cases=only(seeds),
        error=_bfloat16,
        applies=is_ours,
        most=3,
    ),
)
