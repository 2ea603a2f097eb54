"""Prints the end of a run: the table of nodes, quality and speed at a glance, and the folders of the models."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import Mapping
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.bench.rounds import Spread, three_digits
from pipeline.estimating.estimates import Estimate, format_seconds, format_total, total
from pipeline.graph import Graph
from pipeline.plan import Plan, Stores
from pipeline.record.headline import baseline_label, node_headline
from pipeline.record.metrics import Metric, qualities
from pipeline.record.outcome import Outcomes
from pipeline.record.status import Status
from pipeline.record.text import describe, format_value
from pipeline.store.store import Store
from stages.contracts import Metrics, UserError
from stages.data.formats import FORMATS
from stages.index import described

WIDTH = 110


def table_console() -> Console:
    """Returns a console for the terminal; off a terminal (a file, a pipe), one wide enough for the tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(file=cast(IO[str], _WithoutTrailingBlanks()), width=max(console.width, WIDTH))
    return console


class _WithoutTrailingBlanks(io.TextIOBase):
    """Standard output without the blanks with which tables fill their last column."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def show_plan(plan: Plan, estimated: Mapping[str, Estimate], console: Console) -> None:
    table = Table(title="plan", title_justify="left", box=None, pad_edge=False)
    for column in ("node", "", "fingerprint", "time", "why"):
        table.add_column(
            column, no_wrap=column != "why", overflow="fold", justify="right" if column == "time" else "left"
        )
    for name, item in plan.items():
        status = item.status.upper() if item.status == Status.TO_RUN else item.status
        time = format_seconds(estimated[name]) if name in estimated else ""
        why = escape(item.reason or item.warning)
        table.add_row(name, f"[{item.status.style}]{status}[/]", item.fingerprint[:16], time, why)
    console.print(table)
    running = sum(item.status == Status.TO_RUN for item in plan.values())
    hits = sum(item.status == Status.HIT for item in plan.values())
    console.print(f"{running} to run, {hits} stored", highlight=False)
    if estimated:
        console.print(format_total(total(estimated.values())), highlight=False, soft_wrap=True)


def warn(line: str, console: Console) -> None:
    """Prints a warning on a line of its own, without markup."""
    console.print(f"! {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def say_problem(node: str, error: UserError | str, console: Console) -> None:
    """Prints why a node would fail, known before it begins."""
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
        seconds = f"{outcome.seconds:.1f}" if outcome.status.is_stored else ""
        metric = node_headline(outcome)
        said = describe(metric) if metric else outcome.error
        table.add_row(name, f"[{outcome.status.style}]{outcome.status.label}[/]", seconds, escape(said))
    console.print(table)


def show_quality(outcomes: Outcomes, console: Console) -> None:
    """Prints a row for each evaluated model: its quality, and its recovery."""
    judged = {name: it.metrics for name, it in outcomes.items() if described(it.stage).makes is Metrics and it.metrics}
    ranked = [metric for metrics in judged.values() for metric in qualities(metrics)]
    names = list(dict.fromkeys(metric.name for metric in ranked))
    if not names:
        return
    measured_on = {_measured_on(metric) for metric in ranked}
    title = "quality" + (f" ({measured_on.pop()})" if len(measured_on) == 1 and "" not in measured_on else "")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    came = (outcomes["model"].value("sparsity") if "model" in outcomes else None) or 0.0
    labels = LABELS | {"dense_eval": baseline_label(came, False), "dense_eval_q": baseline_label(came, True)}
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("recovery", justify="right")
    for node, metrics in judged.items():
        cells = [text for name in names for text in _quality(metrics.get(name))]
        table.add_row(labels.get(node, node.removeprefix("evaluate_")), *cells)
    console.print(table)


def _measured_on(metric: Metric) -> str:
    """Returns `test split, 32 windows of 256 tokens`, as far as the protocol of the metric says."""
    protocol = metric.protocol
    split = f"{protocol['split']} split" if "split" in protocol else ""
    windows = f"{protocol['windows']} windows of {protocol['length']} tokens" if "windows" in protocol else ""
    items = f"{protocol['items']} items" if "items" in protocol else ""
    return ", ".join(filter(None, [split, windows, items]))


def _quality(metric: Metric | None) -> tuple[str, str]:
    if metric is None:
        return "–", ""
    return format_value(metric), f"{metric.recovery:.1f} %" if metric.recovery is not None else ""


LABELS = {
    "one_shot_eval": "pruned one-shot, not fine-tuned",
    "evaluate": "sparse, fine-tuned",
    "evaluate_q": "sparse, fine-tuned, int8",
}


def show_models(plan: Plan, outcomes: Outcomes, stores: Stores, console: Console) -> None:
    """Prints the folders of the job's finished models, and the command that uses them."""
    found = {
        label: stores.for_stage(plan[name].spec).folder(plan[name].node.stage, plan[name].fingerprint)
        for label, name in finished_models({name: item.node for name, item in plan.items()}).items()
        if outcomes[name].status.is_stored
    }
    for label, folder in found.items():
        console.print(f"{label:<10} {folder}", highlight=False, markup=False, soft_wrap=True)
    if found:
        chosen = shlex.quote(str(list(found.values())[-1]))
        command = f"python -m engine export {chosen} OUT"
        if "data" in plan and FORMATS.get(plan["data"].config["format"]).rows != "clips":
            command += ' && python -m engine generate OUT --prompt "..."'
        console.print(f"use        {command}", highlight=False, markup=False, soft_wrap=True)


def finished_models(graph: Graph) -> dict[str, str]:
    """Returns the nodes of the finished models by label: those of the last evaluations, or else the last checkpoint
    that is not the one-shot baseline."""
    made = [name for name, node in graph.items() if described(node.stage).model in ("dense", "sparse")]
    model = graph["evaluate"].inputs["model"] if "evaluate" in graph else None
    model = model or next((name for name in reversed(made) if name != "one_shot"), None)
    int8 = next((name for name in ("quantize", "quantize_dense") if name in graph), None)
    return {label: name for label, name in (("model", model), ("int8 model", int8)) if name}


def show_benchmark(outcomes: Outcomes, store: Store, console: Console) -> None:
    """Prints the rows of the benchmark node, as measured; `n/a` with its reason where a backend could not run."""
    outcome = outcomes.get("benchmark")
    entry = store.find(outcome.stage, outcome.fingerprint) if outcome and outcome.metrics else None
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
            *(three_digits(row[key]) for key in more),
        )
    console.print(table)
    best = next((row["decode_best_dense"] for row in found["rows"] if row["status"] == "ok"), None)
    if best:
        legend = f"× over torch_fp32 dense; own: over the same backend dense; best: over the fastest dense row, {best}"
        console.print(f"[dim]{legend}[/]", highlight=False)
    if scattered := [f"{row['backend']} {row['model']}" for row in found["rows"] if _is_scattered(row)]:
        warn(f"rounds differ by over {SCATTER:.0%} ({', '.join(scattered)}): other work disturbed them", console)
    for row in found["rows"]:
        note = f"n/a ({row['reason']})" if row["status"] != "ok" else row["note"]
        if note:
            console.print(f"[dim]{row['backend']} {row['model']}: {escape(note)}[/]", highlight=False)


COLUMNS = ("backend", "model", "prefill ms", "×", "decode tokens/s", "×", "own", "best", "GB/s", "MB read")
"""×, own, best: times as fast as torch_fp32 dense, the same backend dense, the fastest dense row; MB read: weights for
each decoded token."""
ONLY_SOME = {"real_time_factor": "real-time factor", "beam_tokens_per_second": "beam tokens/s"}
"""Columns of encoder-decoders only. The factor is the time of transcribing over that of the audio."""


SCATTER = 0.2
"""Range of the decoding speed over its median from which the terminal warns."""


def _is_scattered(row: dict[str, Any]) -> bool:
    key = "decode_tokens_per_second"
    return row["status"] == "ok" and bool(row[f"{key}_max"] - row[f"{key}_min"] > SCATTER * row[key])


def _with_range(row: dict[str, Any], key: str) -> str:
    return str(Spread([row[f"{key}_min"], row[key], row[f"{key}_max"]]))


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio is not None else "–"
