"""``python -m energyppl``."""

import sys

from energyppl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
