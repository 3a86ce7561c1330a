"""What a person types: ``haiku-mqa``, a file for each verb.

No module here imports jax before a verb needs it, so that ``--help``, ``--version``
and ``zoo list`` answer at once.
"""

from haiku_mqa.cli.main import main

__all__ = ["main"]
