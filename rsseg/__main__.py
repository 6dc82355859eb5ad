"""``python -m rsseg`` is ``rsseg``."""

import sys

from rsseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
