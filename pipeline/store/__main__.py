"""`python -m pipeline.store verify|gc|ls`: checks the store, frees space, lists results."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from pipeline import disk
from pipeline.fingerprint import canonical_json, flatten
from pipeline.record.runs_folder import default_runs
from pipeline.store import garbage, record
from pipeline.store.store import SHORT, Entry, Store
from stages.contracts import UserError

SHOWN_DIFFERENCES = 4
KEEP_DAYS_RUNS, KEEP_DAYS_CACHE = 1.0, 30.0
"""A run in progress uses results that no plan on disk names yet, and the cache serves other projects as well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0; 1 if `verify` found damage; 2 if the call was wrong."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    runs = options.runs
    try:
        if not runs.is_dir():
            raise UserError(f"no folder {runs}; give the one that holds the store", "--runs")
        if options.cache and not Path(options.cache).is_dir():
            raise UserError(f"no folder {options.cache}; give the cache of sources", "--cache")
        store = Store(Path(options.cache) / "store", "cache.folder") if options.cache else Store(runs / "store")
        if options.command == "ls":
            return _ls(store, runs, console)
        if options.command == "verify":
            return _verify(store, Store(runs / "store"), options.remove, console)
        return _gc(store, runs, options, console)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.store", description=__doc__)
    parser.add_argument("--runs", type=Path, default=default_runs(), help="folder of runs (%(default)s)")
    parser.add_argument(
        "--cache", metavar="FOLDER", help="work on the sources in this cache (cache.folder), not on runs"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="list the results")
    verify = commands.add_parser("verify", help="read every file and compare it with its recorded sha256")
    verify.add_argument("--remove", action="store_true", help="delete damaged results, so that the next run makes them")
    gc = commands.add_parser("gc", help="show what no plan needs; delete it with --yes")
    gc.add_argument("--yes", action="store_true", help="delete")
    gc.add_argument(
        "--inputs", action="store_true", help="also what kept results were made from, unless a plan names it"
    )
    gc.add_argument(
        "--keep-days",
        type=float,
        metavar="N",
        help=f"keep younger results ({KEEP_DAYS_RUNS:g}; in the cache {KEEP_DAYS_CACHE:g})",
    )
    return parser


def _ls(store: Store, runs: Path, console: Console) -> int:
    entries = list(store.entries())
    jobs = Counter(fingerprint for planned in garbage.plans(runs).values() for fingerprint in planned)
    everywhere = [*entries, *_users(store, runs)]
    users = Counter(source for entry in everywhere for source in set(entry.meta["inputs"].values()))
    told_apart = _differences(entries)
    table = Table(box=None, header_style="bold")
    for column in ("stage", "fingerprint"):
        table.add_column(column, no_wrap=True)
    for column in ("age", "size", "in jobs", "input of"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("where it differs from others of its stage", overflow="fold")
    for entry in entries:
        table.add_row(
            entry.stage,
            entry.path.name,
            _format_age(garbage.age_seconds(entry)),
            disk.format_bytes(disk.used_bytes([entry.path])),
            str(jobs[entry.fingerprint]),
            str(users[entry.fingerprint]),
            told_apart[entry.path],
        )
    if entries:
        console.print(table)
    total = disk.format_bytes(disk.used_bytes(entry.path for entry in entries))
    console.print(f"{_count(entries, 'result')} in {store.root}, {total} (hard-linked files once)", highlight=False)
    return 0


def _differences(entries: Iterable[Entry]) -> dict[Path, str]:
    """Returns for each entry the settings and inputs in which the entries of its stage differ."""
    settings: dict[str, dict[Path, dict[str, str]]] = {}
    for entry in entries:
        inputs = {role: fingerprint[:8] for role, fingerprint in entry.meta["inputs"].items()}
        config = {key: canonical_json(value).strip('"') for key, value in flatten(entry.meta["config"]).items()}
        settings.setdefault(entry.stage, {})[entry.path] = {"version": entry.meta["version"], **config, **inputs}
    shown = {}
    for stage in settings.values():
        keys = dict.fromkeys(key for made_with in stage.values() for key in made_with)
        differing = [key for key in keys if len({made_with.get(key) for made_with in stage.values()}) > 1]
        for path, made_with in stage.items():
            pairs = [f"{key}={made_with[key]}" for key in differing if key in made_with]
            more = f" and {len(pairs) - SHOWN_DIFFERENCES} more" if len(pairs) > SHOWN_DIFFERENCES else ""
            shown[path] = ", ".join(pairs[:SHOWN_DIFFERENCES]) + more
    return shown


def _verify(store: Store, runs: Store, remove: bool, console: Console) -> int:
    folders = list(store.folders())
    sizes = {path: sum(facts["bytes"] for facts in record.read(path).get("files", {}).values()) for path in folders}
    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    damaged: list[Path] = []

    def say(path: Path, what: str) -> None:
        console.print(f"{path.parent.name}/{path.name}: {what}", markup=False, highlight=False)

    def delete(owner: Store, path: Path) -> None:
        say(path, "deleted" if owner.remove(path) else "not deleted: a process works there")

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("verify", total=sum(sizes.values()))
        for path in folders:
            troubles = record.verify(path, lambda count: progress.advance(task, count))
            for trouble in troubles:
                say(path, trouble)
            if troubles:
                damaged.append(path)
    doubtful = list(_doubtful(damaged, {store.root: store, runs.root: runs}))
    for _, path in doubtful:
        say(path, "made from a damaged result by a version that did not compare its inputs: it may be wrong")
    if remove:
        for path in damaged:
            delete(store, path)
        for owner, path in doubtful:
            delete(owner, path)
    size = disk.format_bytes(sum(sizes.values()))
    verdict = f"{len(damaged) or 'none'} damaged" + (f", {len(doubtful)} in doubt" if doubtful else "")
    console.print(f"{_count(folders, 'result')}, {size}: {verdict}", highlight=False)
    return 1 if damaged else 0


def _doubtful(damaged: Sequence[Path], stores: Mapping[Path, Store]) -> Iterable[tuple[Store, Path]]:
    """Returns the results that were made from damaged ones, through any number of stages, and may be wrong too. Results
    made since inputs are compared before use are whole, and so is everything made from them."""
    waiting = {path.name for path in damaged}
    entries = [(store, entry) for store in stores.values() for entry in store.entries()]
    seen: set[Path] = set(damaged)
    while waiting:
        used = {
            (store, entry)
            for store, entry in entries
            if entry.path not in seen
            and not entry.meta.get("inputs_compared")
            and waiting & {fingerprint[:SHORT] for fingerprint in entry.meta["inputs"].values()}
        }
        seen |= {entry.path for _, entry in used}
        waiting = {entry.path.name for _, entry in used}
        yield from ((store, entry.path) for store, entry in sorted(used, key=lambda item: str(item[1].path)))


def _gc(store: Store, runs: Path, options: argparse.Namespace, console: Console) -> int:
    planned = garbage.planned(runs)
    keep_days = options.keep_days
    if keep_days is None:
        keep_days = KEEP_DAYS_CACHE if options.cache else KEEP_DAYS_RUNS
    found = list(garbage.collect(store, planned, keep_days, not options.inputs, _users(store, runs)))
    freed = disk.freed_bytes(item.path for item in found)
    linked = disk.used_bytes(item.path for item in found) - freed
    for item in found:
        line = f"{item.path.relative_to(store.root)}  {disk.format_bytes(disk.used_bytes([item.path]))}  {item.why}"
        if options.yes:
            freed_here = disk.freed_bytes([item.path])
            if not store.remove(item.path):
                line += "  not deleted: a process works there"
                freed -= freed_here
        console.print(line, markup=False, highlight=False)
    elsewhere = (
        f"; {disk.format_bytes(linked)} more stays, hard-linked elsewhere (MLflow's artifacts?)" if linked else ""
    )
    verb = "freed" if options.yes else "to free"
    console.print(f"{_count(found, 'item')}, {disk.format_bytes(freed)} {verb}{elsewhere}", highlight=False)
    origins = "" if options.inputs else ", what that was made from"
    console.print(f"kept: what a plan names{origins}, and what is younger than {keep_days:g} days", highlight=False)
    if found and not options.yes:
        console.print("nothing was deleted; add --yes to do it", highlight=False)
    return 0


def _users(store: Store, runs: Path) -> Iterable[Entry]:
    """Returns the results of runs that were made from the cache's."""
    made = Store(runs / "store")
    return () if made.root == store.root else made.entries()


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) != 1 else ''}"


def _format_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
