"""What reports of tiny sweeps say, kept in golden_reports.json: report.json whole, and the figures of every table.

`python -m tests.golden_reports` writes them anew: only where a report is to say something else.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.reporting import study, tables, writers
from pipeline.reporting.study import Study
from pipeline.store.store import SHORT
from tests.tiny_reports import Runs, fingerprint, forget_evaluations

FILE = Path(__file__).with_name("golden_reports.json")
FINGERPRINT = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
ACCURACY = "squarehead_qa_exact_match_strict_match"


def losses(folder: Path) -> Runs:
    """Sparsities × losses, judged on the same windows, timed."""
    runs = Runs(folder, windows=True)
    for sparsity, loss, value in ((0.5, "ce", 14.0), (0.5, "squarehead", 11.0), (0.7, "ce", 30.0), (0.7, "kd", 29.0)):
        runs.job(sparsity, loss, value, int8=sparsity == 0.5)
    return runs


def seeds(folder: Path) -> Runs:
    """Three seeds of two losses, beside the figures of the same model; one job failed and one never began."""
    runs = Runs(folder, ACCURACY, True, 0.3, 0.05, "mpt_gsm8k", model="mosaicml/mpt-7b", data="openai/gsm8k")
    for seed, off in enumerate((-0.02, 0.0, 0.02)):
        runs.job(0.5, "squarehead", 0.31 + off, seed=seed, error=0.01, int8=True)
        runs.job(0.5, "ce", 0.21 + off, seed=seed, error=0.01)
    runs.job(0.7, "squarehead", 0.15, error=0.01, int8=True)
    runs.job(0.7, "ce", 0.1, failed="finetune_70")
    runs.job(0.8, "ce", 0.1, folder=False)
    return runs


def rates(folder: Path) -> Runs:
    """Learning rates at one sparsity, of a model that is not the published one."""
    runs = Runs(folder, "wer", reference="whisper", model="owner/whisper-tiny.en", data="owner/clips")
    for lr, value in ((1e-4, 14.0), (1e-3, 11.0)):
        runs.job(0.5, "squarehead", value, lr=lr, int8=True)
        runs.job(0.5, "ce", value + 4, lr=lr, error=None)
    return runs


def patterns(folder: Path) -> Runs:
    """N:M and unstructured zeros, by a group that sets several options; one evaluation was deleted."""
    runs = Runs(folder)
    for pattern, sparsity, value in (("unstructured", 0.5, 11.0), ("2:4", 0.5, 18.0), ("16:64", 0.75, 20.0)):
        runs.pattern = pattern
        runs.job(sparsity, "kd", value, row=f"patterns/{pattern}", int8=True)
    shutil.rmtree(runs.store.root / "evaluate" / fingerprint("evaluate", 0.5, "kd", 0)[:SHORT])
    return runs


def timed(folder: Path) -> Runs:
    """Speeds without any evaluation; a job that was killed."""
    runs = Runs(folder, ACCURACY, True, 0.3, 0.05, "mpt_gsm8k", model="owner/tiny", data="owner/sums")
    place = runs.job(0.5, "squarehead", 0.3, int8=True)
    forget_evaluations(place)
    runs.job(0.8, "ce", 0.1, until="prune_80", summary=False)
    return runs


SCENES: dict[str, Callable[[Path], Runs]] = {make.__name__: make for make in (losses, seeds, rates, patterns, timed)}


def report(name: str, folder: Path) -> Study:
    runs = SCENES[name](folder / "runs")
    runs.write_sweep()
    return study.collect([runs.place], None, folder)


def said(found: Study) -> dict[str, Any]:
    facts = {
        table.name: [
            {key: [cell.value, cell.error, cell.fingerprints] for key, cell in row.items() if cell.value is not None}
            for row in table.rows
        ]
        for table in tables.everything(found)
    }
    written = json.loads(writers.as_json(found))
    for at in (*written["published"], *written["published_speeds"]):
        at["reference"] = _in_short(at["reference"])
    written["references"] = [_in_short(at) for at in written["references"]]
    kept: dict[str, Any] = json.loads(FINGERPRINT.sub(r"\1", json.dumps({"json": written, "tables": facts})))
    return kept


def _in_short(reference: dict[str, Any]) -> list[Any]:
    return [reference[key] for key in ("table", "value", "sparsity", "int8")]


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    kept = {}
    for name in SCENES:
        with TemporaryDirectory() as folder:
            kept[name] = said(report(name, Path(folder)))
    FILE.write_text(json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
