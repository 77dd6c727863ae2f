"""`python -m stanley_fast` is the command `stanley-fast`."""

import sys

from stanley_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
