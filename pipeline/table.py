"""What a run tells at its end: the table of nodes, quality and speed at a glance, summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.credentials import public_values
from pipeline.disk import replace_text
from pipeline.estimating.estimates import Estimate, told_seconds, told_total, total
from pipeline.headline import baseline_label, is_quality
from pipeline.plan import Plan
from pipeline.run import Outcomes
from pipeline.store.store import Store
from stages.contracts import UserError

STYLES = {"hit": "cyan", "done": "green", "failed": "red", "not run": "yellow", "unneeded": "dim", "run": "yellow"}
MAIN_METRICS = {
    "model": ("parameters",),
    "data": ("train_rows", "test_rows"),
    "calibrate": ("samples",),
    "dense": ("validation_loss", "tokens_per_second"),
    "prune": ("sparsity", "mean_layer_error"),
    "finetune": ("sparsity", "validation_loss", "tokens_per_second"),
    "quantize": ("sparsity", "weight_bytes"),
}
"""What stands in the table of nodes; of the other stages the first three."""
SHOWN = 3
WIDTH = 110


def table_console() -> Console:
    """The terminal; where there is none (a file, a pipe), wide enough for the tables."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def show_plan(plan: Plan, estimated: Mapping[str, Estimate], console: Console) -> None:
    table = Table(title="plan", title_justify="left", box=None, pad_edge=False)
    for column in ("node", "", "fingerprint", "time", "why"):
        table.add_column(
            column, no_wrap=column != "why", overflow="fold", justify="right" if column == "time" else "left"
        )
    for name, item in plan.items():
        status = item.status.upper() if item.status == "run" else item.status
        time = told_seconds(estimated[name]) if name in estimated else ""
        why = escape(item.reason or item.warning)
        table.add_row(name, f"[{STYLES[item.status]}]{status}[/]", item.fingerprint[:16], time, why)
    console.print(table)
    running = sum(item.status == "run" for item in plan.values())
    hits = sum(item.status == "hit" for item in plan.values())
    console.print(f"{running} to run, {hits} stored", highlight=False)
    if estimated:
        console.print(told_total(total(estimated.values())), highlight=False, soft_wrap=True)


def warn(line: str, console: Console) -> None:
    """A line of its own, whatever stands in it."""
    console.print(f"! {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def say_problem(node: str, error: UserError | str, console: Console) -> None:
    """Why a node could not end well, known before it begins."""
    console.print(f"[red]✗ {node}[/], checked beforehand: {escape(str(error))}", highlight=False, soft_wrap=True)


def show_warnings(plan: Plan, console: Console) -> None:
    if warned := [name for name, item in plan.items() if item.warning]:
        warn(f"{', '.join(warned)}: {plan[warned[0]].warning}", console)


def show_outcomes(outcomes: Outcomes, console: Console) -> None:
    table = Table(title="nodes", title_justify="left", box=None, pad_edge=False)
    table.add_column("node", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, outcome in outcomes.items():
        seconds = f"{outcome.seconds:.1f}" if outcome.metrics else ""
        told = _main_metrics(outcome.stage, outcome.metrics) or escape(outcome.error)
        table.add_row(name, f"[{STYLES[outcome.status]}]{outcome.status}[/]", seconds, told)
    console.print(table)


def show_quality(outcomes: Outcomes, console: Console) -> None:
    """One row for each evaluated model: its quality, and what is left of the dense one's."""
    judged = {name: o.metrics for name, o in outcomes.items() if o.stage == "evaluate" and o.metrics}
    names = list(dict.fromkeys(metric for metrics in judged.values() for metric in metrics if is_quality(metric)))
    if not names:
        return
    table = Table(title="quality (test split)", title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    came = outcomes["model"].metrics.get("sparsity", 0.0) if "model" in outcomes else 0.0
    labels = LABELS | {"dense_eval": baseline_label(came, False), "dense_eval_q": baseline_label(came, True)}
    for metric in names:
        table.add_column(metric, justify="right")
        table.add_column("recovery", justify="right")
    for name, metrics in judged.items():
        cells = []
        for metric in names:
            error = metrics.get(f"{metric}_stderr")
            value = f"{metrics[metric]:.3f}" if metric in metrics else "–"
            cells.append(value + (f" ± {error:.3f}" if error is not None else ""))
            recovery = metrics.get(f"{metric}_recovery")
            cells.append(f"{recovery:.1f} %" if recovery is not None else "")
        table.add_row(labels.get(name, name.removeprefix("evaluate_")), *cells)
    console.print(table)


LABELS = {
    "one_shot_eval": "pruned one-shot, not fine-tuned",
    "evaluate": "sparse, fine-tuned",
    "evaluate_q": "sparse, fine-tuned, int8",
}


def summary(outcomes: Outcomes) -> dict[str, Any]:
    """{node: {stage, fingerprint, status, seconds, metrics, error}}."""
    return {name: asdict(outcome) for name, outcome in outcomes.items()}


def write_json(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(public_values(value), indent=1))


def show_benchmark(outcomes: Outcomes, store: Store, console: Console) -> None:
    """The rows of the benchmark node, as measured; `n/a` with its reason where a backend could not run."""
    outcome = outcomes.get("benchmark")
    entry = store.find("benchmark", outcome.fingerprint) if outcome and outcome.metrics else None
    if entry is None:
        return
    found = json.loads((entry.path / "benchmark.json").read_text(encoding="utf-8"))
    show_rows(found, console)


def show_rows(found: dict[str, Any], console: Console) -> None:
    machine, protocol = found["machine"], found["protocol"]
    title = (
        f"speed: batch 1, {machine['threads']} threads of {machine['cpu']}, medians of {protocol['rounds']} "
        f"interleaved rounds (and their range), {protocol['workload']}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    more = [key for key in ONLY_SOME if any(key in row for row in found["rows"])]
    for column in (*COLUMNS, *(ONLY_SOME[key] for key in more)):
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right", no_wrap=column in COLUMNS[:8])
    for row in found["rows"]:
        if row["status"] != "ok":
            table.add_row(row["backend"], row["model"], "[dim]n/a[/]")
            continue
        table.add_row(
            row["backend"],
            row["model"],
            _with_range(row, "prefill_ms"),
            _times(row["prefill_speedup"]["torch_fp32_dense"]),
            _with_range(row, "decode_tokens_per_second"),
            _times(row["decode_speedup"]["torch_fp32_dense"]),
            _times(row["decode_speedup"]["same_backend_dense"]),
            _times(row["decode_speedup"]["best_dense"]),
            "–" if row["gigabytes_per_second"] is None else f"{row['gigabytes_per_second']:.1f}",
            "–" if row["weight_bytes"] is None else f"{row['weight_bytes'] / 1e6:.0f}",
            *(f"{row[key]:.3g}" for key in more),
        )
    console.print(table)
    best = next((row["decode_best_dense"] for row in found["rows"] if row["status"] == "ok"), None)
    if best:
        legend = f"× over torch_fp32 dense; own: over the same backend dense; best: over the fastest dense row, {best}"
        console.print(f"[dim]{legend}[/]", highlight=False)
    for row in found["rows"]:
        told = f"n/a ({row['reason']})" if row["status"] != "ok" else row["note"]
        if told:
            console.print(f"[dim]{row['backend']} {row['model']}: {escape(told)}[/]", highlight=False)


COLUMNS = ("backend", "model", "prefill ms", "×", "decode tokens/s", "×", "own", "best", "GB/s", "MB read")
"""×, own, best: times as fast as torch_fp32 dense, the same backend dense, the fastest dense row; MB read: weights for
each decoded token."""
ONLY_SOME = {"real_time_factor": "real-time factor", "beam_tokens_per_second": "beam tokens/s"}
"""Of encoder-decoders. The factor: seconds of transcribing over those of the audio."""


def _with_range(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3g} ({row[f'{key}_min']:.3g}–{row[f'{key}_max']:.3g})"


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio is not None else "–"


def _main_metrics(stage: str, metrics: dict[str, float]) -> str:
    names = MAIN_METRICS.get(stage) or tuple(metrics)[:SHOWN]
    return "  ".join(f"{name} {_short(metrics[name])}" for name in names if name in metrics)


def _short(value: float) -> str:
    if abs(value) >= 1e5:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value != int(value) else f"{int(value)}"
