"""Files and data sets of a run in MLflow."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.tracking.runs import Runs
from pipeline.tracking.terms import DIGEST_CHARACTERS, DataSet

SMALL_BYTES = 1_000_000


def log_data(runs: Runs, run_id: str, found: Iterable[DataSet], context: str) -> None:
    """Logs digests as MLflow's data sets, which the dashboard shows in a column of their own."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(data.name, data.digest[:DIGEST_CHARACTERS], "sha256", json.dumps({"sha256": data.digest})),
            [InputTag("mlflow.data.context", context)],
        )
        for data in found
    ]
    if inputs:
        runs.client.log_inputs(run_id, datasets=inputs)


def log_files(runs: Runs, run_id: str, folder: Path, which: str) -> None:
    """Logs the files of a result: `which` is all, small (under 1 MB) or none."""
    if which == "none":
        return
    root = _local(runs.client.get_run(run_id).info.artifact_uri)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if which == "small" and path.stat().st_size >= SMALL_BYTES:
            continue
        inside = path.relative_to(folder)
        if root:
            _link(path, root / inside)
        else:
            runs.client.log_artifact(run_id, str(path), inside.parent.as_posix() if inside.parent.name else None)


def _local(artifact_uri: str) -> Path | None:
    """Returns the folder of a run's artifacts if it is on a mounted file system, else None."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(artifact_uri) if Path(artifact_uri).is_absolute() else None


def _link(source: Path, target: Path) -> None:
    """Links a file, so that weights are stored once; copies it if the file systems do not allow that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
