"""Further metrics of causal models, chosen by name in `evaluate.metrics`. A file each.

A member defines `METRIC`. Its file is read when a run is planned, which must not import torch: it does so where it
computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

from stages.contracts import Corpus, Log
from stages.kinds import Kinds
from stages.options import Options

if TYPE_CHECKING:
    from stages.families import Family


@dataclass(frozen=True)
class Judged:
    """A model to measure, in evaluation mode, and what belongs to it."""

    model: Any
    tokenizer: Any
    family: Family
    data: Corpus
    batch_size: int
    test_data: Corpus | None = None
    """Items of another data set, to be asked in the place of the data's own."""
    out: Path | None = None
    """Where a metric may write what it saw of each item; None where nothing is measured yet."""
    run_code: bool = False
    """Programs that the model writes may be run (`evaluate.run_code`)."""

    @property
    def tests(self) -> Corpus:
        """The data whose items are asked."""
        return self.test_data or self.data


@dataclass(frozen=True)
class Measurement:
    value: float
    stderr: float | None
    """None where it is not known."""
    higher_is_better: bool | None
    """None where it describes a model and ranks none."""
    protocol: dict[str, Any]
    """JSON: all that two measurements must have in common to be compared."""
    unit: str = ""
    """`%`, `bits`; `fraction` is shown in percent; empty for plain numbers."""


@runtime_checkable
class Metric(Protocol):
    options: type[MetricOptions]

    def check(self, options: Any, judged: Judged) -> None:
        """Raises UserError for what `measure` would refuse. `judged.model` has no weights yet: it is on the meta
        device."""

    def measure(self, options: Any, judged: Judged, log: Log) -> Measurement | Mapping[str, Measurement]:
        """One measurement under the metric's name, or several under names of their own, the most important first.
        Raises UserError."""


METRICS: Kinds[Metric] = Kinds("metric", __name__, "METRIC", "evaluate.metrics", Metric)


class MetricOptions(Options):
    """Options of an item of `evaluate.metrics`. A metric may add its own, each with a default."""

    name: Annotated[str, METRICS]
    """Name of the metric: a file of `stages/evaluate/metrics/`, or one that an installed package adds."""
