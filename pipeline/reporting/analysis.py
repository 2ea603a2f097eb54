"""Functions of the tidy table: series of models, levels, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pipeline.labels import label
from pipeline.reporting.choices import NONE, is_seed
from pipeline.reporting.table import FINETUNED, metrics, models

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]
"""A row of the tidy table."""
SELF_EXPLAINING = ("distill", "experiment")
"""Options whose values say what they are without the name."""
BESIDE = ("experiment", "benchmark", "quantize", "evaluate")
"""Sections of options that do not change a fine-tuned model: they name it only where nothing else distinguishes it."""


@dataclass(frozen=True)
class Naming:
    """Names series of models, which differ in sparsity and seeds alone, and the axis that quality is drawn over."""

    axis: str
    """`sparsity`, or if that is the same everywhere, the first numeric option."""
    options: tuple[str, ...]
    """Options that distinguish fine-tuned models, except seeds and the axis."""
    pattern_by_sparsity: bool
    """Whether no two N:M patterns have the same sparsity: then 16:32 and 16:64 are places on one line."""

    def series(self, row: Row) -> str:
        parts = {key: value for key, value in row["options"].items() if key in self.options and value != NONE}
        pattern = parts.pop("prune.pattern", NONE)
        one_shot = row["kind"] == "one_shot_eval"
        if one_shot:
            parts = {key: value for key, value in parts.items() if not key.startswith(("distill", "finetune"))}
        names = [value if key in SELF_EXPLAINING else f"{key}={label(value) or value}" for key, value in parts.items()]
        if pattern not in ("unstructured", NONE):
            names.append("N:M" if self.pattern_by_sparsity else pattern)
        elif pattern == "unstructured" and not names:
            names.append(pattern)
        if one_shot:
            return " ".join([*names, "one-shot"])
        base = " ".join(names) or row["loss"] or row["label"]
        return base + {"rung": " rungs", "evaluate_q": " int8"}.get(row["kind"], "")

    def place(self, row: Row) -> float:
        """Returns the position on the axis: sparsity in percent, or the value of the option; NaN if the model does not
        depend on it."""
        if self.axis == "sparsity":
            return 100 * round(row["sparsity"] or 0, 3)
        return float(row["options"].get(self.axis, nan))


def naming(table: DataFrame) -> Naming:
    rows = models(table).to_dict("records")
    tuned = [row for row in rows if row["kind"] in FINETUNED]
    keys = dict.fromkeys(key for row in tuned for key in row["options"])
    values = {key: {row["options"].get(key, "") for row in tuned} - {""} for key in keys}
    values = {key: found for key, found in values.items() if len(found) > 1 and not is_seed(key)}
    levels = {round(row["sparsity"], 3) for row in tuned if row["kind"] == "evaluate" and row["sparsity"] is not None}
    numbers = [key for key, found in values.items() if all(map(_is_number, found))]
    axis = "sparsity" if len(levels) > 1 or not numbers else numbers[0]
    patterns = {
        (round(row["sparsity"] or 0, 3), pattern)
        for row in rows
        if (pattern := row["options"].get("prune.pattern", NONE)) not in ("unstructured", NONE)
    }
    telling = needed([key for key in values if key not in ("sparsity", axis)], tuned)
    return Naming(axis, tuple(telling), len({sparsity for sparsity, _ in patterns}) == len(patterns))


def needed(keys: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Returns the options without those of `BESIDE` that are not needed to distinguish any two rows."""

    def distinct(chosen: Sequence[str]) -> int:
        own = [{key: value for key, value in row["options"].items() if _counts(key, chosen)} for row in rows]
        return len({(row["kind"], row["sparsity"], *sorted(it.items())) for row, it in zip(rows, own, strict=True)})

    def _counts(key: str, chosen: Sequence[str]) -> bool:
        return key in chosen or key.partition(".")[0] not in BESIDE

    kept = list(keys)
    for key in [key for key in keys if key.partition(".")[0] in BESIDE]:
        without = [other for other in kept if other != key]
        if distinct(without) == distinct(kept):
            kept = without
    return kept


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def main_metric(table: DataFrame, published: Sequence[str]) -> str:
    """Returns the metric by which models are compared first: that of a published table, or else exact match, or the
    first."""
    names = metrics(table)
    exact = [name for name in names if "exact_match" in name]
    return next((name for name in (*published, *exact) if name in names), next(iter(names), ""))


def higher_is_better(table: DataFrame, metric: str) -> bool:
    return bool(table.loc[table["metric"] == metric, "higher_is_better"].iloc[0])


@dataclass(frozen=True)
class Level:
    """A series at one place of the axis: one model, or its seeds together."""

    series: str
    kind: str
    place: float
    sparsity: float
    value: float
    """Quality of one model, or the mean over its seeds."""
    error: float | None
    """Standard error of one model; sample standard deviation over seeds."""
    recovery: float | None
    """Recovery in percent; the mean over seeds."""
    evaluations: tuple[str, ...]
    """Fingerprints, one for each seed."""
    jobs: tuple[int, ...]
    each: tuple[float, ...]
    """Values, one for each seed."""

    @property
    def one_shot(self) -> bool:
        return self.kind == "one_shot_eval"


def levels(table: DataFrame, names: Naming, metric: str) -> list[Level]:
    """Returns the sparse models in floating point that have the metric, by series (one-shot last) and position."""
    rows = table[(table["metric"] == metric) & table["kind"].isin(["evaluate", "one_shot_eval"])]
    found: dict[tuple[bool, str, float, float], list[Row]] = {}
    for row in rows[rows["sparsity"].notna()].to_dict("records"):
        key = row["kind"] == "one_shot_eval", names.series(row), names.place(row), round(row["sparsity"], 3)
        found.setdefault(key, []).append(row)
    return [_level(*key[1:], found[key]) for key in sorted(found)]


def _level(series: str, place: float, sparsity: float, rows: Sequence[Row]) -> Level:
    values = tuple(row["value"] for row in rows)
    recoveries = [row["recovery"] for row in rows if row["recovery"] is not None]
    return Level(
        series, rows[0]["kind"], place, sparsity, mean(values),
        stdev(values) if len(values) > 1 else rows[0]["stderr"],
        mean(recoveries) if len(recoveries) == len(rows) else None,
        evaluations=tuple(row["evaluation"] for row in rows),
        jobs=tuple(job for row in rows for job in row["jobs"]),
        each=values,
    )  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Distribution of a figure over seeds."""

    mean: float
    std: float
    """Sample standard deviation."""
    low: float
    high: float


@dataclass(frozen=True)
class SeedRow:
    """Models that differ in nothing but seeds, combined."""

    kind: str
    label: str
    options: dict[str, str]
    """Options without seeds."""
    loss: str
    seeds: tuple[str, ...]
    sparsity: float | None
    qualities: dict[str, Spread]
    recoveries: dict[str, float]
    """Mean recoveries, in percent."""
    evaluations: tuple[str, ...]
    """Fingerprints, in the order of the seeds."""


def over_seeds(table: DataFrame) -> list[SeedRow]:
    """Returns a row for each group of two or more models that differ in seeds alone."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for model in models(table).to_dict("records"):
        if any(is_seed(key) for key in model["options"]):
            key = model["kind"], model["label"], tuple(without_seeds(model["options"]).items())
            groups.setdefault(key, []).append(model)
    return [_seed_row(group, table) for group in groups.values() if len(group) > 1]


def without_seeds(options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if not is_seed(key)}


def _seed_row(group: Sequence[Row], table: DataFrame) -> SeedRow:
    first, evaluations = group[0], tuple(model["evaluation"] for model in group)
    own = table[table["evaluation"].isin(evaluations)]
    by_metric = {name: rows for name, rows in own.groupby("metric", sort=False) if name and len(rows) == len(group)}
    return SeedRow(
        kind=first["kind"],
        label=first["label"],
        options=without_seeds(first["options"]),
        loss=first["loss"],
        seeds=tuple(" ".join(v for key, v in model["options"].items() if is_seed(key)) for model in group),
        sparsity=first["sparsity"],
        qualities={
            name: Spread(mean(rows["value"]), stdev(rows["value"]), min(rows["value"]), max(rows["value"]))
            for name, rows in by_metric.items()
        },
        recoveries={name: mean(rows["recovery"]) for name, rows in by_metric.items() if rows["recovery"].notna().all()},
        evaluations=evaluations,
    )
