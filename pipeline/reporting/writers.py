"""The report as files: Markdown, CSV, LaTeX and JSON; the page is `page`."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from io import StringIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.reporting import choices, tables
from pipeline.reporting.cells import EMPTY, Table
from pipeline.reporting.models import ModelRow
from pipeline.reporting.study import Study, state

FORMAT = 1
"""Of report.json."""
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "–": "--",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≥": r"$\ge$",
}  # fmt: skip


def markdown(study: Study) -> str:
    template = _environment(autoescape=False).get_template("report.md.j2")
    return template.render(study=study, tables=tables.everything(study), state=state, empty=EMPTY,
                           common=choices.common(study.jobs), cell=_markdown_cell)  # fmt: skip


def latex(study: Study) -> str:
    """Tables for a paper, without the long ones: what \\input needs, and nothing of a document."""
    template = _environment(
        autoescape=False, block_start_string="<%", block_end_string="%>", variable_start_string="<<",
        variable_end_string=">>", comment_start_string="<#", comment_end_string="#>",
    ).get_template("report.tex.j2")  # fmt: skip
    wanted = [table for table in tables.everything(study) if table.name in ("models", "seeds", "published", "shares")]
    return template.render(study=study, tables=wanted, tex=tex, empty=EMPTY)


def comma_separated(study: Study) -> str:
    """A row for each model, figures unrounded: for a spreadsheet or a data frame."""
    written = StringIO()
    rows = [_flat(study, row) for row in study.models]
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
    return found | {"evaluation": row.evaluation, "checkpoint": row.checkpoint}


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


def _markdown_cell(table: Table, row: dict[str, Any], key: str) -> str:
    cell = row.get(key, EMPTY)
    text = cell.text.replace("|", "\\|")
    if key == "command" and text:
        return f"`{text}`"
    return f"**{text}**" if cell.best else text


def _environment(**how: Any) -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.reporting"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **how,
    )  # fmt: skip
