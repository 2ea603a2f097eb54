"""What the rest of the house knows of a stage, without importing torch: its `spec.py` describes it with this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from stages.contracts import Artifact, DataSet, Structure
from stages.cost import UNKNOWN, Cost
from stages.options import Options


@dataclass(frozen=True)
class MetricSpec:
    """A number of a stage's summary."""

    name: str
    unit: str = ""
    """`%`, `tokens/s`; `fraction` is shown in percent; empty for plain numbers."""
    higher_is_better: bool | None = None
    """None where it describes a result and ranks none."""
    headline: bool = False
    """Whether it may stand for the whole result; the first of these that a result has does."""


SPARSITIES = (MetricSpec("sparsity", "fraction"), MetricSpec("model_sparsity", "fraction"))
"""Shares of zeros among the prunable weights and in the whole model."""


@dataclass(frozen=True)
class Stage:
    """A stage is a room `stages/<name>/`: `spec.py` holds this description as `STAGE`, and `run.py` the work,
    `run(options, inputs, out, log) -> metrics`: `options` as typed below, `inputs` maps roles to artifacts, `out` is an
    empty folder to fill, and the metrics returned are its summary. Where `run.py` has a `check(options, model, data)`,
    that refuses, as soon as the model and the data are there, what `run` would refuse later."""

    name: str
    version: str
    """Raised whenever the same options would give another result."""
    options: type[Options]
    """All that its fingerprint covers, besides its inputs."""
    makes: type[Artifact]
    irrelevant: tuple[str, ...] = ()
    """Dotted options that cannot change the result; they stay out of the fingerprint."""
    in_cache: bool = False
    """Sources live in the user's cache, shared by all projects; everything else in the run's own store."""
    is_source: bool = False
    """Brings in the model or the data. Sources run first; with them everything else is checked before it runs
    (`pipeline.preflight`)."""

    metrics: tuple[MetricSpec, ...] = ()
    """What its summary holds, as far as that has a unit, a direction or a headline. An evaluation's are named by the
    metric or, of lm-eval, by its name of the metric; a benchmark's by the quantity, which each backend has with each
    model."""
    model: Literal["", "dense", "sparse", "quantized"] = ""
    """What its checkpoint is to a job; empty for sources, and where it makes none."""
    model_label: str = ""
    """What a sparse model is called by how it was made: `pruned`."""
    needs_baseline: bool = False
    """Its work could not be judged without the evaluation of the dense model: where that fails, it does not run."""

    check_early: Callable[[Any, Structure, DataSet | None], None] | None = None
    """`check_early(options, model, data)`, without torch: raises UserError for options that cannot go well with a model
    of this structure and these data, as far as their records tell (`early.py` of the room)."""
    cost: Cost = UNKNOWN
    """For estimates (`cost.py` of the room)."""

    @property
    def trains(self) -> bool:
        return "training" in self.options.model_fields

    @property
    def module(self) -> str:
        """Imported only when the stage runs."""
        return f"{self.options.__module__.rpartition('.')[0]}.run"
