"""The memory of the past: keys and values of the tokens that were read."""

from haiku_mqa.cache.int8 import Int8Array
from haiku_mqa.cache.kv_cache import KVCache, init_cache
from haiku_mqa.cache.layers import LayerCache, RingCache

__all__ = ["Int8Array", "KVCache", "LayerCache", "RingCache", "init_cache"]
