"""Caches of every form, filled: what tests of files, rows and prefixes share."""

from __future__ import annotations

import functools

import jax

from haiku_mqa.cache import KVCache
from tests.models import EXAMPLES, example, example_params, example_tokens

ROWS, READ, ROOM = 2, 11, 16
FORMS = {
    "static": ("grouped", {}),
    "bfloat16": ("grouped", {"dtype": "bfloat16"}),
    "int8": ("grouped", {"dtype": "int8"}),
    "ring": ("capped", {"ring": True}),
    "endless": ("windowed", {"ring": True}),
    "int8 ring": ("capped", {"ring": True, "dtype": "int8"}),
}


@functools.cache
def reader(name: str):
    """Returns a compiled call with a cache, of an example."""

    @jax.jit
    def read(params, tokens, cache, mask=None):
        out = example(name).apply(params, None, tokens, cache=cache, mask=mask)
        return out.logits, out.cache

    return functools.partial(read, example_params(name))


@functools.cache
def filled(form: str) -> KVCache:
    """Returns a cache of a form whose rows have read ``READ`` tokens."""
    name, options = FORMS[form]
    empty = example(name).init_cache(ROWS, ROOM, **options)
    return reader(name)(example_tokens(name, ROWS, READ), empty)[1]


def config_of(form: str):
    """Returns the config of a form's example."""
    return EXAMPLES[FORMS[form][0]]
