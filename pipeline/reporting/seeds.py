"""Models that differ in nothing but seeds, together: mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pipeline.reporting.choices import is_seed
from pipeline.reporting.models import ModelRow


@dataclass(frozen=True)
class Spread:
    """Of a figure over seeds."""

    mean: float
    std: float
    """Sample standard deviation."""
    low: float
    high: float


@dataclass(frozen=True)
class SeedRow:
    kind: str
    label: str
    dials: dict[str, str]
    """Without seeds."""
    loss: str
    seeds: tuple[str, ...]
    sparsity: float | None
    qualities: dict[str, Spread]
    recoveries: dict[str, float]
    """Means, in percent."""
    evaluations: tuple[str, ...]
    """Fingerprints, in the order of the seeds."""


def without_seeds(row: ModelRow) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """What rows of one model over several seeds have in common."""
    return row.kind, row.label, tuple((key, value) for key, value in row.dials.items() if not is_seed(key))


def rows(models: Sequence[ModelRow]) -> list[SeedRow]:
    """One for each two or more models that differ in seeds alone."""
    groups: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[ModelRow]] = {}
    for model in models:
        if any(is_seed(key) for key in model.dials):
            groups.setdefault(without_seeds(model), []).append(model)
    return [_row(group) for group in groups.values() if len(group) > 1]


def _row(group: Sequence[ModelRow]) -> SeedRow:
    first = group[0]
    shared = [name for name in first.qualities if all(name in model.qualities for model in group)]
    values = {name: [model.qualities[name].value for model in group] for name in shared}
    parts = {name: [r for model in group if (r := model.qualities[name].recovery) is not None] for name in shared}
    return SeedRow(
        kind=first.kind,
        label=first.label,
        dials={key: value for key, value in first.dials.items() if not is_seed(key)},
        loss=first.loss,
        seeds=tuple(" ".join(value for key, value in model.dials.items() if is_seed(key)) for model in group),
        sparsity=first.sparsity,
        qualities={name: Spread(mean(found), stdev(found), min(found), max(found)) for name, found in values.items()},
        recoveries={name: mean(found) for name, found in parts.items() if len(found) == len(group)},
        evaluations=tuple(model.evaluation for model in group),
    )
