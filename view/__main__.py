"""`python -m view`."""

import sys

from view.command import main

if __name__ == "__main__":
    sys.exit(main())
