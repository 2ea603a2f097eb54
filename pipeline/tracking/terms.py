"""Our records in MLflow's terms: its names, its limits, flat parameters, curves, links."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.credentials import public
from pipeline.fingerprint import flatten
from pipeline.record.headline import node_headline
from pipeline.record.job import Job
from pipeline.record.outcome import Outcomes
from pipeline.record.text import describe
from stages.contracts import CURVES

PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
NAME_CHARACTERS = 250
DIGEST_CHARACTERS = 36
"""MLflow refuses more."""

DATA_FACTS = {"digest": "data", "data_digest": "data", "tokens_digest": "tokens"}
"""Facts that are digests of data: of the source's own, of those a stage read, of tokens drawn from them."""
WORKFLOW = "workflowType=machine_learning"
LOSS = "distill"
SAME_LINE = ("sparsity", "seed", "schedule", "schedule.levels", "row", "experiment")
"""Swept parameters that do not begin another line in a chart over sparsity."""


@dataclass(frozen=True)
class Point:
    """One value of a curve; `when` in seconds since the epoch."""

    name: str
    value: float
    step: int
    when: float


@dataclass(frozen=True)
class DataSet:
    """Data that went into a result."""

    name: str
    digest: str


def clean_name(name: str) -> str:
    """A name of a metric, parameter or tag. MLflow's alphabet is [A-Za-z0-9_./ -], and a name must be a path."""
    parts = re.sub(r"[^A-Za-z0-9_./ -]", "_", name).split("/")
    return short_name("/".join(part for part in parts if part not in ("", ".", ".."))) or "_"


def short_name(name: str, characters: int = NAME_CHARACTERS) -> str:
    """The name, or its beginning with a digest of the whole, so that long names that begin alike stay different."""
    if len(name) <= characters:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: characters - len(digest) - 1]}-{digest}"


def cut(text: str, characters: int) -> str:
    """The text, or as much of it as fits, ending in `...`."""
    return text if len(text) <= characters else text[: characters - 3] + "..."


def texts(nested: Mapping[str, Any]) -> dict[str, str]:
    """{"training": {"lr": 0.1}} -> {"training.lr": "0.1"}: text as it is, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(nested).items()}


def job_params(job: Job) -> dict[str, str]:
    """What to compare jobs by: `sparsity` 0.7, `seed` 0 and the rest of the configuration; `distill` ce and what else
    was chosen of groups; and swept parameters that are neither, as they were typed.

    For a swept group, only the chosen option is logged: `distill.kd` and `distill.squarehead` would take two of the
    three places in which MLflow's comparison begins, before `sparsity`. Stages' runs have them."""
    swept_groups = {group for group in job.choices if group in job.dials}
    settings = {key: value for key, value in texts(job.config).items() if key.partition(".")[0] not in swept_groups}
    return {key: public(value) for key, value in (job.dials | job.choices | settings).items()}


def curves(artifact: Path) -> Iterator[Point]:
    """What a stage logged while it ran: `metrics.jsonl` of its artifact."""
    path = artifact / CURVES
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for name, value in row["metrics"].items():
                yield Point(name, float(value), row["step"], row["time"])


def summary_points(meta: Mapping[str, Any], last_steps: Mapping[str, int], when: float) -> list[Point]:
    """The summary of a result. One named like a curve stands at the curve's end, as its latest value."""
    summary = {**meta["metrics"], "seconds": meta["seconds"]}
    return [Point(name, float(value), last_steps.get(name, 0), when) for name, value in summary.items()]


def fact_tags(meta: Mapping[str, Any]) -> dict[str, str]:
    """What a stage found out, its inputs, its version and the environment."""
    environment = meta["environment"]
    nested = {
        "version": str(meta["version"]),
        "input": meta["inputs"],
        "fact": {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta["facts"].items()},
    }
    return texts(nested) | environment_tags(environment)


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    commit = str(environment.get("git", "")).removesuffix("+dirty")
    return texts({"env": environment}) | ({"mlflow.source.git.commit": commit} if commit else {})


def data_sets(meta: Mapping[str, Any]) -> list[DataSet]:
    """The data that a result was made of or from, as far as its stage stated their digests."""
    facts = meta["facts"]
    return [DataSet(name, facts[fact]) for fact, name in DATA_FACTS.items() if fact in facts]


def page(path: str) -> str:
    """The address of a page of MLflow, from the `#` on. Without the workflow MLflow opens it as one about agents."""
    return f"#/{path}?{WORKFLOW}"


def describe_nodes(outcomes: Outcomes, links: Mapping[str, str], experiment: str) -> str:
    """A job's nodes as a Markdown table, each linked to the run that made it: MLflow shows it on the job's page."""
    lines = ["| node | status | seconds | |", "|---|---|--:|---|"]
    for name, outcome in outcomes.items():
        shown = f"[{name}]({page(f'experiments/{experiment}/runs/{links[name]}')})" if name in links else name
        metric = node_headline(outcome)
        said = cut(describe(metric) if metric else outcome.error, 200)
        lines.append(f"| {shown} | {outcome.status.label} | {outcome.seconds:.1f} | {said} |")
    return cut("\n".join(lines), TAG_CHARACTERS)


def series(job: Job) -> str:
    """The line of a job in a chart over sparsity: its loss, and what else differs but for sparsity and seed."""
    others = [f"{key}={value}" for key, value in job.dials.items() if key not in SAME_LINE and key != LOSS]
    loss = job.choices.get(LOSS) or job.dials.get(LOSS) or ""
    return " ".join([loss, *others]).strip() or "all"
