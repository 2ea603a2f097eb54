"""`python -m pipeline.dashboard`: see `pipeline.tracking.dashboard`."""

import sys

from pipeline.tracking.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
