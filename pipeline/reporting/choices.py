"""The swept parameters, in which the jobs of a report differ, and the options that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.fingerprint import flatten
from pipeline.labels import source
from pipeline.record.folders import JobRecord
from pipeline.record.sweep import MECHANICS

FIRST = ("experiment", "model", "data", "sparsity", "prune", "prune.pattern", "schedule", "schedule.kind", "distill")
"""Columns that come first, in this order."""
NONE = "–"
GUARDS = ("divergence",)


def is_mechanics(key: str) -> bool:
    """Returns whether an option changes how a job runs, but no result; a guard can only stop it."""
    return key.startswith(MECHANICS) or key.rpartition(".")[2] in GUARDS


def is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


def settings(jobs: Sequence[JobRecord]) -> list[dict[str, str]]:
    """Returns for each job the options in which jobs differ, as {option: value}.

    A group that is no section of the configuration but sets others (`row`) is represented by the options that it sets.
    """
    given = [_given(job) for job in jobs]
    leaves = [{key: value for key, value in flatten(job.config).items() if not is_mechanics(key)} for job in jobs]
    known = {key for job in jobs for key in job.config} | {"experiment"}
    typed = dict.fromkeys(key for options in given for key in options)
    chosen = sorted((key for key in typed if len(known) == 1 or _section(key) in known), key=_place)
    columns: dict[str, list[str]] = {}
    for key in chosen:
        values = [_value(key, job, options, found) for job, options, found in zip(jobs, given, leaves, strict=True)]
        if len(set(values)) > 1:
            columns[key] = values
    for key in sorted(dict.fromkeys(key for found in leaves for key in found), key=_place):
        values = [text(found[key]) if key in found else NONE for found in leaves]
        if not is_mechanics(key) and not _is_implied(values, columns, leaves):
            columns[key] = values
    return [{key: columns[key][at] for key in sorted(columns, key=_place)} for at in range(len(jobs))]


def _is_implied(values: list[str], columns: Mapping[str, list[str]], leaves: list[dict[str, Any]]) -> bool:
    """Returns whether the columns already distinguish all jobs (with a configuration) whose values differ."""
    there = [at for at, found in enumerate(leaves) if found]
    described = {tuple(column[at] for column in columns.values()) for at in there}
    return len({(values[at], *(column[at] for column in columns.values())) for at in there}) == len(described)


def _given(job: JobRecord) -> dict[str, str]:
    lines = job.overrides or [f"{key}={value}" for key, value in job.swept_parameters.items()]
    options = dict(line.lstrip("+~").partition("=")[::2] for line in lines)
    return {key: value for key, value in options.items() if not is_mechanics(key)}


def _value(key: str, job: JobRecord, given: Mapping[str, str], leaves: Mapping[str, Any]) -> str:
    if key in given:
        return given[key]
    if key in job.choices:
        return job.choices[key]
    return text(leaves[key]) if key in leaves else NONE


def _section(key: str) -> str:
    return key.partition(".")[0]


def _place(key: str) -> int:
    if is_seed(key):
        return len(FIRST) + 1
    return FIRST.index(key) if key in FIRST else len(FIRST)


def text(value: Any) -> str:
    """Formats the value of an option as on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(text(item) for item in value) + "]"
    return NONE if value is None else str(value)


def loss(config: Mapping[str, Any]) -> str:
    """Returns the loss by its weights: `ce`, `kd` or `squarehead`; `squarehead+kd` for both, further losses likewise;
    empty if it is unknown or the sparse model was not fine-tuned."""
    finetune = config.get("finetune", {})
    if finetune.get("steps") == 0 and not finetune.get("epochs") and not finetune.get("tokens"):
        return ""
    weights = config.get("distill", {})
    parts = [name for name in ("squarehead", "kd") if weights.get(name)]
    parts += [item["name"] for item in weights.get("losses", ()) if item["weight"]]
    return "+".join(parts) or ("ce" if weights.get("ce") else "")


def common_options(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Returns the options that are the same in all."""
    return {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}


def common(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """Returns the settings that all jobs share, in a few words each."""
    described = [_described(job) for job in jobs if job.config]
    if not described:
        return {}
    return {
        key: value
        for key, value in described[0].items()
        if value and all(other.get(key) == value for other in described)
    }


def common_settings(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """Returns every option that is the same in all jobs, by dotted name."""
    described = [{key: text(value) for key, value in flatten(job.config).items()} for job in jobs if job.config]
    if not described:
        return {}
    return {key: value for key, value in described[0].items() if all(other.get(key) == value for other in described)}


def _described(job: JobRecord) -> dict[str, str]:
    at = job.config
    model, data, prune = at.get("model", {}), at.get("data", {}), at.get("prune", {})
    calibrate, quantize = at.get("calibrate", {}), at.get("quantize", {})
    dense = at.get("dense", {})
    return {
        "experiment": job.choices.get("experiment", ""),
        "model": " ".join(filter(None, [source(model), model.get("revision", "")])),
        "family": model.get("family", ""),
        "data": " ".join(filter(None, [source(data), data.get("subset", "")])),
        "dense fine-tuning": "none" if dense.get("skip") else _budget(dense.get("training", {})),
        "sparsity": text(at["sparsity"]) if "sparsity" in at else "",
        "pruning": " ".join(filter(None, [prune.get("method", ""), prune.get("pattern", "")])),
        "calibration": _counts(calibrate, samples="samples", length="tokens"),
        "schedule": " ".join(
            filter(None, [at.get("schedule", {}).get("kind", ""), _levels(at.get("schedule", {}))])
        ),
        "loss": loss(at),
        "fine-tuning": _budget(at.get("finetune", {})),
        "evaluation": _evaluation(at.get("evaluate", {})),
        "int8": "none" if quantize.get("scheme") == "none" else _int8(quantize),
        "seed": text(at["seed"]) if "seed" in at else "",
        "threads": text(at["threads"]) if "threads" in at else "",
    }  # fmt: skip


def _budget(training: Mapping[str, Any]) -> str:
    if not training:
        return ""
    length = next((f"{text(training[unit])} {unit}" for unit in BUDGETS if training.get(unit)), "")
    if not length:
        return "none"
    return (
        f"{length} of {training.get('batch_size')} × {training.get('sequence_length')} tokens at most, "
        f"{training.get('optimizer', 'adamw')}, lr {text(training.get('lr'))} {training.get('decay')}, "
        f"{training.get('precision')}"
    )


BUDGETS = ("steps", "epochs", "tokens")
"""Options of a training, one of which is given."""


def _evaluation(evaluate: Mapping[str, Any]) -> str:
    """Returns what is measured: `perplexity of 32 windows × 256 tokens (test)`, tasks and metrics by name."""
    found = []
    if asked := evaluate.get("perplexity"):
        windows = f"{asked['windows'] or 'all'} windows × {asked['length']} tokens"
        found.append(f"perplexity of {windows} ({asked['split']})")
    if asked := evaluate.get("generation"):
        found.append(f"texts written for {asked['limit'] or 'all'} items ({asked['split']})")
    return ", ".join([*found, *(item["name"] for key in ("tasks", "metrics") for item in evaluate.get(key) or ())])


def _levels(schedule: Mapping[str, Any]) -> str:
    return text(schedule["levels"]) if schedule.get("levels") else ""


def _int8(quantize: Mapping[str, Any]) -> str:
    return f"{quantize.get('scheme')}, smooth {text(quantize.get('smooth'))}" if quantize else ""


def _counts(section: Mapping[str, Any], **names: str) -> str:
    return " × ".join(f"{text(section[key])} {name}" for key, name in names.items() if key in section)
