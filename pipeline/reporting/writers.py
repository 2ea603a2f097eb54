"""The report as files: Markdown, CSV, LaTeX and JSON; the page is `page`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import StringIO
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.reporting import choices, tables
from pipeline.reporting.cells import EMPTY, Table, fitting
from pipeline.reporting.models import ModelRow
from pipeline.reporting.speed_verdicts import SpeedComparison, merged
from pipeline.reporting.speeds import SpeedRow
from pipeline.reporting.study import Study, state

FORMAT = 1
"""Of report.json."""
PAPER = ("models", "seeds", "published", "shares", "published_speeds")
"""Tables that are short enough for one."""
WIDTH = 100
"""Characters of a line of them: in small type somewhat more than a page is wide, to which it is shrunk."""
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "–": "--",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≥": r"$\ge$", "≤": r"$\le$",
    "<": "$<$", ">": "$>$", "|": "$|$", "→": r"$\to$", "…": r"\dots{}",
}  # fmt: skip


def markdown(study: Study) -> str:
    template = _environment(autoescape=False).get_template("report.md.j2")
    return template.render(study=study, tables=tables.everything(study), state=state, empty=EMPTY,
                           common=choices.common(study.jobs), cell=_markdown_cell, md=md, code=_code)  # fmt: skip


def latex(study: Study) -> str:
    """Tables for a paper, without the long ones and the columns of least weight: what \\input needs, nothing of a
    document."""
    template = _environment(
        autoescape=False, block_start_string="<%", block_end_string="%>", variable_start_string="<<",
        variable_end_string=">>", comment_start_string="<#", comment_end_string="#>",
    ).get_template("report.tex.j2")  # fmt: skip
    wanted = [replace(table, columns=fitting(table, WIDTH)) for table in tables.everything(study)
              if table.name in PAPER]  # fmt: skip
    return template.render(
        study=study, tables=wanted, tex=tex, empty=EMPTY, one_line=lambda text: " ".join(text.split())
    )


def comma_separated(study: Study) -> str:
    """A row for each model, or where none was evaluated, for each model of each backend; figures unrounded: for a
    spreadsheet or a data frame."""
    written = StringIO()
    rows = [_flat(study, row) for row in study.models] or [
        _flat_speed(study, row, side) for row in study.speeds for side in ("dense", "sparse")
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def _flat(study: Study, row: ModelRow) -> dict[str, Any]:
    found: dict[str, Any] = {"model": row.label, "kind": row.kind}
    found["jobs"] = " ".join(study.jobs[at].folder.name for at in row.jobs)
    found |= {f"option.{key}": row.dials.get(key, "") for key in study.columns}
    for name, quality in row.qualities.items():
        found |= {name: quality.value, f"{name}_stderr": quality.stderr, f"{name}_recovery": quality.recovery}
    found |= {key: getattr(row, key) for key in ("sparsity", "model_sparsity", "checkpoint_bytes", "seconds")}
    if row.speed:
        found |= {"decode_speedup": row.speed.ratio, "decode_backend": row.speed.backend,
                  "weight_bytes": row.speed.weight_bytes}  # fmt: skip
        benchmarks = set(row.speed.fingerprints)
        found |= _flat_published([
            at for at in study.speed_comparisons
            if benchmarks & set(at.benchmarks) and at.backend == row.speed.backend
            and (at.reference.sparsity == 0) == row.is_dense
        ])  # fmt: skip
    return found | {"evaluation": row.evaluation, "checkpoint": row.checkpoint}


def _flat_speed(study: Study, row: SpeedRow, side: Literal["dense", "sparse"]) -> dict[str, Any]:
    found: dict[str, Any] = {"model": side, "backend": row.backend}
    found["jobs"] = " ".join(study.jobs[at].folder.name for at in row.jobs)
    found |= {f"option.{key}": row.dials.get(key, "") for key in study.columns}
    found["sparsity"] = row.sparsity if side == "sparse" else 0.0
    if measured := getattr(row, side):
        found |= {key: measured[key] for key in ("decode_tokens_per_second", "prefill_ms", "weight_bytes")}
        found |= {"decode_speedup": measured["decode_speedup"]["torch_fp32_dense"],
                  "over_dense": measured["decode_speedup"]["same_backend_dense"]}  # fmt: skip
    found |= _flat_published([
        at for at in study.speed_comparisons
        if row.benchmark in at.benchmarks and at.backend == row.backend
        and (at.reference.sparsity == 0) == (side == "dense")
    ])  # fmt: skip
    return found | {"benchmark": row.benchmark}


def _flat_published(beside: Sequence[SpeedComparison]) -> dict[str, Any]:
    """Ours and the paper's ratio, by what gains it."""
    found: dict[str, Any] = {}
    for at in merged(beside):
        name = f"speedup_by_{at.gain.replace(' ', '_')}"
        found |= {name: at.ours, f"{name}_min": at.slowest, f"{name}_max": at.fastest,
                  f"{name}_published": at.published, f"{name}_verdict": at.verdict,
                  "published_speed_of": at.reference.ran}  # fmt: skip
    return found


def record(study: Study) -> dict[str, Any]:
    """report.json: every figure with the fingerprint of the result it is from."""
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
                "state": state(job, study.results),
                "options": settings,
                "command": job.command,
                "reference": job.config.get("reference", ""),
                "nodes": {
                    name: {"stage": node.stage, "fingerprint": node.fingerprint, "status": node.status}
                    for name, node in job.nodes.items()
                },
            }
            for job, settings in zip(study.jobs, study.settings, strict=True)
        ],
        "models": [asdict(row) for row in study.models],
        "seeds": [asdict(row) for row in study.seeds],
        "speeds": [asdict(row) for row in study.speeds],
        "shares": [asdict(share) for share in study.shares],
        "machines": [asdict(machine) for machine in study.machines],
        "published": [
            {
                "evaluation": at.row.evaluation,
                "model": at.row.label,
                "options": at.row.dials,
                "metric": at.metric,
                "value": at.ours.value,
                "stderr": at.ours.stderr,
                "recovery": at.ours.recovery,
                "reference": asdict(at.reference) | {"recovery": at.reference.recovery},
                "same_model": at.same_model,
                "same_data": at.same_data,
                "verdict": at.verdict,
                "why": at.told,
            }
            for at in study.comparisons
        ],
        "published_speeds": [
            asdict(at) | {"options": at.dials, "reference": asdict(at.reference) | {"ran": at.reference.ran}}
            for at in study.speed_comparisons
        ],
        "references": [asdict(reference) | {"recovery": reference.recovery} for reference in study.references],
        "stages": [asdict(group) for group in study.groups],
        "environments": [asdict(environment) for environment in study.environments],
        "common": choices.common_settings(study.jobs),
        "problems": study.problems,
    }


def as_json(study: Study) -> str:
    return json.dumps(record(study), indent=1, ensure_ascii=False, default=dict) + "\n"


def tex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def md(text: str) -> str:
    """Text that Markdown shows as it is: no tags, no columns."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _code(text: str) -> str:
    """Between backticks, more of them than stand in the text: there nothing has a meaning."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"


def _markdown_cell(table: Table, row: dict[str, Any], key: str) -> str:
    cell = row.get(key, EMPTY)
    text = md(cell.text)
    if key == "command" and text:
        return _code(cell.text.replace("|", "\\|"))
    return f"**{text}**" if cell.best else text


def _environment(**how: Any) -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.reporting"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **how,
    )  # fmt: skip
