"""`python -m chatws.command`."""

from __future__ import annotations

import sys

from chatws.command.main import main

if __name__ == "__main__":
    sys.exit(main())
