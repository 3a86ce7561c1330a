"""A decoder over several devices is the decoder: every number but for rounding."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

import haiku_mqa as hm
from haiku_mqa.sharding import layout, shard
from haiku_mqa.testing import SHARDING_LAWS, ShardedSubject, check_sharding, try_law
from haiku_mqa.training import step
from haiku_mqa.training.loss import Loss

_by_positions = step._by_positions

MESHES = (
    "fsdp=8",
    "tensor=8",
    "data=2,tensor=4",
    "data=2,fsdp=2,tensor=2",
)
KINDS = {  # key/value heads, tied or not
    "multi-query": (1, True),
    "grouped": (2, False),
    "multi-head": (8, True),
    "untied multi-query": (1, False),
}
# One key/value head on every mesh, since that is the hard one; the others on one each.
PAIRS = [
    *((mesh, "multi-query") for mesh in MESHES),
    *(("data=2,tensor=4", kind) for kind in ("grouped", "untied multi-query")),
    ("fsdp=4,tensor=2", "multi-head"),
]
EXAMPLES = 3


@functools.cache
def plain(kind):
    kv_heads, is_tied = KINDS[kind]
    return hm.build(
        hm.DecoderConfig(
            vocab_size=64,
            num_layers=2,
            num_heads=8,
            num_kv_heads=kv_heads,
            d_model=32,
            d_ff=64,
            max_length=32,
            tie_embeddings=is_tied,
        )
    )


@functools.lru_cache(maxsize=2)
def subject_of(mesh, kind):
    return ShardedSubject(shard(plain(kind), mesh))


@pytest.mark.parametrize("law", SHARDING_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize(
    ("mesh", "kind"), PAIRS, ids=[f"{kind} over {mesh}" for mesh, kind in PAIRS]
)
def test_mesh_obeys_law(mesh, kind, law, record_law):
    result = try_law(law, subject_of(mesh, kind), EXAMPLES)
    record_law(result)
    assert result.passed, result.message


# --- Mutants ----------------------------------------------------------------------


def _tiled_heads(self, arrays):
    """Each device attends to head n % K, and not to n // G."""
    index = jax.lax.axis_index("tensor") % arrays["k"].shape[2]
    cut = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=index, slice_size=1, axis=2
    )
    return {**arrays, "k": cut(arrays["k"]), "v": cut(arrays["v"])}


def _mean_of_means(model, surprise):
    """Devices count alike in a loss, however many labels each has."""

    def mean(*arrays):
        return Loss(surprise(*arrays).mean, jnp.int32(1))

    return _by_positions(model, mean)


MUTANTS = {
    "devices attend to each other's heads": (
        (layout._Apart, "_with_own_heads", _tiled_heads),
        ("logits", "memory", "gradients"),
    ),
    "a loss is the mean of the devices' means": (
        (step, "_by_positions", _mean_of_means),
        ("gradients", "training"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name, record_kill):
    patch, killers = MUTANTS[name]
    with mock.patch.object(*patch):
        subject = ShardedSubject(shard(plain("grouped"), "data=2,tensor=4"))
        for killer in killers:
            law = next(law for law in SHARDING_LAWS if law.name == killer)
            result = try_law(law, subject, EXAMPLES)
            assert not result.passed, f"{name} survives the law {killer}"
            assert law.statement in result.message
            record_kill(f"sharding: {name}", killer, result)


def test_what_is_not_sharded_is_refused():
    with pytest.raises(ValueError, match=r"must be a ShardedModel.*got Model"):
        check_sharding(plain("multi-query"))
