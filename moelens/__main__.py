"""The command `python -m moelens`."""

import sys

from moelens.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
