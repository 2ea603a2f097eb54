"""The pipeline in notebooks and scripts: a job is planned, run and read back as objects and as a table.

    from pipeline import api

    job = api.plan("sparsity=0.5", "distill=squarehead")   # overrides as on the command line; runs nothing
    result = api.run(job)                                   # what is stored is not run again
    api.frame(result)                                       # a row for each node and metric
    model, masks = api.load(result.checkpoint())            # the finished model

It goes the way of the command line: the same configuration, store and records. Options that are wrong raise UserError,
a node that fails raises JobFailedError. Sweeps are for the command line; in Python, a loop does, and what its jobs
share is made once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.command.compose import composed_for_python
from pipeline.command.errors import EXPECTED, JobFailedError, as_user_error
from pipeline.command.job import PlannedJob, plan_job
from pipeline.plan import Stores
from pipeline.preflight import Problems, early_problems
from pipeline.recipes import build
from pipeline.record.headline import Headline, headline
from pipeline.record.job import RECORD, SUMMARY, Job, ended_jobs
from pipeline.record.outcome import Outcomes, status_of
from pipeline.record.status import Status
from pipeline.resolve import resolve
from pipeline.schema import Config, parse
from pipeline.store.record import check_contents
from pipeline.table import finished_models, table_console
from stages.contracts import Artifact, Checkpoint, UserError
from stages.index import described

if TYPE_CHECKING:
    from pandas import DataFrame

    from stages.masks import Masks

__all__ = ["JobFailedError", "Loaded", "PlannedJob", "Result", "UserError", "compose", "frame", "load", "plan",
           "problems", "read", "results", "run"]  # fmt: skip
COLUMNS = ("job", "node", "stage", "status", "fingerprint", "seconds", "metric", "value", "stderr", "unit",
           "higher_is_better", "recovery")  # fmt: skip
"""Columns of `frame`. Those of the metric are empty for a node that measured nothing."""


class Loaded(NamedTuple):
    model: Any
    """A module of transformers, in eval mode; a quantized one with its int8 linears."""
    masks: Masks
    """Name of a linear -> which of its weights are kept; empty for a dense model."""


@dataclass(frozen=True)
class Result:
    """A finished job, as read from its record."""

    job: Job
    """Its name, options, environment and folder."""
    outcomes: Outcomes
    """Status, metrics and seconds of each node, by name."""

    @property
    def headline(self) -> Headline:
        """Returns quality, recovery, sparsity and speed-up, under the same names for every job."""
        return headline(self.outcomes)

    @property
    def status(self) -> Status:
        return status_of(self.outcomes)[0]

    def artifact(self, node: str) -> Artifact:
        """Returns what a node published; `.path` is its folder. Raises UserError for a node without a stored result."""
        if node not in self.outcomes:
            raise UserError(f"no node {node!r} in this job; there are: {', '.join(self.outcomes)}")
        outcome, config = self.outcomes[node], parse(self.job.config)
        spec = described(outcome.stage)
        stores = Stores.below(Path(config.runs), Path(config.cache.folder))
        entry = stores.for_stage(spec).find(outcome.stage, outcome.fingerprint)
        if entry is None:
            raise UserError(f"the result of {node} is not stored ({outcome.status.label}); the same job makes it")
        return entry.artifact(spec.makes)

    def checkpoint(self, node: str = "") -> Checkpoint:
        """Returns the model of a node, such as `finetune_50`; without a name, the finished model in floating point."""
        node = node or self.models()["model"]
        found = self.artifact(node)
        if not isinstance(found, Checkpoint):
            have = [name for name, it in self.outcomes.items() if issubclass(described(it.stage).makes, Checkpoint)]
            raise UserError(f"{node} is not a model; those of this job: {', '.join(have)}")
        return found

    def models(self) -> dict[str, str]:
        """Returns the nodes that made the finished models, by label: `model` and `int8 model`."""
        graph = build(parse(self.job.config))
        return finished_models({name: node for name, node in graph.items() if name in self.outcomes})


def compose(*overrides: str) -> Config:
    """Returns the checked configuration with `auto` resolved. Raises UserError."""
    return _composed(overrides)[0]


def plan(*overrides: str) -> PlannedJob:
    """Plans a job: its `.plan` says for each node whether it is a HIT, or TO_RUN and why. Runs nothing. Raises
    UserError."""
    config, hydra, folder = _composed(overrides)
    with _variables_kept():
        return plan_job(config, hydra, folder)


def problems(job: PlannedJob) -> Problems:
    """Returns, by node, why it would fail, as far as that is known before the job runs."""
    return early_problems(job.plan, job.config.device)


def run(job: PlannedJob, quiet: bool = False) -> Result:
    """Runs the nodes that are not stored and prints progress, unless `quiet`. Returns the finished job.

    Raises UserError for a folder or server that cannot be used, and JobFailedError if a node failed; `read` then
    returns what the other nodes made.
    """
    from pipeline.command.running import run as run_planned  # not needed for a plan

    if job.config.dry_run:
        raise UserError("a dry run is a plan; leave it out to run the job", "dry_run")
    console = table_console()
    console.quiet = quiet
    with _variables_kept(), _user_errors(job.overrides):
        _keep_overrides(job)
        try:
            run_planned(job, None, console)
        except JobFailedError:
            why = status_of(read(job.folder).outcomes)[1]
            raise JobFailedError(f"{why or 'its record or MLflow failed'} (record: {job.folder})") from None
    return read(job.folder)


def read(folder: Path | str) -> Result:
    """Returns the finished job recorded in a folder. Raises UserError if there is none."""
    place = Path(folder)
    if not (place / RECORD).exists() or not (place / SUMMARY).exists():
        raise UserError(f"no job that has ended in {place}; expected a folder with {RECORD} and {SUMMARY}")
    job = Job.read(place)
    return Result(job, job.outcomes)


def results(runs: Path | str = "runs") -> list[Result]:
    """Returns all finished jobs, those of sweeps included, the earliest first."""
    return [Result(job, job.outcomes) for job in ended_jobs(Path(runs))]


def frame(*found: Result) -> DataFrame:
    """Returns a row for each job, node and metric. The columns are `COLUMNS`, then the swept parameters of the jobs."""
    from pandas import DataFrame

    rows = []
    for result in found:
        for outcome in result.outcomes.values():
            about = (result.job.name, outcome.name, outcome.stage, outcome.status.value, outcome.fingerprint)
            node = dict(zip(COLUMNS, (*about, outcome.seconds), strict=False)) | result.job.swept_parameters
            rows += [
                node | {"metric": it.name, "value": it.value, "stderr": it.stderr, "unit": it.unit}
                | {"higher_is_better": it.higher_is_better, "recovery": it.recovery}
                for it in outcome.metrics.values()
            ] or [node]  # fmt: skip
    swept = dict.fromkeys(key for result in found for key in result.job.swept_parameters)
    return DataFrame(rows, columns=[*COLUMNS, *swept])


def load(checkpoint: Checkpoint | Path | str) -> Loaded:
    """Loads the model of a result, or of a published folder, with its masks. Raises UserError if it is damaged."""
    from stages import checkpoints, masks

    found = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(Path(checkpoint), "")
    if not (found.path / "config.json").exists():
        raise UserError(f"{found.path} holds no model; expected a folder with config.json")
    if damage := check_contents(found.path):
        raise UserError(f"{found.path} is damaged: {damage}; `python -m pipeline.store verify --remove` deletes it")
    return Loaded(checkpoints.load(found), masks.of(found))


def _composed(overrides: Sequence[str]) -> tuple[Config, Any, Path]:
    """Returns the configuration, Hydra's section of it, and the folder of the job's record."""
    with _user_errors(overrides):
        values, hydra, folder = composed_for_python(overrides)
        return resolve(parse(values)), hydra, folder


def _keep_overrides(job: PlannedJob) -> None:
    """Writes the overrides where Hydra writes them, for reports and for running the job again."""
    from omegaconf import OmegaConf

    kept = job.folder / ".hydra" / "overrides.yaml"
    kept.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(job.overrides), kept)


@contextmanager
def _user_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Raises the errors that the command line explains in one line as UserError with that line."""
    try:
        yield
    except EXPECTED as error:
        raise as_user_error(error, overrides) from None


@contextmanager
def _variables_kept() -> Iterator[None]:
    """Restores the environment afterwards, so that a job's cache folder and threads do not become the next one's."""
    before = {name: os.environ.get(name) for name in ("SQUAREHEAD_CACHE", "OMP_NUM_THREADS")}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
