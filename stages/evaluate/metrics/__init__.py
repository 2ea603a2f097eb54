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
    """A model to evaluate, in evaluation mode, with its data."""

    model: Any
    tokenizer: Any
    family: Family
    data: Corpus
    batch_size: int
    test_data: Corpus | None = None
    """Items of another data set that are evaluated instead of the data's own."""
    out: Path | None = None
    """Folder in which a metric may write what it measured of each item; None during checks."""
    run_code: bool = False
    """Whether programs that the model writes may be run (`evaluate.run_code`)."""

    @property
    def tests(self) -> Corpus:
        """Returns the data whose items are evaluated."""
        return self.test_data or self.data


@dataclass(frozen=True)
class Measurement:
    value: float
    stderr: float | None
    """None where it is not known."""
    higher_is_better: bool | None
    """None for metrics without a direction, which describe a model and rank none."""
    protocol: dict[str, Any]
    """JSON of everything that two measurements must share to be compared."""
    unit: str = ""
    """`%`, `bits`; `fraction` is shown in percent; empty for plain numbers."""


@runtime_checkable
class Metric(Protocol):
    options: type[MetricOptions]

    def check(self, options: Any, judged: Judged) -> None:
        """Raises UserError for what `measure` would refuse. `judged.model` has no weights yet: it is on the meta
        device."""

    def measure(self, options: Any, judged: Judged, log: Log) -> Measurement | Mapping[str, Measurement]:
        """Returns one measurement under the metric's name, or several under names of their own, the most important
        first. Raises UserError."""


METRICS: Kinds[Metric] = Kinds("metric", __name__, "METRIC", "evaluate.metrics", Metric)


class MetricOptions(Options):
    """Options of an item of `evaluate.metrics`. A metric may add its own, each with a default."""

    name: Annotated[str, METRICS]
    """Name of the metric: a file of `stages/evaluate/metrics/`, or one that an installed package adds."""
