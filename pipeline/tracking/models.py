"""Logs the checkpoints that a job evaluated as MLflow's logged models, which MLflow compares in a table of their own.

A logged model has the options and the sparsity of its checkpoint, and what evaluations measured of it. Its weights stay
in the store; its tag `folder` says where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from pipeline.store.store import Entry
from pipeline.tracking.runs import Runs
from pipeline.tracking.terms import PARAM_CHARACTERS, TAG_CHARACTERS, cut, summary_points, texts
from stages.contracts import Metrics
from stages.index import described

FORBIDDEN = re.compile(r"[/:.%\"']")
"""Characters that MLflow forbids in the name of a logged model."""


def log_models(runs: Runs, job_run: str, entries: Mapping[str, Entry], links: Mapping[str, str]) -> None:
    """Logs the models. `entries` are the stored results of a job, `links` the runs that made them, both by node."""
    from mlflow.entities import LoggedModelOutput

    node_of = {entry.fingerprint: node for node, entry in entries.items()}
    known = {output.model_id for output in runs.client.get_run(job_run).outputs.model_outputs}
    for node, entry in entries.items():
        model = node_of.get(entry.meta["inputs"].get("model", "")) if described(entry.stage).makes is Metrics else None
        if not model or not {node, model} <= links.keys():
            continue
        model_id = _logged_model(runs, model, entries[model], links[model])
        made = datetime.fromisoformat(entry.meta["created"]).timestamp()
        points = [point for point in summary_points(entry.meta, {}, made) if point.name != "seconds"]
        runs.log(links[node], points=points, model=model_id)
        if model_id not in known:
            known.add(model_id)
            runs.client.log_outputs(job_run, [LoggedModelOutput(model_id, step=0)])


def _logged_model(runs: Runs, node: str, entry: Entry, maker: str) -> str:
    """Returns the id of a checkpoint's logged model, and makes it if MLflow does not have it yet."""
    with runs.lock:
        same = f"tags.fingerprint = '{entry.fingerprint}'"
        if found := runs.client.search_logged_models([runs.experiment], same, max_results=1):
            return str(found[0].model_id)
        zeros = {name: value for name, value in entry.meta["metrics"].items() if name.endswith("sparsity")}
        params = {key: cut(value, PARAM_CHARACTERS) for key, value in texts(entry.meta["config"] | zeros).items()}
        tags = {"fingerprint": entry.fingerprint, "stage": entry.stage, "folder": str(entry.path.absolute())}
        made = runs.client.create_logged_model(
            runs.experiment, FORBIDDEN.sub("_", node), maker, params=params, model_type="checkpoint",
            tags={key: cut(value, TAG_CHARACTERS) for key, value in tags.items()} | {"mlflow.model.isExternal": "true"},
        )  # fmt: skip
        runs.client.finalize_logged_model(made.model_id, "READY")
        return str(made.model_id)
