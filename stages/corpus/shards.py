"""Finished shards of a corpus that is being packed: sealed folders that survive a kill, each with the place to read on
from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages import sealed
from stages.contracts import Log
from stages.corpus.documents import Place
from stages.corpus.encoding import Ids

PREFIX = "shard_"
TRAIN = "train"


@dataclass
class Progress:
    """Progress of a corpus after a shard. All mappings are by source."""

    places: dict[str, Place]
    tokens: dict[str, int]
    """Tokens of the training part."""
    documents: dict[str, int]
    """Documents of the training part."""
    validation_tokens: dict[str, int]
    validation_documents: dict[str, int]
    empty: int = 0
    """Documents without text, which are left out."""

    @classmethod
    def start(cls, sources: Iterable[str]) -> Progress:
        names = list(sources)
        tokens, documents, validation_tokens, validation_documents = (dict.fromkeys(names, 0) for _ in range(4))
        return cls({name: Place() for name in names}, tokens, documents, validation_tokens, validation_documents)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Progress:
        places = {name: Place(**place) for name, place in value["places"].items()}
        return cls(**{**value, "places": places})


@dataclass
class Part:
    """Consecutive documents before they are written."""

    documents: list[Ids] = field(default_factory=list)
    size: int = 0

    def add(self, ids: Ids) -> None:
        self.documents.append(ids)
        self.size += len(ids)

    def save(self, folder: Path, name: str) -> None:
        starts = np.cumsum([0, *map(len, self.documents[:-1])], dtype=np.uint64)
        np.concatenate(self.documents).tofile(folder / f"{name}.bin")
        np.save(folder / f"{name}.starts.npy", starts)


@dataclass
class Shard:
    """A shard that is being filled."""

    train: Part = field(default_factory=Part)
    validation: dict[str, Part] = field(default_factory=dict)
    """Validation documents by source."""

    def save(self, folder: Path, number: int, progress: Progress) -> None:
        writing = sealed.begin(folder)
        for name, part in {TRAIN: self.train, **{_of(name): part for name, part in self.validation.items()}}.items():
            if part.documents:
                part.save(writing, name)
        (writing / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        sealed.finish(writing, folder / f"{PREFIX}{number:05d}")


def restore(folder: Path, start: Progress, log: Log) -> tuple[int, Progress]:
    """Returns the number of consecutive whole shards, and the progress after the last of them. Deletes the others."""
    progress, count = start, 0
    for path in sorted(folder.glob(f"{PREFIX}*")):
        trouble = sealed.damage(path) if path.name == f"{PREFIX}{count:05d}" else "one before it is missing"
        if trouble:
            log.note(f"{path.name} is unusable ({trouble}); packing resumes before it")
            for later in sorted(folder.glob(f"{PREFIX}*"))[count:]:
                shutil.rmtree(later)
            break
        progress = Progress.of(json.loads((path / "progress.json").read_text(encoding="utf-8")))
        count += 1
    return count, progress


def publish_train(folder: Path, count: int, out: Path) -> list[Path]:
    """Puts the training parts of the shards into `out` unchanged; returns their `.bin` files."""
    parts = [path for path in _paths(folder, count) if (path / f"{TRAIN}.bin").exists()]
    for number, path in enumerate(parts):
        for end in (".bin", ".starts.npy"):
            _link(path / f"{TRAIN}{end}", out / f"{TRAIN}_{number:05d}{end}")
    return [out / f"{TRAIN}_{number:05d}.bin" for number in range(len(parts))]


def publish_validation(folder: Path, count: int, source: str, dtype: type, out: Path) -> Path:
    """Joins the validation parts of a source into one `.bin` file of `out`."""
    name = _of(source)
    ids: list[Ids] = []
    starts: list[NDArray[np.uint64]] = []
    size = 0
    for path in _paths(folder, count):
        if (path / f"{name}.bin").exists():
            ids.append(np.fromfile(path / f"{name}.bin", dtype=dtype))
            starts.append(np.load(path / f"{name}.starts.npy") + np.uint64(size))
            size += len(ids[-1])
    np.concatenate(ids).tofile(out / f"{name}.bin")
    np.save(out / f"{name}.starts.npy", np.concatenate(starts))
    return out / f"{name}.bin"


def _paths(folder: Path, count: int) -> list[Path]:
    return [folder / f"{PREFIX}{number:05d}" for number in range(count)]


def _of(source: str) -> str:
    return f"validation_{source}"


def _link(source: Path, place: Path) -> None:
    """Links instead of copying: shards may be many gigabytes, and finished ones must survive a kill before
    publication."""
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, place)
