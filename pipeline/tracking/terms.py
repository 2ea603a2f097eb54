"""Translates our records into MLflow's terms: names, limits, flat parameters, curves, links."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import labels
from pipeline.command import conf_files
from pipeline.fingerprint import flatten
from pipeline.record.headline import node_headline
from pipeline.record.job import Job
from pipeline.record.outcome import Outcomes
from pipeline.record.text import describe
from pipeline.tracking.parameters import job_parameters
from stages.contracts import CURVES

PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
NAME_CHARACTERS = 250
RUN_NAME_CHARACTERS = 60
"""Longest name of a job's run; MLflow's table shows about as many characters."""
DIGEST_CHARACTERS = 36
"""Longest digest that MLflow accepts."""

DATA_FACTS = {"digest": "data", "data_digest": "data", "tokens_digest": "tokens"}
"""Facts that are digests of data: of the source's own, of those a stage read, of tokens drawn from them."""
ENVIRONMENT = ("cpu", "gpus", "cores", "threads")
"""The part of a run's environment that decides whether it compares with another run."""
WORKFLOW = "workflowType=machine_learning"
LOSS = "distill"
SAME_LINE = ("sparsity", "seed", "schedule", "schedule.levels", "row", "experiment")
"""Swept parameters that do not begin another line in a chart over sparsity."""


@dataclass(frozen=True)
class Point:
    """A value of a curve; `when` in seconds since the epoch."""

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
    """Returns a valid name of a metric, parameter or tag. MLflow's alphabet is [A-Za-z0-9_./ -], and a name must be a
    path."""
    parts = re.sub(r"[^A-Za-z0-9_./ -]", "_", name).split("/")
    return short_name("/".join(part for part in parts if part not in ("", ".", ".."))) or "_"


def short_name(name: str, characters: int = NAME_CHARACTERS) -> str:
    """Returns the name, or its beginning with a digest of the whole, so that long names that begin alike stay
    different."""
    if len(name) <= characters:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: characters - len(digest) - 1]}-{digest}"


def run_name(job: Job) -> str:
    """Returns the name of a job's run: its swept parameters; outside a sweep its options if they are short, or else its
    experiment, or its model and data. Models and data go by their labels."""
    named = " ".join(f"{key}={labels.label(value) or value}" for key, value in job.swept_parameters.items())
    if job.sweep or 0 < len(named) <= RUN_NAME_CHARACTERS:
        return short_name(named or job.name, RUN_NAME_CHARACTERS)
    paths = [labels.source(job.config.get(section, {})) for section in ("model", "data")]
    about = " on ".join(filter(None, (labels.label(path) or labels.short_name(path) for path in paths)))
    return short_name(job.choices.get("experiment") or about or job.name, RUN_NAME_CHARACTERS)


def cut(text: str, characters: int) -> str:
    """Returns the text, or as much of it as fits, ending in `...`."""
    return text if len(text) <= characters else text[: characters - 3] + "..."


def texts(nested: Mapping[str, Any]) -> dict[str, str]:
    """Flattens values to text: {"training": {"lr": 0.1}} -> {"training.lr": "0.1"}; text stays, everything else becomes
    JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(nested).items()}


def curves(artifact: Path) -> Iterator[Point]:
    """Yields what a stage logged while it ran, from `metrics.jsonl` of its artifact."""
    path = artifact / CURVES
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for name, value in row["metrics"].items():
                yield Point(name, float(value), row["step"], row["time"])


def summary_points(meta: Mapping[str, Any], last_steps: Mapping[str, int], when: float) -> list[Point]:
    """Returns the summary of a result. A metric named like a curve is placed at the curve's end, as its latest
    value."""
    summary = {**meta["metrics"], "seconds": meta["seconds"]}
    return [Point(name, float(value), last_steps.get(name, 0), when) for name, value in summary.items()]


def fact_tags(meta: Mapping[str, Any]) -> dict[str, str]:
    """Returns the tags of a result: its facts, inputs, version and environment."""
    environment = meta["environment"]
    nested = {
        "version": str(meta["version"]),
        "input": meta["inputs"],
        "fact": {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta["facts"].items()},
    }
    return texts(nested) | environment_tags(environment)


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """Returns the commit and a part of the environment; the record among the files of the run has all of it."""
    chosen = {key: environment[key] for key in ENVIRONMENT if key in environment}
    commit = str(environment.get("git", "")).removesuffix("+dirty")
    return texts({"env": chosen}) | ({"mlflow.source.git.commit": commit} if commit else {})


def data_sets(meta: Mapping[str, Any]) -> list[DataSet]:
    """Returns the data that a result was made from, as far as its stage recorded their digests."""
    facts = meta["facts"]
    return [DataSet(name, facts[fact]) for fact, name in DATA_FACTS.items() if fact in facts]


def page(path: str) -> str:
    """Returns the address of a page of MLflow, from the `#` on. It names the workflow, without which MLflow opens its
    pages for agents."""
    return f"#/{path}?{WORKFLOW}"


def describe_nodes(outcomes: Outcomes, links: Mapping[str, str], experiment: str) -> str:
    """Returns a job's nodes as a Markdown table for the job's page, each linked to the run that made it."""
    lines = ["| node | status | seconds | |", "|---|---|--:|---|"]
    for name, outcome in outcomes.items():
        shown = f"[{name}]({page(f'experiments/{experiment}/runs/{links[name]}')})" if name in links else name
        metric = node_headline(outcome)
        said = cut(describe(metric) if metric else outcome.error, 200)
        lines.append(f"| {shown} | {outcome.status.label} | {outcome.seconds:.1f} | {said} |")
    return cut("\n".join(lines), TAG_CHARACTERS)


def series(job: Job) -> str:
    """Returns the name of a job's line in a chart over sparsity: its loss, weights that differ from those of that loss,
    and what else differs except sparsity and seed."""
    loss = job.choices.get(LOSS) or job.swept_parameters.get(LOSS) or ""
    shown = dict(job.swept_parameters)
    if any(file.choice == f"{LOSS}={loss}" for file in conf_files.conf_files()):
        shown |= {key: value for key, value in job_parameters(job).items() if key.startswith(f"{LOSS}.")}
    others = [f"{key}={value}" for key, value in shown.items() if key not in SAME_LINE and key != LOSS]
    return " ".join([loss, *others]).strip() or "all"
