"""`python -m pipeline.reproduce [TABLE [key=value ...]]`: reproduces a table of the paper, or a similar one on two
cores.

Runs the sweep of conf/experiment/TABLE.yaml, then reports it, with the published figures beside ours. The same command
resumes an interrupted one. Without TABLE: lists the tables, what they need and how long they take. Options after the
table are those of the pipeline; dry_run=true only prints what would run, and how long that takes.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from pipeline import CONF
from pipeline.record.runs_folder import default_runs
from pipeline.table import table_console
from stages.contracts import UserError

EXPERIMENTS = CONF / "experiment"
NEEDS, TAKES = "Needs: ", "Takes: "


@dataclass(frozen=True)
class PaperTable:
    name: str
    """Name of the experiment, as `experiment=` takes it: `paper/t5`, `local/whisper`."""
    what: str
    needs: str
    takes: str
    jobs: int


def tables() -> list[PaperTable]:
    """Returns the tables, in alphabetical order."""
    return [_read(path) for path in sorted(EXPERIMENTS.glob("*/*.yaml"))]


def _read(path: Path) -> PaperTable:
    """Parses the comment that begins the file: what it is, `Needs: ... Takes: ...`."""
    text = path.read_text(encoding="utf-8")
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()[1:])
    what, _, rest = " ".join(line.lstrip("# ") for line in lines).partition(NEEDS)
    needs, _, takes = rest.partition(TAKES)
    params = yaml.safe_load(text).get("hydra", {}).get("sweeper", {}).get("params", {})
    jobs = 1
    for values in params.values():
        jobs *= len(str(values).split(","))
    name = path.relative_to(EXPERIMENTS).with_suffix("").as_posix()
    return PaperTable(name, what.strip(), needs.strip(" ."), takes.strip(" ."), jobs)


def show(found: Sequence[PaperTable], console: Console) -> None:
    table = Table(title="tables", title_justify="left", box=None, pad_edge=False)
    for column in ("TABLE", "jobs", "takes", "what it is"):
        table.add_column(column, no_wrap=column in ("TABLE", "jobs"), justify="right" if column == "jobs" else "left")
    for one in found:
        needs = "" if one.needs == "nothing" else f" [dim]Needs {one.needs}.[/]"
        table.add_row(one.name, str(one.jobs), one.takes, one.what + needs)
    console.print(table)
    console.print("ARGS=dry_run=true prints what would run on this machine, and how long that takes.", highlight=False)


def reproduce(name: str, options: Sequence[str]) -> int:
    """Runs a table's sweep in a folder of its own, and reports it even if jobs failed. Returns the exit code of the
    sweep, or of the report where the sweep went well. Raises UserError for a table that there is not."""
    if name not in (have := [table.name for table in tables()]):
        raise UserError(f"there is no table {name!r}; there are: {', '.join(have)}", "TABLE")
    given = dict(option.partition("=")[::2] for option in options)
    runs = Path(given.get("runs") or default_runs())
    folder = runs / "sweeps" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    sweep = [sys.executable, "-m", "pipeline", "-m", f"experiment={name}", *options]
    if given.get("dry_run") == "true":
        return subprocess.call(sweep)
    made = subprocess.call([*sweep, f"hydra.sweep.dir={_quoted(folder)}"])
    if not folder.exists():  # it stopped before its first job and printed why
        return made
    reported = subprocess.call([sys.executable, "-m", "pipeline.report", str(folder)])
    return made or reported


def _quoted(path: Path) -> str:
    """Quotes a value for Hydra's grammar."""
    escaped = str(path).replace("'", r"\'")
    return f"'{escaped}'"


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    if not arguments:
        show(tables(), table_console())
        return
    try:
        sys.exit(reproduce(arguments[0], arguments[1:]))
    except UserError as error:
        sys.exit(f"squarehead: {error}")
    except KeyboardInterrupt:
        sys.exit("squarehead: interrupted; finished stages are stored, the same command continues")


if __name__ == "__main__":
    main()
