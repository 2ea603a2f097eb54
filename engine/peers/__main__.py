"""`python -m engine.peers NAME`: makes the side environment of a peer."""

from __future__ import annotations

import argparse
import sys

from engine.errors import EngineError
from engine.peers.environments import ENVIRONMENTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.peers", description=__doc__)
    parser.add_argument("name", choices=ENVIRONMENTS, help="the peer whose environment is to be made")
    environment = ENVIRONMENTS[parser.parse_args().name]
    print(environment.notice, file=sys.stderr)
    try:
        environment.make()
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
