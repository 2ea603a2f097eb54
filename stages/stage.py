"""The torch-free description of a stage, in its `spec.py`, by which all other packages know it."""

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
    """None for metrics without a direction, which describe a result and rank none."""
    headline: bool = False
    """Whether it may represent the whole result; the first such metric of a result does."""


SPARSITIES = (MetricSpec("sparsity", "fraction"), MetricSpec("model_sparsity", "fraction"))
"""Shares of zeros among the prunable weights and in the whole model."""


@dataclass(frozen=True)
class Stage:
    """The description of a stage. It is the constant `STAGE` of `stages/<name>/spec.py`; `run.py` beside it has
    `run(options, inputs, out, log) -> metrics`: `options` as typed below, `inputs` maps roles to artifacts, `out` is an
    empty folder to fill, and the metrics returned are its summary. If `run.py` has a `check(options, model, data)`,
    that refuses, as soon as the model and the data are there, what `run` would refuse later."""

    name: str
    version: str
    """Raised whenever the same options would give another result."""
    options: type[Options]
    """Class of its options, all of which its fingerprint covers, besides its inputs."""
    makes: type[Artifact]
    irrelevant: tuple[str, ...] = ()
    """Dotted options that cannot change the result; they are left out of the fingerprint."""
    in_cache: bool = False
    """Whether it is stored in the user's cache, shared by all projects, as sources are, instead of the run's own
    store."""
    is_source: bool = False
    """Whether it brings in the model or the data. Sources run first; with them everything else is checked before it
    runs (`pipeline.preflight`)."""

    metrics: tuple[MetricSpec, ...] = ()
    """Metrics of its summary that have a unit, a direction or a headline. Those of an evaluation are named by the
    metric or, for lm-eval, by its name of the metric; those of a benchmark by the quantity, which each backend has with
    each model."""
    model: Literal["", "dense", "sparse", "quantized"] = ""
    """Role of its checkpoint in a job; empty for sources, and if it makes none."""
    model_label: str = ""
    """Label of a sparse model, by how it was made: `pruned`."""
    needs_baseline: bool = False
    """Whether its results need the evaluation of the dense model: if that fails, the stage does not run."""

    check_early: Callable[[Any, Structure, DataSet | None], None] | None = None
    """`check_early(options, model, data)`, without torch: raises UserError for options that cannot work with a model of
    this structure and these data, as far as their records tell (`early.py` of the stage)."""
    cost: Cost = UNKNOWN
    """Formulas for estimates (`cost.py` of the stage)."""

    @property
    def trains(self) -> bool:
        return "training" in self.options.model_fields

    @property
    def module(self) -> str:
        """Returns the module of `run`, which is imported only when the stage runs."""
        return f"{self.options.__module__.rpartition('.')[0]}.run"
