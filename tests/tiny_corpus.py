"""A small corpus of two sources, packed with the tokenizer of the tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from stages.contracts import Checkpoint, PackedCorpus
from stages.corpus import run as corpus
from stages.corpus.spec import CorpusOptions
from tests import tiny
from tests.recording import RecordingLog


def save_sources(folder: Path) -> Path:
    """300 short documents as rows, 40 long ones as files."""
    rows = [{"text": text} for text in tiny.sentences(300, 5)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "files").mkdir()
    for number in range(40):
        (folder / "files" / f"{number:02d}.txt").write_text("\n".join(tiny.sentences(4, 100 + number)))
    return folder


def options(folder: Path, **changes: Any) -> CorpusOptions:
    given = {
        "sources": {
            "rows": {"path": str(folder / "rows.jsonl"), "weight": 3},
            "files": {"path": str(folder / "files"), "files": "*.txt", "weight": 1},
        },
        "tokens": 6000,
        "validation_fraction": 0.2,
        "validation_tokens": 400,
        "shard_tokens": 1000,
    }  # fmt: skip
    return CorpusOptions.model_validate(given | changes)


def pack(config: CorpusOptions, model: Checkpoint, place: Path, log: RecordingLog | None = None) -> PackedCorpus:
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = log or RecordingLog(place / "resume")
    metrics = corpus.run(config, {"model": model}, out, log)
    (out / "meta.json").write_text(json.dumps({"facts": log.found, "metrics": metrics}))
    return PackedCorpus(out, "corpus")
