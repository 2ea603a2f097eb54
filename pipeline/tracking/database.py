"""Prepares MLflow's database under runs/: made whole or not at all, and moved with its folder."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from pipeline import disk
from stages.contracts import UserError

WAIT_SECONDS = 60
"""Time that a writer waits for another one; SQLite's default is 5 s."""


def uri_of(file: Path) -> str:
    """Returns SQLAlchemy's address of a SQLite file. Characters with a meaning in addresses use SQLite's own form."""
    path = file.as_posix()
    if any(sign in path for sign in "?%#"):
        # MLflow decodes once, SQLite once more; of an address that begins `sqlite:///`, MLflow makes a folder `file:`
        return f"sqlite+pysqlite:///file:{quote(quote(path))}?timeout={WAIT_SECONDS}&uri=true"
    return f"sqlite:///{path}?timeout={WAIT_SECONDS}"


def prepare(file: Path, artifacts: Path) -> None:
    """Makes, checks or moves the database; its files go to `artifacts`. The caller holds MLflow's lock.

    Raises UserError for a database that a kill left in the middle of an upgrade and that holds runs.
    """
    if not file.exists() or _is_half_made(file):
        _make(file)
    else:
        _move(file, artifacts)


def _make(file: Path) -> None:
    """Writes a new file beside it and renames it when it is complete: a kill or a full disk in between leaves
    nothing."""
    from mlflow import MlflowClient

    prefix = f".{file.name}.new"
    for leftover in file.parent.glob(f"{prefix}*"):
        leftover.unlink()
    new = file.with_name(f"{prefix}-{uuid4().hex[:8]}")  # MLflow caches databases by name
    new.touch()  # with the umask's permissions: SQLite's own files are never writable for the group
    uri = uri_of(new)
    MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
    disk.fsync(new)
    os.replace(new, file)
    disk.fsync(file.parent)


def _is_half_made(file: Path) -> bool:
    """Returns whether an upgrade was cut off. Raises UserError if the database holds runs."""
    try:
        with closing(_opened(file)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = list(connection.execute("SELECT * FROM alembic_version")) if "alembic_version" in tables else []
            half = not version or any(name.startswith("_alembic_tmp") for name in tables)
            runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0] if half and "runs" in tables else 0
    except sqlite3.Error as error:
        raise UserError(f"{file} is not a readable database: {error}; {_WAY_OUT}", "tracking.uri") from None
    if runs:
        raise UserError(f"an upgrade of {file} was cut off, and it holds {runs} runs; {_WAY_OUT}", "tracking.uri")
    return half


_WAY_OUT = "move it away: the next run makes a new one, and `python -m pipeline.tracking relog` shows all runs in it"


def _move(file: Path, artifacts: Path) -> None:
    """Rewrites addresses after the folder of runs was moved: MLflow stores them as absolute ones."""
    place = artifacts.as_uri()
    with closing(_opened(file)) as connection, connection:
        known = [old for (old,) in connection.execute("SELECT artifact_location FROM experiments") if old]
        for old in {old for old in known if old.endswith(f"/{artifacts.name}") and old != place}:
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (place, old))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                (place, len(old) + 1, len(old), old),
            )


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=WAIT_SECONDS)
