"""A model over HTTP: the part of OpenAI's API that a language model can keep."""

from haiku_mqa.server.app import create_app
from haiku_mqa.server.service import Service

__all__ = ["Service", "create_app"]
