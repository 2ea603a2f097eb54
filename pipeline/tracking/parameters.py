"""Chooses the parameters by which MLflow compares jobs: options that differ from the defaults, and a few that always
matter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.command import conf_files, option_table
from pipeline.credentials import public
from pipeline.record.job import Job
from pipeline.record.sweep import MECHANICS

GROUPS = ("model", "data", "schedule", "distill")
OPTIONS = ("sparsity", "seed", "device", "prune.method", "finetune.steps", "finetune.epochs", "finetune.lr")
"""Logged for every job, with the chosen options of `GROUPS`."""
TABLES = ("experiment", "row", "task")
"""Groups whose files set options of other sections. These options are logged as if they had been typed."""
NOTHING: tuple[Any, ...] = (None, [], {}, "")
"""Values of optional sections and lists that were not given."""


def job_parameters(job: Job) -> dict[str, str]:
    """Returns the swept parameters, the chosen options of groups, and the options whose values come neither from the
    defaults nor from a chosen group.

    For a chosen group, only its name is logged: `distill.kd` and `distill.squarehead` would take two of the three
    places in which MLflow's comparison begins, before `sparsity`.
    """
    options = dict(conf_files.flatten(job.config))
    expected = _expected(job.choices)
    usual = conf_files.default_choices()
    chosen = {group: name for group, name in job.choices.items() if group in GROUPS or usual.get(group) != name}
    differing = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in options.items()
        if key in OPTIONS or not (key.startswith(MECHANICS) or _is_expected(key, value, expected, options))
    }
    return {key: public(value) for key, value in (job.swept_parameters | chosen | differing).items()}


def _expected(choices: Mapping[str, str]) -> dict[str, Any]:
    """Returns the value of each option by the defaults and the chosen groups, as their files give it."""
    found = {name: option.default for name, option in option_table.options().items()}
    for file in conf_files.conf_files():
        if file.group and file.group not in TABLES and choices.get(file.group) == file.option:
            found |= file.values
    return found


def _is_expected(key: str, value: Any, expected: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    default = expected.get(key, option_table.NO_DEFAULT)
    if default is option_table.NO_DEFAULT:
        return value in NOTHING
    other = re.fullmatch(r"\$\{([\w.]+)\}", default) if isinstance(default, str) else None
    return _agrees(value, options.get(other[1]) if other else default)


def _agrees(value: Any, given: Any) -> bool:
    """Returns whether a resolved value is what a file gives. For sections in a list, files give some options only."""
    if isinstance(given, Mapping) and isinstance(value, Mapping):
        return all(key in value and _agrees(value[key], item) for key, item in given.items())
    if isinstance(given, list | tuple) and isinstance(value, list | tuple):
        return len(value) == len(given) and all(map(_agrees, value, given))
    return bool(value == given)
