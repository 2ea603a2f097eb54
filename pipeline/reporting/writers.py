"""Writes the report as Markdown, CSV, LaTeX and JSON; `page` writes the HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline.record.folders import Node
from pipeline.record.status import Status
from pipeline.reporting import choices, tables
from pipeline.reporting.analysis import Row
from pipeline.reporting.cells import EMPTY, Table, fitting
from pipeline.reporting.speed_verdicts import merged
from pipeline.reporting.speeds import SpeedRow
from pipeline.reporting.study import Environment, Study
from pipeline.reporting.table import BASELINES, MODEL

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = 1
OLD_NAMES = {"options": "dials", "note": "told"}
"""Names of fields in report.json, by our names. They stay for existing readers of the file."""
PAPER = ("pivot", "models", "seeds", "published", "shares", "published_speeds")
"""Tables short enough for a paper."""
WIDTH = 100
"""Characters of a LaTeX table's line: in small type somewhat wider than a page, to which it is shrunk."""
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "–": "--",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≥": r"$\ge$", "≤": r"$\le$",
    "<": "$<$", ">": "$>$", "|": "$|$", "→": r"$\to$", "…": r"\dots{}",
})  # fmt: skip
"""Characters to escape: pandas escapes only eleven, and none in captions."""
HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|"})


def markdown(study: Study) -> str:
    lines = [f"# {md(study.heading)}", ""]
    for folder in study.folders:
        started = f", started {folder.started}" if folder.started else ""
        lines += [f"{md(folder.path.name)}{started}: {code(folder.command)}", ""]
    lines += [f"- **{md(problem)}**" for problem in study.problems]
    for table in tables.everything(study):
        shown = frame(table, _markdown_cell).rename(columns=md)
        alignment = ["right" if column.number else "left" for column in table.columns]
        text = shown.to_markdown(index=False, disable_numparse=True, colalign=alignment)
        lines += ["", f"## {md(table.title)}", "", text, *(line for note in table.notes for line in ("", md(note)))]
    lines += ["", "## Configuration that all jobs share", ""]
    lines += [f"- {md(key)}: {md(str(value))}" for key, value in study.common.items()]
    lines += ["", "## Environment", "", *(f"- {md(environment(at))}" for at in study.environments)]
    return "\n".join(lines) + "\n"


def environment(at: Environment) -> str:
    software = ", ".join([f"Python {at.python}", *(f"{name} {version}" for name, version in at.packages.items())])
    threads = f"{' or '.join(map(str, at.threads))} thread{'s' * (at.threads != (1,))}"
    commits = f"; commit {', '.join(at.commits)}" if at.commits else ""
    return f"{at.cpu}, {at.cores} cores, {threads}; {software}; {at.results} results, {at.first} to {at.last}{commits}"


def latex(study: Study) -> str:
    r"""Returns tables for a paper, without the long ones and the columns of least weight: for \input, without a
    document around them."""
    lines = [f"% {_one_line(study.title)}. Needs \\usepackage{{booktabs,graphicx}}. All columns are in report.md."]
    lines += [f"% {_one_line(folder.command)}" for folder in study.folders]
    for whole in tables.everything(study):
        if whole.name not in PAPER:
            continue
        table = replace(whole, columns=fitting(whole, WIDTH))
        shown = frame(table, _latex_cell)
        shown.columns = [tex(column.label) for column in table.columns]
        alignment = "".join("r" if column.number else "l" for column in table.columns)
        body = shown.style.hide(axis="index").to_latex(hrules=True, column_format=f"@{{}}{alignment}@{{}}")
        caption = " ".join([f"{table.title}, {study.title}.", *table.notes])
        lines += ["", "\\begin{table}", "\\centering", f"\\caption{{{tex(caption)}}}", "\\par\\medskip\\small",
                  f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{body.strip()}}}",
                  "\\end{table}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def frame(table: Table, text: Any) -> DataFrame:
    """Returns the texts of a table; `text` maps a row and a column key to the text of its cell."""
    from pandas import DataFrame

    rows = [[text(row, column.key) for column in table.columns] for row in table.rows]
    return DataFrame(rows, columns=[column.label for column in table.columns], dtype=object)


def tex(text: str) -> str:
    return text.translate(LATEX)


def md(text: str) -> str:
    """Escapes text so that Markdown shows it unchanged: no tags, no columns."""
    return text.translate(HTML)


def code(text: str) -> str:
    """Quotes text with more backticks than it contains, so that nothing in it has a meaning."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"


def _markdown_cell(row: Mapping[str, Any], key: str) -> str:
    cell = row.get(key, EMPTY)
    if key == "command" and cell.text:
        return code(cell.text.replace("|", "\\|"))
    return f"**{md(cell.text)}**" if cell.best else md(cell.text)


def _latex_cell(row: Mapping[str, Any], key: str) -> str:
    cell = row.get(key, EMPTY)
    return f"\\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def comma_separated(study: Study) -> str:
    """Returns a row for each model, or if none was evaluated, for each model of each backend, with unrounded figures,
    for a spreadsheet or a data frame."""
    from pandas import DataFrame

    rows = [_flat(study, row) for row in study.models] or [
        _flat_speed(study, row, side) for row in study.speeds for side in ("dense", "sparse")
    ]
    return str(DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n"))


def _flat(study: Study, model: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"model": model["label"], "kind": model["kind"]} | _asked(study, model)
    for name, row in study.qualities[model["evaluation"]].items():
        found |= {name: row["value"], f"{name}_stderr": row["stderr"], f"{name}_recovery": row["recovery"]}
    found |= {key: model[key] for key in ("sparsity", "model_sparsity", "checkpoint_bytes", "seconds")}
    if speed := study.speed(model):
        found |= {"decode_speedup": speed.ratio, "decode_backend": speed.backend, "weight_bytes": speed.weight_bytes}
        dense = model["kind"] in BASELINES and not model["sparsity"]
        found |= _flat_published(study, speed.fingerprints, speed.backend, dense)
    return found | {"evaluation": model["evaluation"], "checkpoint": model["checkpoint"]}


def _flat_speed(study: Study, row: SpeedRow, side: str) -> dict[str, Any]:
    found: dict[str, Any] = {"model": side, "backend": row.backend} | _asked(study, asdict(row))
    found["sparsity"] = row.sparsity if side == "sparse" else 0.0
    if measured := row.sparse if side == "sparse" else row.dense:
        found |= {key: measured[key] for key in ("decode_tokens_per_second", "prefill_ms", "weight_bytes")}
        found |= {"decode_speedup": measured["decode_speedup"]["torch_fp32_dense"],
                  "over_dense": measured["decode_speedup"]["same_backend_dense"]}  # fmt: skip
    found |= _flat_published(study, [row.benchmark], row.backend, dense=side == "dense")
    return found | {"benchmark": row.benchmark}


def _asked(study: Study, row: Row) -> dict[str, Any]:
    """Returns the jobs and options of a row."""
    jobs = {"jobs": " ".join(study.jobs[at].folder.name for at in row["jobs"])}
    return jobs | {f"option.{key}": row["options"].get(key, "") for key in study.columns}


def _flat_published(study: Study, benchmarks: Sequence[str], backend: str, dense: bool) -> dict[str, Any]:
    """Returns our ratio and the paper's, by what gains it."""
    beside = [
        at
        for at in study.speed_comparisons
        if set(benchmarks) & set(at.benchmarks) and at.backend == backend and (at.reference.sparsity == 0) == dense
    ]
    found: dict[str, Any] = {}
    for at in merged(beside):
        name = f"speedup_by_{at.gain.replace(' ', '_')}"
        found |= {name: at.ours, f"{name}_min": at.slowest, f"{name}_max": at.fastest,
                  f"{name}_published": at.published, f"{name}_verdict": at.verdict,
                  "published_speed_of": at.reference.ran}  # fmt: skip
    return found


def as_json(study: Study) -> str:
    """Returns report.json: every figure with the fingerprint of its result."""
    return json.dumps(_record(study), indent=1, ensure_ascii=False, default=dict) + "\n"


def _record(study: Study) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "title": study.title,
        "folders": [
            {"name": folder.path.name, "command": folder.command, "started": folder.started} for folder in study.folders
        ],
        "metric": study.metric,
        "options": study.columns,
        "jobs": [
            {
                "name": job.name,
                "folder": f"{job.folder.parent.name}/{job.folder.name}",
                "state": state,
                "options": settings,
                "command": job.command,
                "reference": job.config.get("reference", ""),
                "nodes": {
                    name: {"stage": node.stage, "fingerprint": node.fingerprint, "status": _status(node)}
                    for name, node in job.nodes.items()
                },
            }
            for job, settings, state in zip(study.jobs, study.settings, study.states, strict=True)
        ],
        "models": [_model(study, row) for row in study.models],
        "seeds": [_as_written(asdict(row)) for row in study.seeds],
        "speeds": [_as_written(asdict(row)) for row in study.speeds],
        "shares": [_as_written(asdict(share)) for share in study.shares],
        "machines": [asdict(machine) for machine in study.machines],
        "published": [
            {
                "evaluation": at.row["evaluation"],
                "model": at.row["label"],
                "options": at.row["options"],
                **{key: at.row[key] for key in ("metric", "value", "stderr", "recovery")},
                "reference": asdict(at.reference) | {"recovery": at.reference.recovery},
                **{key: getattr(at, key) for key in ("same_model", "same_data", "verdict", "why")},
            }
            for at in study.comparisons
        ],
        "published_speeds": [
            _as_written(asdict(at))
            | {"options": at.options, "reference": asdict(at.reference) | {"ran": at.reference.ran}}
            for at in study.speed_comparisons
        ],
        "references": [asdict(reference) | {"recovery": reference.recovery} for reference in study.references],
        "stages": [asdict(group) for group in study.groups],
        "environments": [asdict(environment) for environment in study.environments],
        "common": choices.common_settings(study.jobs),
        "problems": study.problems,
    }


def _status(node: Node) -> str:
    """Returns the status; empty if there is none (yet)."""
    return "" if node.status == Status.TO_RUN else node.status.value


def _model(study: Study, model: Row) -> dict[str, Any]:
    speed = study.speed(model)
    quality = ("value", "stderr", "recovery", "higher_is_better", "protocol")
    qualities = {name: {key: row[key] for key in quality} for name, row in study.qualities[model["evaluation"]].items()}
    own = _as_written({key: model[key] for key in MODEL})
    return own | {"qualities": qualities, "speed": asdict(speed) if speed else None}


def _as_written(row: dict[str, Any]) -> dict[str, Any]:
    """Renames swept parameters and notes to their names in report.json."""
    return {OLD_NAMES.get(key, key): value for key, value in row.items()}
