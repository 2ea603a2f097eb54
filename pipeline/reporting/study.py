"""Collects everything in a report from the folders of jobs and the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.labels import label, short_name
from pipeline.record import folders
from pipeline.record.folders import Folder, JobRecord
from pipeline.record.result import Result
from pipeline.record.status import Status
from pipeline.references import Reference, load
from pipeline.reporting import analysis, choices, sharing, speed_verdicts, speeds, verdicts
from pipeline.reporting import problems as report_problems
from pipeline.reporting.analysis import Level, Naming, Row, SeedRow
from pipeline.reporting.results import Results
from pipeline.reporting.sharing import Group
from pipeline.reporting.speed_verdicts import SpeedComparison
from pipeline.reporting.speeds import Machine, Shares, Speed, SpeedRow
from pipeline.reporting.table import metrics, models, tidy
from pipeline.reporting.verdicts import Comparison

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Environment:
    """The environment in which some results were made."""

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
    """All contents of a report, computed from these two fields when first read."""

    folders: list[Folder]
    results: Results

    @cached_property
    def jobs(self) -> list[JobRecord]:
        return [job for folder in self.folders for job in folder.jobs]

    @cached_property
    def settings(self) -> list[dict[str, str]]:
        """Returns the options in which jobs differ, for each job."""
        return choices.settings(self.jobs)

    @cached_property
    def losses(self) -> list[str]:
        """Returns the loss of each job."""
        return [choices.loss(job.config) for job in self.jobs]

    @cached_property
    def table(self) -> DataFrame:
        """Returns the tidy table."""
        return tidy(self.jobs, self.settings, self.losses, self.results, self.speeds)

    @cached_property
    def references(self) -> list[Reference]:
        """Returns the tables of published figures that jobs name, complete."""
        named = {job.config.get("reference") for job in self.jobs} - {None, ""}
        return [reference for reference in load() if reference.table in named] if named else []

    @cached_property
    def metric(self) -> str:
        """Returns the metric by which models are compared first."""
        return analysis.main_metric(self.table, [reference.metric for reference in self.references])

    @cached_property
    def speeds(self) -> list[SpeedRow]:
        return speeds.collect(self.jobs, self.settings, self.results)

    @cached_property
    def machines(self) -> list[Machine]:
        return speeds.machines(self.results)

    @cached_property
    def groups(self) -> list[Group]:
        before = [it for folder in self.folders for it in folder.shared.values() if it.status == Status.DONE]
        return sharing.collect(self.jobs, {outcome.fingerprint for outcome in before}, self.results)

    @cached_property
    def environments(self) -> list[Environment]:
        return _environments(self.results.all())

    @cached_property
    def states(self) -> list[str]:
        """Returns the state of each job."""
        return report_problems.states(self.jobs, self.settings, self.results)

    @cached_property
    def problems(self) -> list[str]:
        """Returns what is failed, missing or running, in one line each."""
        return report_problems.problems(self.jobs, self.settings, self.states, self.table, self.results)

    @cached_property
    def common(self) -> dict[str, str]:
        """Returns what all jobs share, in a few words each."""
        return choices.common(self.jobs)

    @property
    def title(self) -> str:
        """Returns what was studied: the experiment, or the model and the data."""
        about = ", ".join(filter(None, [short_name(self.common.get(key, "")) for key in ("model", "data")]))
        return self.common.get("experiment") or about or self.folders[0].path.name

    @property
    def heading(self) -> str:
        """Returns the model and the data by their labels, or else the title."""
        paths = [self.common[key] for key in ("model", "data") if key in self.common]
        names = [label(path) or short_name(path) for path in paths]
        return " on ".join(names) if any(map(label, paths)) else self.title

    @property
    def columns(self) -> list[str]:
        """Returns the options in which jobs differ."""
        return list(dict.fromkeys(key for found in self.settings for key in found))

    @cached_property
    def model_columns(self) -> list[str]:
        """Returns `columns` without those that alone distinguish no two models: sections that do not make a model."""
        return analysis.needed(self.columns, self.models)

    @cached_property
    def models(self) -> list[Row]:
        """Returns a row of the table for each evaluated model."""
        return list(models(self.table).to_dict("records"))

    @cached_property
    def metrics(self) -> list[str]:
        """Returns the metrics of quality, the main one first."""
        return sorted(metrics(self.table), key=lambda name: name != self.metric)

    @cached_property
    def naming(self) -> Naming:
        return analysis.naming(self.table)

    @cached_property
    def qualities(self) -> dict[str, dict[str, Row]]:
        """Returns the rows of the table by evaluation and metric."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.table[self.table["evaluation"] != ""].to_dict("records"):
            found.setdefault(row["evaluation"], {}).update({row["metric"]: row} if row["metric"] else {})
        return found

    def rows(self, metric: str) -> list[Row]:
        """Returns a row of the table for each model."""
        return list(self.table[(self.table["metric"] == metric) & (self.table["evaluation"] != "")].to_dict("records"))

    def dense(self, metric: str) -> list[Row]:
        """Returns the dense models in floating point."""
        return [row for row in self.rows(metric) if row["kind"] == "dense_eval"]

    @cached_property
    def _speeds(self) -> dict[str, Speed | None]:
        return {row["checkpoint"]: speeds.fastest(self.table, row["checkpoint"]) for row in self.models}

    def speed(self, model: Row) -> Speed | None:
        return self._speeds[model["checkpoint"]] if model["checkpoint"] else None

    def levels(self, metric: str) -> list[Level]:
        return analysis.levels(self.table, self.naming, metric)

    def higher_is_better(self, metric: str) -> bool:
        return analysis.higher_is_better(self.table, metric)

    @cached_property
    def seeds(self) -> list[SeedRow]:
        return analysis.over_seeds(self.table)

    @cached_property
    def shares(self) -> list[Shares]:
        return speeds.shares(self.speeds)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        return verdicts.compare(self.jobs, self.table, self.references)

    @cached_property
    def speed_comparisons(self) -> list[SpeedComparison]:
        return speed_verdicts.compare(self.jobs, self.speeds, self.machines)

    @property
    def speed_references(self) -> list[Reference]:
        """Returns published figures with speed of the tables that jobs name; none if no speed was measured."""
        return speed_verdicts.published(self.jobs) if self.speeds else []


def collect(paths: Sequence[Path], runs: Path | None, otherwise: Path) -> Study:
    """Collects a study. `runs` is the folder with the store; None means the one above each job, or `otherwise`.

    Raises UserError if there is nothing to report.
    """
    found = [folders.read(path) for path in paths]
    results = Results([job for folder in found for job in folder.jobs], runs, otherwise)
    return Study(found, results)


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
