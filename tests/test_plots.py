"""The quality-speed plot shows the benchmark's rows at the quality of what they ran, and names that can be read."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from pipeline import report
from pipeline.job import Job
from pipeline.record.outcome import Outcome, Outcomes
from pipeline.reporting import plot_labels, plots
from pipeline.reporting.plot_labels import Box
from pipeline.reporting.plots import QualitySpeed
from pipeline.reporting.speed_axes import Point
from pipeline.store.store import Store
from tests.running import Place

PERPLEXITY = {
    "dense_eval": (16.0, 0.6),
    "evaluate": (26.0, 1.1),
    "dense_eval_q": (16.2, 0.7),
    "evaluate_q": (26.5, 1.2),
}
SPEEDUPS = {
    ("torch_fp32", "dense"): 1.0,
    ("torch_fp32", "sparse"): 1.02,
    ("torch_bf16", "dense"): 1.9,
    ("torch_csr", "sparse"): 0.8,
    ("squarehead_w8a8", "dense"): 0.9,
    ("engine_int8", "sparse"): 6.5,
    ("engine_int8_head", "sparse"): 7.0,
}
JUDGES = {
    ("torch_fp32", "dense"): ("dense_eval", True),
    ("torch_fp32", "sparse"): ("evaluate", True),
    ("torch_bf16", "dense"): ("dense_eval", False),
    ("torch_csr", "sparse"): ("evaluate", True),
    ("squarehead_w8a8", "dense"): ("dense_eval_q", True),
    ("engine_int8", "sparse"): ("evaluate_q", True),
    ("engine_int8_head", "sparse"): ("evaluate_q", False),
}


def publish(store: Store, stage: str, fingerprint: str, name: str, content: Any) -> dict[str, Any]:
    """A stored result of one JSON file, and its node in a job's summary."""
    metrics = {"sparsity": 0.5} if stage == "prune" else {"value": 1.0}
    with store.fill(stage, fingerprint, lambda who: None) as slot:
        (slot.out / name).write_text(json.dumps(content))
        meta = {"stage": stage, "fingerprint": fingerprint, "created": datetime.now(UTC).isoformat()}
        slot.publish(meta | {"metrics": metrics, "facts": {}, "inputs": {}, "config": {}, "seconds": 1.0})
    return {
        "stage": stage,
        "fingerprint": fingerprint,
        "status": "done",
        "metrics": metrics,
        "seconds": 1.0,
        "error": "",
    }


def row(backend: str, model: str, speedup: float | None) -> dict[str, Any]:
    rate = 20.0 * (speedup or 1)
    return {
        "backend": backend,
        "model": model,
        "status": "ok",
        "decode_tokens_per_second": rate,
        "decode_tokens_per_second_min": 0.9 * rate,
        "decode_tokens_per_second_max": 1.2 * rate,
        "decode_speedup": {"torch_fp32_dense": speedup},
    }


def nodes_of(store: Store, rows: list[dict[str, Any]], metric: str = "perplexity") -> dict[str, dict[str, Any]]:
    higher = metric != "perplexity"
    nodes = {
        name: publish(
            store,
            "evaluate",
            f"{i}" * 64,
            "metrics.json",
            {metric: {"value": value, "stderr": error, "protocol": {"higher_is_better": higher}}},
        )
        for i, (name, (value, error)) in enumerate(PERPLEXITY.items())
    }
    found = {"machine": {"cpu": "A CPU", "threads": 2}, "protocol": {}, "rows": rows}
    nodes["prune_50"] = publish(store, "prune", "a" * 64, "layers.json", {})
    return nodes | {"benchmark": publish(store, "benchmark", "b" * 64, "benchmark.json", found)}


def outcomes(nodes: dict[str, dict[str, Any]]) -> Outcomes:
    return {name: Outcome.from_json(name, node) for name, node in nodes.items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "store")


@pytest.fixture
def nodes(store: Store) -> dict[str, dict[str, Any]]:
    rows = [row(*pair, speedup) for pair, speedup in SPEEDUPS.items()]
    return nodes_of(store, [*rows, {"backend": "onnx_fp32", "model": "dense", "status": "n/a", "reason": "none"}])


def drawn(figure: Figure) -> dict[str, ErrorbarContainer]:
    return {bars.get_label(): bars for bars in figure.axes[0].containers if isinstance(bars, ErrorbarContainer)}


def test_the_drawn_points_are_the_rows(nodes: dict[str, dict[str, Any]], store: Store) -> None:
    found = plots.collect(outcomes(nodes), store)
    assert found is not None
    shown = drawn(plots.draw(found))
    assert shown.keys() == {f"{backend} {model}" for backend, model in SPEEDUPS}
    for (backend, model), speedup in SPEEDUPS.items():
        marker, _, (across, upright) = shown[f"{backend} {model}"]
        node, measured = JUDGES[backend, model]
        value, error = PERPLEXITY[node]
        assert (marker.get_xdata()[0], marker.get_ydata()[0]) == pytest.approx((speedup, value))
        assert (marker.get_markerfacecolor() != "white") == measured
        assert marker.get_color() == plots.COLORS[model]
        (left, _), (right, _) = across.get_segments()[0]
        assert (left, right) == pytest.approx((0.9 * speedup, 1.2 * speedup))
        (_, low), (_, high) = upright.get_segments()[0]
        assert (low, high) == pytest.approx((value - error, value + error))


def test_shapes_tell_backends_and_colours_models(nodes: dict[str, dict[str, Any]], store: Store) -> None:
    found = plots.collect(outcomes(nodes), store)
    assert found is not None
    shown = {label: bars[0] for label, bars in drawn(plots.draw(found)).items()}
    assert shown["torch_fp32 dense"].get_marker() == shown["torch_fp32 sparse"].get_marker()
    assert len({line.get_marker() for line in shown.values()}) == len({backend for backend, _ in SPEEDUPS})
    assert shown["torch_fp32 dense"].get_color() != shown["torch_fp32 sparse"].get_color()


def test_axes_and_legend_say_what_is_drawn(nodes: dict[str, dict[str, Any]], store: Store) -> None:
    found = plots.collect(outcomes(nodes), store)
    assert found is not None
    figure = plots.draw(found)
    axes = figure.axes[0]
    assert "lower is better" in axes.get_ylabel()
    assert axes.get_xscale() == "log"
    assert "2 threads of A CPU" in axes.get_title(loc="left")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any("50%" in text for text in legend)
    assert any("not measured" in text for text in legend)
    slow = replace(found, points=[point for point in found.points if point.speedup < 1.5])
    assert plots.draw(slow).axes[0].get_xscale() == "linear"
    assert not [text for text in plots.draw(slow).legends[0].get_texts() if "not measured" in text.get_text()]


def test_perplexities_far_apart_have_an_axis_of_ratios(nodes: dict[str, dict[str, Any]], store: Store) -> None:
    found = plots.collect(outcomes(nodes), store)
    assert found is not None
    first, *others = found.points
    near = replace(found, points=[replace(point, quality=12.0) for point in found.points])
    far = replace(near, points=[replace(first, quality=100.0), *others])
    assert plots.draw(near).axes[0].get_yscale() == "linear"
    assert plots.draw(far).axes[0].get_yscale() == "log"
    assert plots.draw(replace(far, metric="bleu")).axes[0].get_yscale() == "linear"


def test_one_round_is_drawn_though_its_ends_are_rounded_past_it(nodes: dict[str, dict[str, Any]], store: Store) -> None:
    found = plots.collect(outcomes(nodes), store)
    assert found is not None
    points = [replace(at, slowest=at.speedup * (1 + 1e-16), fastest=at.speedup * (1 - 2e-16)) for at in found.points]
    assert any(at.fastest < at.speedup for at in points)
    assert len(drawn(plots.draw(replace(found, points=points)))) == len(points)


def test_of_other_metrics_more_may_be_better(store: Store) -> None:
    found = plots.collect(outcomes(nodes_of(store, [row("torch_fp32", "dense", 1.0)], "exact_match")), store)
    assert found is not None
    assert plots.draw(found).axes[0].get_ylabel() == "exact match, ± standard error (higher is better)"


def test_nothing_is_drawn_of_a_job_without_speed_or_quality(
    nodes: dict[str, dict[str, Any]], store: Store, tmp_path: Path
) -> None:
    for missing in ("benchmark", "dense_eval"):
        fewer = {name: node for name, node in nodes.items() if name != missing}
        assert plots.quality_speed(outcomes(fewer), store, tmp_path) is None
    failed = nodes | {"benchmark": nodes["benchmark"] | {"status": "failed", "metrics": {}}}
    assert plots.quality_speed(outcomes(failed), store, tmp_path) is None
    no_baseline = Store(tmp_path / "other")
    assert (
        plots.quality_speed(outcomes(nodes_of(no_baseline, [row("torch_bf16", "dense", None)])), no_baseline, tmp_path)
        is None
    )
    assert not (tmp_path / plots.NAME).exists()


def test_the_same_results_give_the_same_file(nodes: dict[str, dict[str, Any]], store: Store, tmp_path: Path) -> None:
    first = plots.quality_speed(outcomes(nodes), store, tmp_path)
    assert first is not None
    content = first.read_bytes()
    assert content.startswith(b"<?xml")
    plots.quality_speed(outcomes(nodes), store, tmp_path)
    assert first.read_bytes() == content


def test_names_of_many_backends_do_not_cover_each_other() -> None:
    names = ("torch_fp32", "torch_bf16", "torch_int8", "engine_fp32", "engine_bf16", "engine_int8", "onnx_int8")
    points = [
        Point(name, model, speedup, 0.97 * speedup, 1.03 * speedup, quality, 0.04 * quality, True)
        for model, quality in (("dense", 16.0), ("sparse", 26.0))
        for name, speedup in zip(names, (1, 1.02, 1.1, 1.24, 2.3, 2.4, 2.41), strict=True)
    ]
    figure = plots.draw(QualitySpeed(points, "perplexity", False, "batch 1", 0.5))
    axes = figure.axes[0]
    boxes = {text: Box(*text.get_window_extent().extents) for text in axes.texts}
    assert len(boxes) == len(points)
    assert not [pair for pair in itertools.combinations(boxes.values(), 2) if pair[0].overlaps(pair[1])]
    for point in points:
        x, y = axes.transData.transform((point.speedup, point.quality))
        assert not [text for text, box in boxes.items() if box.overlaps(Box(x - 4, y - 4, x + 4, y + 4))]


@settings(max_examples=200, deadline=None)
@example([(50, 50), (50, 65), (61, 55)])
@given(st.lists(st.tuples(st.integers(50, 750), st.integers(50, 450)), min_size=1, max_size=8, unique=True))
def test_labels_with_room_are_free_of_each_other(markers: list[tuple[int, int]]) -> None:
    room = Box(0, 0, 800, 500)
    sizes = [(60.0, 10.0)] * len(markers)
    anchors = plot_labels.place(markers, sizes, [], room, nearest=10)
    boxes = [plot_labels.box_at(*each) for each in zip(anchors, markers, sizes, strict=True)]
    assert all(room.holds(box) for box in boxes)
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_line_crosses_the_boxes_it_enters() -> None:
    box = Box(0, 0, 10, 5)
    assert box.crossed((-5, 2), (15, 2))
    assert box.crossed((5, 2), (30, 40))
    assert box.crossed((2, 9), (2, 1))
    assert not box.crossed((-5, 6), (15, 6))
    assert not box.crossed((-5, 2), (-1, 2))
    assert not box.crossed((-3, 3), (3, 9))


def test_the_report_draws_a_finished_job(
    nodes: dict[str, dict[str, Any]], store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = store.root.parent
    job = Job("defaults", "", runs / "jobs" / "20260101-000000", {}, {})
    job.write()
    (job.folder / "summary.json").write_text(json.dumps(nodes))
    monkeypatch.setattr(sys, "argv", ["report", "--runs", str(runs), "--plot"])
    report.main()
    assert (job.folder / plots.NAME).exists()
    assert str(job.folder / plots.NAME) in "".join(capsys.readouterr().out.split("\n"))
    monkeypatch.setattr(sys, "argv", ["report", str(job.folder), "--runs", str(runs / "elsewhere"), "--plot"])
    with pytest.raises(SystemExit, match="1"):
        report.main()
    assert "--plot: no job here has a benchmark" in capsys.readouterr().err


def test_a_job_leaves_its_plot_beside_its_summary(place: Place) -> None:
    few = ("sparsity=0", "dense.skip=true", "quantize=none", "tracking=none", "benchmark.backends=[torch_fp32]")
    found = place.start(*few)
    assert found.returncode == 0, found.stderr
    folder = next(place.runs.rglob("summary.json")).parent
    assert (folder / plots.NAME).stat().st_size > 10_000
    assert plots.NAME in found.stdout
