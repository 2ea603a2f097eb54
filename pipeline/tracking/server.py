"""Connects to MLflow: the database under runs/ or a server, and the experiment in it, made once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.credentials import public, reveal
from pipeline.tracking import database
from pipeline.tracking.runs import Runs
from stages.contracts import UserError

PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Timeouts and retries while it is not known whether there is a server at all."""


def default_uri(runs: Path) -> str:
    """Returns the address of the SQLite database under runs/."""
    return database.uri_of(runs.resolve() / "mlflow.db")


def artifact_folder(runs: Path) -> Path:
    return runs.resolve() / "mlartifacts"


def connect(uri: str, experiment: str, runs: Path) -> Runs:
    """Opens the experiment; makes it, and the database under runs/, if there is none. An empty uri means the default.

    Raises UserError, within seconds, if the server does not answer.
    """
    is_ours = not uri
    if uri.partition("?")[0] in ("sqlite://", "sqlite:///", "sqlite:///:memory:"):
        raise UserError("a database in memory keeps no record; leave it empty, or name a file", "tracking.uri")
    uri = reveal(uri) if uri else default_uri(runs)
    runs.mkdir(parents=True, exist_ok=True)
    # Processes that first touch a new database at the same time break it: they take turns.
    lock = FileLock(runs.resolve() / "mlflow.lock")
    _silence()
    with _waits(IMPATIENT):
        from mlflow import MlflowClient

        try:
            with lock:
                if is_ours:
                    database.prepare(runs.resolve() / "mlflow.db", artifact_folder(runs))
                client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                found = client.get_experiment_by_name(experiment) or _create(client, uri, experiment, runs)
        except failures() as error:
            reason = explain(error).replace(uri, public(uri))
            raise UserError(f"cannot use MLflow at {public(uri)}: {reason}", "tracking.uri") from None
    if found.lifecycle_stage != "active":
        reason = f"{experiment!r} was deleted in MLflow; restore it there, or choose another name"
        raise UserError(reason, "tracking.experiment")
    for key, value in PATIENT.items():
        os.environ.setdefault(key, value)
    return Runs(client, str(found.experiment_id), lock)


def failures() -> tuple[type[Exception], ...]:
    """Returns the exceptions that MLflow raises when its server, its database, the database's driver or the disk fails.
    Any other exception is a bug."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, ImportError


def explain(error: Exception) -> str:
    """Returns an error in one line; of a long one, the beginning and the end, which names the cause."""
    line = public(" ".join(str(error).split())) or type(error).__name__
    return line if len(line) <= 240 else f"{line[:60]} ... {line[-180:]}"


def _create(client: Any, uri: str, experiment: str, runs: Path) -> Any:
    from mlflow.exceptions import MlflowException

    # A database keeps no files: they go under runs/. A server has its own place for them.
    is_server = urlsplit(uri).scheme in ("http", "https", "databricks", "uc")
    location = None if is_server else artifact_folder(runs).as_uri()
    try:
        # With this kind, MLflow does not ask what the experiment is for.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return client.get_experiment(client.create_experiment(experiment, location, tags))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)  # created on another machine meanwhile
        if found is None:
            raise
        return found


@contextmanager
def _waits(chosen: dict[str, str]) -> Iterator[None]:
    """Sets HTTP timeouts and retries for the block, except those that the user has set."""
    before = {key: os.environ.get(key) for key in chosen}
    ours = {key: value for key, value in chosen.items() if before[key] in (None, PATIENT[key])}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            del os.environ[key]


def _silence() -> None:
    """Turns off telemetry, messages about database migrations, tracebacks, and links with credentials."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # errors come as exceptions, which are shown in one line
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
