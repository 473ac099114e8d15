"""`python -m mecroute_cli`: the same program as `mecroute`."""

import sys

from mecroute_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
