"""Export a checkpoint for the sparse CPU engine, run it, measure it, or show what it holds."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from engine.errors import EngineError

COMMANDS = {
    "export": "engine.commands.export",
    "generate": "engine.commands.generate",
    "bench": "engine.commands.bench",
    "bench-layers": "engine.commands.bench_layers",
    "bench-stack": "engine.commands.bench_stack",
    "info": "engine.commands.info",
}
"""Name -> module with `add_arguments(parser)` and `run(args)`; its docstring is the command's help. None of them
imports torch before it runs."""


def main(arguments: list[str] | None = None) -> int:
    prog = "squarehead-engine" if Path(sys.argv[0]).stem == "squarehead-engine" else "python -m engine"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, path in COMMANDS.items():
        module = importlib.import_module(path)
        about = module.__doc__ or ""
        command = parsers.add_parser(name, help=about.splitlines()[0].rstrip("."), description=about)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
