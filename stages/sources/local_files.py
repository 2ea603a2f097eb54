"""Local data: one file, or a folder with a file for each split, of JSON Lines, JSON or Parquet."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.contracts import UserError
from stages.sources import cards
from stages.sources.rows import Raw, Row

OPTION = "data.path"
_ENDINGS = (".jsonl", ".json", ".parquet")


def read(path: Path) -> Raw:
    """A file: all rows in `train`. A folder: the splits are its files' names (train.jsonl, test.parquet, ...)."""
    if path.is_file():
        if path.suffix not in _ENDINGS:
            raise UserError(f"{path.name}: expected a file ending in {', '.join(_ENDINGS)}", OPTION)
        return Raw({"train": _rows(path)}, cards.UNKNOWN)
    files = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS and not file.name.startswith("."))
    if not files:
        raise UserError(f"{path.name} holds no {', '.join(_ENDINGS)} files", OPTION)
    splits: dict[str, list[Row]] = {}
    for file in files:
        if file.stem in splits:
            raise UserError(f"{path.name} holds several files for the split {file.stem!r}; keep one", OPTION)
        splits[file.stem] = _rows(file)
    return Raw(splits, cards.license_in(path / "README.md"))


def _rows(file: Path) -> list[Row]:
    if file.suffix == ".parquet":
        return _parquet(file)
    text = file.read_bytes()
    if file.suffix == ".json" and text.lstrip()[:1] == b"[":
        return _json_list(file, text)
    return _json_lines(file, text)


def _json_lines(file: Path, text: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split(b"\n"), start=1):
        if line.strip():
            where = f"{file.name}:{number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where} is not readable as JSON: {error}", OPTION) from None
            rows.append(_row(where, values))
    return rows


def _json_list(file: Path, text: bytes) -> list[Row]:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file.name} is not readable as JSON: {error}", OPTION) from None
    return [_row(f"{file.name}[{index}]", values) for index, values in enumerate(items)]


def _parquet(file: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        items = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{file.name} is not readable as Parquet: {error}", OPTION) from None
    return [_row(f"{file.name}[{index}]", values) for index, values in enumerate(items)]


def _row(where: str, values: object) -> Row:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with named columns, got {type(values).__name__}", OPTION)
    return Row(where, values)
