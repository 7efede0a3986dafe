"""`python -m chatws.cli`."""

from __future__ import annotations

import sys

from chatws.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
