"""Suggests what was probably meant by an option or a choice that Hydra does not find."""

from __future__ import annotations

import difflib
import re

from pipeline import CONF
from pipeline.command.conf_files import conf_files, default_choices

EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit": "submitit",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}
"""Extra that a plugin of Hydra needs: `pip install 'squarehead[EXTRA]'`."""
OURS = "hydra/sweeper/squarehead"


def for_key(said: str) -> str:
    """Returns a suggestion for the key in a message of Hydra; empty if it names none, or nothing is similar."""
    found = re.search(r"(?:Could not override|Key) '([^']+)'", said)
    if not found:
        return ""
    key = found[1]
    known = option_keys()
    if owners := known.get(key):
        return f"{key} belongs to {' or '.join(owners)}"
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    sections = {name.rpartition(".")[0] for name in known} - {""}
    return _did_you_mean(same[:3] or difflib.get_close_matches(key, [*known, *sections], n=3, cutoff=0.75))


def for_option(said: str) -> str:
    """Returns a suggestion for the choice of a group in a message of Hydra; empty if nothing is similar."""
    found = re.search(r"Could not find '([^']+)'", said)
    if not found:
        return ""
    for plugin, extra in EXTRAS.items():
        if found[1].startswith(plugin):
            return f"it needs pip install 'squarehead[{extra}]'"
    if found[1] == OURS:
        return "it came after this installation: pip install -e . in the checkout, or `make env`, adds it"
    group, _, option = found[1].partition("/")
    if group == "hydra":
        return ""
    known = [path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml")]
    last = option.rpartition("/")[2]
    same = [name for name in known if name.rpartition("/")[2] == last]
    like = same or difflib.get_close_matches(option, known, n=3)
    return _did_you_mean([f"{group}={name}" for name in like])


def _did_you_mean(names: list[str]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else ""


def option_keys() -> dict[str, list[str]]:
    """Returns every key of the configuration, with the choices of a group that have it where not all configurations
    do."""
    known: dict[str, list[str]] = {}
    main, *others = conf_files()
    for file in others:
        for key in file.values:
            if key.startswith(f"{file.group}.") and file.group in default_choices():
                known.setdefault(key, []).append(file.choice)
    return known | {key: [] for key in main.values}
