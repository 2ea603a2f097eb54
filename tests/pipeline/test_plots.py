"""The quality-speed figure shows the benchmark's rows at the quality of what they ran, and names that can be read."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from pipeline import report
from pipeline.reporting import figures, plot_labels, plots, speed_figures, study
from pipeline.reporting.plot_labels import Box
from pipeline.reporting.study import Study
from tests.running import Place
from tests.tiny_reports import Runs

RATES = {
    ("torch_fp32", "dense"): 10.0,
    ("torch_fp32", "sparse"): 10.2,
    ("torch_bf16", "dense"): 19.0,
    ("torch_bf16", "sparse"): 19.5,
    ("squarehead_w8a8", "dense"): 9.0,
    ("squarehead_w8a8", "sparse"): 9.1,
    ("engine_int8", "dense"): 40.0,
    ("engine_int8", "sparse"): 65.0,
    ("engine_int8_head", "dense"): 45.0,
    ("engine_int8_head", "sparse"): 70.0,
}
INT8 = ("squarehead_w8a8", "engine_int8", "engine_int8_head")
ROUNDED = ("torch_bf16", "engine_int8_head")
"""Their own quality was not measured."""


def of(runs: Runs, value: float = 26.0) -> Study:
    """A job of those rates."""
    return study.collect([runs.job(0.5, "squarehead", value, int8=True)], runs.folder, runs.folder)


def drawn(figure: Figure) -> dict[str, ErrorbarContainer]:
    return {bars.get_label(): bars for bars in figure.axes[0].containers if isinstance(bars, ErrorbarContainer)}


def figure_of(found: Study) -> Figure:
    figure = speed_figures.pareto_figure(found, all_named=True)
    assert figure is not None
    return figure


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs", dense=16.0, rates=dict(RATES))


def test_the_drawn_points_are_the_rows(runs: Runs) -> None:
    shown = drawn(figure_of(of(runs)))
    assert shown.keys() == {f"{backend} {model}" for backend, model in RATES}
    for (backend, model), rate in RATES.items():
        marker, _, (across, upright) = shown[f"{backend} {model}"]
        quality = {"dense": 16.0, "sparse": 26.0}[model] * (1.01 if backend in INT8 else 1)
        speedup = rate / RATES["torch_fp32", "dense"]
        assert (marker.get_xdata()[0], marker.get_ydata()[0]) == pytest.approx((speedup, quality))
        assert (marker.get_markerfacecolor() != figures.PAPER) == (backend not in ROUNDED)
        (left, _), (right, _) = across.get_segments()[0]
        assert (left, right) == pytest.approx((0.9 * speedup, 1.1 * speedup))
        (_, low), (_, high) = upright.get_segments()[0]
        assert (low, high) == pytest.approx((quality - 1, quality + 1))


def test_shapes_tell_backends_and_colours_models(runs: Runs) -> None:
    shown = {label: bars[0] for label, bars in drawn(figure_of(of(runs))).items()}
    assert shown["torch_fp32 dense"].get_marker() == shown["torch_fp32 sparse"].get_marker()
    assert len({line.get_marker() for line in shown.values()}) == len({backend for backend, _ in RATES})
    assert shown["torch_fp32 dense"].get_color() != shown["torch_fp32 sparse"].get_color()


def test_axes_and_legend_say_what_is_drawn(runs: Runs, tmp_path: Path) -> None:
    figure = figure_of(of(runs))
    axes = figure.axes[0]
    title = axes.get_title(loc="left")
    assert "2 threads of A CPU" in title
    assert "down and to the right is better" in title
    assert axes.get_xscale() == "log"
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"dense", "squarehead", "torch bf16", speed_figures.HOLLOW} <= legend
    assert any("50 %" in text.get_text() for text in axes.texts)
    near = {row: rate for row, rate in RATES.items() if rate < 15}
    slow = Runs(tmp_path / "slow", "bleu", True, dense=16.0, rates=near)
    axes = figure_of(of(slow)).axes[0]
    assert axes.get_xscale() == "linear"
    assert "up and to the right is better" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    ("metric", "value", "scale"),
    [("perplexity", 17.0, "linear"), ("perplexity", 100.0, "log"), ("bleu", 100.0, "linear")],
)
def test_perplexities_far_apart_have_an_axis_of_ratios(tmp_path: Path, metric: str, value: float, scale: str) -> None:
    runs = Runs(tmp_path, metric, dense=16.0, rates=dict(RATES))
    assert figure_of(of(runs, value)).axes[0].get_yscale() == scale


def test_nothing_is_drawn_of_a_job_without_speed_or_quality(runs: Runs, tmp_path: Path) -> None:
    place = runs.job(0.5, "kd", 26.0)
    assert plots.quality_speed(place, runs.folder) is None
    unjudged = Runs(tmp_path / "other", rates=dict(RATES))
    failed = unjudged.job(0.5, "kd", 26.0, int8=True, failed="benchmark")
    assert plots.quality_speed(failed, unjudged.folder) is None
    assert not list(tmp_path.rglob(plots.NAME))


def test_the_same_results_give_the_same_file_which_needs_no_page(runs: Runs) -> None:
    place = of(runs).jobs[0].folder
    first = plots.quality_speed(place, runs.folder)
    assert first is not None
    content = first.read_bytes()
    tree = etree.fromstring(content)
    assert "background: white" in tree.get("style")
    assert b"var(--" not in content
    plots.quality_speed(place, runs.folder)
    assert first.read_bytes() == content


def test_names_of_many_backends_do_not_cover_each_other(runs: Runs) -> None:
    names = ("torch_fp32", "torch_bf16", "torch_int8", "engine_fp32", "engine_bf16", "engine_int8", "onnx_int8")
    speedups = (1, 1.02, 1.1, 1.24, 2.3, 2.4, 2.41)
    runs.rates = {
        (name, model): 10 * speedup
        for model in ("dense", "sparse")
        for name, speedup in zip(names, speedups, strict=True)
    }
    figure = figure_of(of(runs))
    axes = figure.axes[0]
    boxes = {text: Box(*text.get_window_extent().extents) for text in axes.texts}
    assert len(boxes) == len(runs.rates)
    assert not [pair for pair in itertools.combinations(boxes.values(), 2) if pair[0].overlaps(pair[1])]
    for bars in drawn(figure).values():
        x, y = axes.transData.transform((bars[0].get_xdata()[0], bars[0].get_ydata()[0]))
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
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = of(runs).jobs[0].folder
    runs.write_sweep()
    monkeypatch.setattr(sys, "argv", ["report", "--runs", str(runs.folder), "--plot"])
    report.main()
    assert (folder / plots.NAME).exists()
    assert str(folder / plots.NAME) in "".join(capsys.readouterr().out.split("\n"))
    monkeypatch.setattr(sys, "argv", ["report", str(folder), "--runs", str(runs.folder / "elsewhere"), "--plot"])
    with pytest.raises(SystemExit, match="1"):
        report.main()
    assert "--plot: no job here has a benchmark" in capsys.readouterr().err


def test_a_job_leaves_its_plot_beside_its_summary(place: Place) -> None:
    few = ("sparsity=0", "dense.skip=true", "quantize=none", "tracking=none", "benchmark.backends=[torch_fp32]")
    found = place.call(*few)
    assert found.returncode == 0, found.stderr
    folder = next(place.runs.rglob("summary.json")).parent
    assert (folder / plots.NAME).stat().st_size > 10_000
    assert plots.NAME in found.stdout
