"""``python -m haiku_mqa`` is ``haiku-mqa``."""

import sys

from haiku_mqa.cli import main

if __name__ == "__main__":
    sys.exit(main())
