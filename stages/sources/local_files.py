"""Local data: one file, or a folder with a file for each split, of JSON Lines, JSON, TSV, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.contracts import UserError
from stages.sources import cards
from stages.sources.rows import Raw, Row

OPTION = "data.path"
_ENDINGS = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
_LONGEST_FIELD = 2**30


def read(path: Path) -> Raw:
    """A file: all rows in `train`. A folder: the splits are its files' names (train.jsonl, test.parquet, ...).

    Rows of a folder may name files inside it, relative to it: they are part of its digest. Rows of a single file may
    not: nothing would tell that one of those was changed.
    """
    if path.is_file():
        if path.suffix not in _ENDINGS:
            raise UserError(f"{path.name}: expected a file ending in {', '.join(_ENDINGS)}", OPTION)
        return Raw({"train": Rows(path, None)}, cards.UNKNOWN)
    files = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and not file.name.startswith("."))
    if not files:
        raise UserError(f"{path.name} holds no {', '.join(_ENDINGS)} files", OPTION)
    splits: dict[str, Rows] = {}
    for file in files:
        if file.stem in splits:
            raise UserError(f"{path.name} holds several files for the split {file.stem!r}; keep one", OPTION)
        splits[file.stem] = Rows(file, path)
    return Raw(splits, cards.license_in(path / "README.md"))


@dataclass(frozen=True)
class Rows:
    """Read as they are iterated over."""

    file: Path
    folder: Path | None

    def __iter__(self) -> Iterator[Row]:
        for where, values in self._items():
            if not isinstance(values, dict):
                kind = type(values).__name__
                raise UserError(f"{where}: expected an object with named columns, got {kind}", OPTION)
            yield Row(where, values, self.folder)

    def _items(self) -> Iterator[tuple[str, object]]:
        if self.file.suffix == ".parquet":
            return _parquet(self.file)
        if self.file.suffix in (".tsv", ".csv"):
            return _table(self.file)
        if self.file.suffix == ".json" and _starts_with(self.file, b"["):
            return _json_list(self.file)
        return _json_lines(self.file)


def _starts_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as content:
        return next((line.lstrip()[:1] for line in content if line.strip()), b"") == mark


def _json_lines(file: Path) -> Iterator[tuple[str, object]]:
    with file.open("rb") as content:
        for number, line in enumerate(content, start=1):
            if line.strip():
                where = f"{file.name}:{number}"
                try:
                    yield where, json.loads(line)
                except ValueError as error:
                    raise UserError(f"{where} is not readable as JSON: {error}", OPTION) from None


def _json_list(file: Path) -> Iterator[tuple[str, object]]:
    try:
        items = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file.name} is not readable as JSON: {error}", OPTION) from None
    for index, values in enumerate(items):
        yield f"{file.name}[{index}]", values


def _table(file: Path) -> Iterator[tuple[str, object]]:
    """The first line names the columns. TSV knows no quotes: a `"` is text."""
    csv.field_size_limit(_LONGEST_FIELD)
    with file.open(encoding="utf-8-sig", newline="") as content:
        if file.suffix == ".tsv":
            lines = csv.reader(content, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            lines = csv.reader(content, strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) != len(header) or not all(header):
                raise UserError(f"{file.name}:1: expected a header of different column names", OPTION)
            for fields in lines:
                where = f"{file.name}:{lines.line_num}"
                if fields and len(fields) != len(header):
                    raise UserError(f"{where}: {len(fields)} fields, the header has {len(header)}", OPTION)
                if fields:
                    yield where, dict(zip(header, fields, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file.name}, after line {lines.line_num}, is not readable: {error}", OPTION) from None


def _parquet(file: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1000):
            for values in batch.to_pylist():
                yield f"{file.name}[{index}]", values
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file.name} is not readable as Parquet: {error}", OPTION) from None
