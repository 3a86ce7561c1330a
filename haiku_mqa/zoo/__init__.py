"""How a host finds models: what is installed, and what each model is.

Listing reads metadata alone; jax is imported when a model is loaded, not before.
"""

from __future__ import annotations

from haiku_mqa.zoo.discovery import Entry, discover, load
from haiku_mqa.zoo.spec import API_VERSION, ModelMetadata, ModelSpec

__all__ = ["API_VERSION", "Entry", "ModelMetadata", "ModelSpec", "discover", "load"]
