"""All tables of a report, and those about its jobs."""

from __future__ import annotations

import os

from pipeline import job_log
from pipeline.reporting import quality_tables, speed_tables
from pipeline.reporting.cells import Cell, Column, Table, option_columns, options, table
from pipeline.reporting.sharing import Group
from pipeline.reporting.study import Study


def everything(study: Study) -> list[Table]:
    """Returns all tables that have rows."""
    makers = (
        *(quality_tables.pivot, quality_tables.models, quality_tables.seeds, quality_tables.published),
        *(speed_tables.shares, speed_tables.published, speed_tables.backends),
        *(sharing, jobs),
    )
    return [made for make in makers if (made := make(study)).rows]


def sharing(study: Study) -> Table:
    columns = [
        Column("stage", "stage", number=False),
        Column("uses", "requested"),
        Column("results", "distinct"),
        Column("made", "made here"),
        Column("seconds", "seconds"),
        Column("saved", "saved by sharing, s"),
    ]
    rows = [_shared(group) for group in study.groups]
    note = (
        "Each distinct result is made once, by whichever job comes to it first. `made here` leaves out those that were "
        "stored before."
    )
    return table("sharing", "What was shared", columns, rows, note)


def _shared(group: Group) -> dict[str, Cell]:
    left = group.results - group.there
    return {
        "stage": Cell(group.name),
        "uses": Cell(str(group.uses), group.uses),
        "results": Cell(str(group.results) + (f" ({left} to go)" if left else ""), group.results),
        "made": Cell(str(group.made), group.made),
        "seconds": Cell(f"{group.seconds:,.0f}", group.seconds, None, group.fingerprints),
        "saved": Cell(f"{group.saved:,.0f}" if group.saved else "", group.saved),
    }


def jobs(study: Study) -> Table:
    rows = []
    for job, settings, state in zip(study.jobs, study.settings, study.states, strict=True):
        log = job.folder / job_log.NAME
        link = os.path.relpath(log, study.folders[0].path) if log.exists() else ""
        own = {"job": Cell(job.folder.name, link=link), "state": Cell(state), "command": Cell(job.command)}
        rows.append(options(settings) | own)
    columns = [
        Column("job", "job", number=False),
        *option_columns(study.columns),
        Column("state", "state", number=False),
        Column("command", "the job alone", number=False),
    ]
    return table("jobs", "Jobs", columns, rows)
