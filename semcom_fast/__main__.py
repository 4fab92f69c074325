"""`python -m semcom_fast` is the command `semcom-fast`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
