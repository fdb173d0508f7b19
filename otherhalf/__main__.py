"""`python -m otherhalf`: the console command `otherhalf`."""

import sys

from otherhalf.command import main

if __name__ == "__main__":
    sys.exit(main())
