"""`python -m stages.evaluate.compare A B`: is model B better than A on the same items? A paired bootstrap.

A and B are results of the stage `evaluate`: folders, or fingerprints (or their first digits) in the store of `--runs`;
each may be several with commas between, the seeds of one training, whose mean is compared. All must have been measured
on the same items under the same protocol: windows of text for perplexity, texts that models wrote, answers to the items
of tasks. Accuracies of lm-eval's tasks are not compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stages import json_lines
from stages.contracts import Metrics, UserError
from stages.evaluate import bootstrap, windows, word_errors
from stages.evaluate.bootstrap import Array, Difference, Score
from stages.evaluate.translation_scores import TranslationScore

MAY_DIFFER = {
    *("precision", "runtime", "threads"),
    *("cut_off", "hits", "substitutions", "deletions", "insertions"),
    *("stderr", "interval", "bootstrap", "bootstrap_seed", "of_other_prompts"),
}
"""Entries of a protocol that describe the model, its output and its accuracy; the others describe the measurement."""
SCORED = {
    "exact_match": "exact_match", "pass_at_1": "pass_at_k", "rouge_l": "rouge", "ifeval_prompt_strict": "ifeval",
    "preference_accuracy": "preference_accuracy",
}  # fmt: skip
"""Metrics that are the mean of a score of each item, and the names of their records."""
ITEMS = {
    "perplexity": (windows.FILE, ("window", "tokens")),
    **dict.fromkeys(("bleu", "chrf", "wer", "cer"), ("hypotheses.jsonl", ("id", "reference"))),
    **{metric: (f"{records}.jsonl", ("id",)) for metric, records in SCORED.items()},
}
"""For each metric, the record of its items, and the keys that identify an item."""
SHORT = 16
"""Digits of a fingerprint in the names of the store's folders."""


@dataclass(frozen=True)
class Comparison:
    metric: str
    a: float
    b: float
    higher_is_better: bool
    difference: Difference


def compare(a: Sequence[Metrics], b: Sequence[Metrics], samples: int, seed: int) -> list[Comparison]:
    """Returns a comparison for each metric. Raises UserError for results that are not comparable."""
    models = [*a, *b]
    first, *others = metrics = [model.values() for model in models]
    for other in others:
        for name in first | other:
            _check_protocols(name, first.get(name), other.get(name))
    found = []
    for name, metric in first.items():
        kind, full_window, _ = name.partition("_full_window")
        if kind not in ITEMS:
            continue
        records, identity = ITEMS[kind]
        rows = [_rows(model, records.replace(".", f"{full_window}.")) for model in models]
        items = [[tuple(row[key] for key in identity) for row in of_model] for of_model in rows]
        if any(of_model != items[0] for of_model in items):
            raise UserError("they were evaluated on other items")
        stats_RNK, score = _stats(kind, rows)
        difference = bootstrap.paired(stats_RNK[: len(a)], stats_RNK[len(a) :], score, samples, seed)
        better = metric["protocol"]["higher_is_better"]
        values = [of_model[name]["value"] for of_model in metrics]
        found.append(Comparison(name, fmean(values[: len(a)]), fmean(values[len(a) :]), better, difference))
    if not found:
        raise UserError(f"they have nothing that can be compared: {', '.join(first) or 'no metrics'}")
    return found


def _check_protocols(name: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> None:
    if a is None or b is None:
        raise UserError(f"only one of them has {name}")
    asked_a, asked_b = a["protocol"], b["protocol"]
    for key in sorted((asked_a.keys() | asked_b.keys()) - MAY_DIFFER):
        if asked_a.get(key) != asked_b.get(key):
            raise UserError(f"{name} was measured in two ways: {key} is {asked_a.get(key)} and {asked_b.get(key)}")


def _rows(metrics: Metrics, records: str) -> list[dict[str, Any]]:
    path = metrics.path / records
    if not path.exists():
        raise UserError(f"{metrics.path} has no {records}; evaluate it again with this version: force=[evaluate]")
    return list(json_lines.read(path))


def _stats(name: str, models: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[Array], Score]:
    if name in ("bleu", "chrf"):
        metric = TranslationScore(name)
        references = [row["reference"] for row in models[0]]
        return [metric.stats(references, [row["hypothesis"] for row in rows]) for rows in models], metric.score
    if name in SCORED:
        scores = [[(row["score"], 1) for row in rows] for rows in models]
        return [np.array(of_model, np.float64) for of_model in scores], _mean
    if name == "perplexity":
        nats = [[(row["nll"] * row["tokens"], row["tokens"]) for row in rows] for rows in models]
        return [np.array(of_model, np.float64) for of_model in nats], windows.perplexity
    columns = {"wer": ("errors", "words"), "cer": ("character_errors", "characters")}[name]
    return [np.array([[row[c] for c in columns] for row in rows], np.float64) for rows in models], word_errors.rate


def _mean(sums_SK: Array) -> Array:
    """Returns `mean_S` of sums of scores and of items (K = 2)."""
    mean_S: Array = sums_SK[:, 0] / sums_SK[:, 1]
    return mean_S


def table(found: Sequence[Comparison], samples: int, several: bool) -> str:
    lines, width = [], max(len(it.metric) for it in found)
    for it in found:
        sure = it.difference.low > 0 or it.difference.high < 0
        b_ahead = (it.difference.value > 0) == it.higher_is_better
        verdict = ("B is better" if b_ahead else "A is better") if sure else "no significant difference"
        p = f"p = {it.difference.p:.4f}" if it.difference.p else f"p < {1 / samples:g}"
        lines.append(
            f"{it.metric:<{width}} A {it.a:.2f}   B {it.b:.2f}   B - A {it.difference.value:+.2f} "
            f"[{it.difference.low:+.2f}, {it.difference.high:+.2f}]   {p}   {verdict}"
        )
    of = "items and of the seeds" if several else "items"
    return "\n".join([*lines, f"[95 % interval]; p: share of {samples} resamples of the {of} without that order"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0, or 2 if the two cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate.compare", description=__doc__)
    parser.add_argument(
        "a", metavar="A", help="a folder or a fingerprint of the stage evaluate; seeds: several, with commas"
    )
    parser.add_argument("b", metavar="B")
    parser.add_argument(
        "--runs", default=os.environ.get("SQUAREHEAD_RUNS", "runs"), help="folder of runs (%(default)s)"
    )
    parser.add_argument("--samples", type=int, default=10_000, help="resamples of the items (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.samples < 100:
            raise UserError(f"expected at least 100 resamples, got {options.samples}", "--samples")
        a, b = ([_find(name, Path(options.runs)) for name in side.split(",")] for side in (options.a, options.b))
        print(table(compare(a, b, options.samples, options.seed), options.samples, several=len(a) + len(b) > 2))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _find(name: str, runs: Path) -> Metrics:
    folder = Path(name)
    if not (folder / "metrics.json").exists():
        found = sorted((runs / "store" / "evaluate").glob(f"{name[:SHORT]}*")) if name.isalnum() else []
        if len(found) != 1:
            raise UserError(
                f"{name} is not a folder with metrics.json, and {len(found)} results in {runs} begin like it"
            )
        folder = found[0]
    return Metrics(folder, folder.name)


if __name__ == "__main__":
    sys.exit(main())
