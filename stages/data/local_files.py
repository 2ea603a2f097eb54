"""Reads local data: one file, or a folder, of JSON Lines, JSON, TSV, CSV, Parquet or plain lines, compressed or not.

`datasets` decides which files of a folder belong to which split, as for data sets of a hub: by names that indicate it
(train-00000-of-00002.parquet, valid.jsonl, dev/a.json.gz), or by `configs` in the README's header.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contracts import UserError
from stages.data.compression import COMPRESSIONS, unpacked
from stages.data.rows import Raw, Row
from stages.sources import cards

OPTION = "data.path"
_ENDINGS = (".jsonl", ".json", ".tsv", ".csv", ".parquet", ".txt")
_LONGEST_FIELD = 2**30


def read(path: Path, subset: str = "") -> Raw:
    """Reads a file, with all rows in `train`, or a folder, with its splits by the names that `datasets` gives them, and
    each file by its own name as well. `subset` is one of the README's `configs`.

    Rows of a folder may name files inside it, relative to it: they are part of its digest. Rows of a single file may
    not: a change of those files would go unnoticed.
    """
    if path.is_file():
        if subset:
            raise UserError(f"got {subset!r}, but a file has no subsets; leave it empty", "data.subset")
        if not _ending(path):
            raise UserError(f"{path.name}: expected a file ending in {', '.join(_ENDINGS)}", OPTION)
        return Raw({"train": Rows([path], None)}, cards.UNKNOWN)
    files = [file for file in sorted(path.rglob("*")) if _ending(file) and not _is_hidden(file, path)]
    if arrow := sorted(path.rglob("*.arrow")):
        raise UserError(
            f"{path.name} was written by save_to_disk of `datasets` ({arrow[0].name}), which is not read; export its "
            "splits as Parquet (to_parquet)",
            OPTION,
        )
    if not files:
        raise UserError(f"{path.name} holds no {', '.join(_ENDINGS)} files", OPTION)
    stated = _of_readme(path, subset)
    by_split = _splits(path, files, stated)
    notes = []
    for split, members in by_split.items():
        notes.append(_check_shards(split, members))
        _check_once(split, members)
        if len(endings := {_ending(file) for file in members}) > 1:
            raise UserError(
                f"{path.name} holds files {', '.join(sorted(endings))} for the split {split!r}; keep one", OPTION
            )
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(_stem(file), []).append(file)
    used = {file for members in by_split.values() for file in members}
    # files that the README does not list belong to its other subsets
    left = tuple(name for name, members in by_name.items() if not stated and not used.issuperset(members))
    splits = {name: Rows(members, path) for name, members in (by_name | by_split).items()}
    note = "; ".join(filter(None, [*notes, _note(by_split, path)]))
    return Raw(splits, cards.license_in(path / "README.md"), left, note)


def _splits(folder: Path, files: Sequence[Path], stated: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Returns the files of each split, in order, as the README states or else by their names. A single file whose name
    indicates no split is `train`."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

    # the folder's own name is no pattern
    base = Path(glob.escape(str(folder))) / str(stated.get("data_dir") or "")
    patterns = stated.get("data_files")
    try:
        found = DataFilesDict.from_patterns(
            sanitize_patterns(patterns) if patterns else get_data_patterns(str(base)), base_path=str(base)
        )
    except EmptyDatasetError:
        found = {}
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder.name}: the data files of its README cannot be found: {error}", OPTION) from None
    known = set(files)
    chosen = {str(split): [file for name in names if (file := Path(name)) in known] for split, names in found.items()}
    chosen = {split: members for split, members in chosen.items() if members}
    if not stated and list(chosen) == ["train"] and not all(_names_train(file, folder) for file in chosen["train"]):
        # names without a split: several such files are ambiguous
        return chosen if len(files) == 1 else {}
    return chosen


def _words(file: Path, folder: Path) -> set[str]:
    """Returns the words of a file's name among which `datasets` looks for splits."""
    return set(re.split(r"[-._ 0-9/]+", file.relative_to(folder).as_posix()))


def _names_train(file: Path, folder: Path) -> bool:
    """Returns whether a word of the file's name says train, as opposed to `datasets` taking all files for train."""
    return not {"train", "training"}.isdisjoint(_words(file, folder))


def _note(by_split: Mapping[str, Sequence[Path]], folder: Path) -> str:
    """Notes that `eval` may be meant for validation as well."""
    evals = [file for file in by_split.get("test", ()) if {"eval", "evaluation"} & _words(file, folder)]
    if not evals:
        return ""
    name = _stem(evals[0])
    return f"{name} is read as test, as `datasets` does (data.splits.validation={name} would make it validation)"


def _check_shards(split: str, files: Sequence[Path]) -> str:
    """Raises UserError if one of the files `NAME-00000-of-00003` of a split is missing. Returns a note where that are
    files `NAME.00000-of-01024`, as C4 names them, of which papers read the first only."""
    have: dict[tuple[Path, str, str, int], set[int]] = {}
    for file in files:
        if numbered := re.search(r"(.*)([-.])(\d{5})-of-(\d{5})$", _stem(file)):
            name, sign, number, total = numbered.groups()
            have.setdefault((file.parent, name, sign, int(total)), set()).add(int(number))
    notes = []
    for (_, name, sign, total), numbers in have.items():
        missing = sorted(set(range(total)) - numbers)
        if missing and sign == ".":
            notes.append(f"the split {split!r} is {len(numbers)} of the {total} files {name}.*-of-{total:05}")
        elif missing:
            raise UserError(
                f"the split {split!r} lacks {len(missing)} of its {total} files, first "
                f"{name}-{missing[0]:05}-of-{total:05}",
                OPTION,
            )
    return "; ".join(notes)


def _check_once(split: str, files: Sequence[Path]) -> None:
    """Raises UserError for a file that is there packed and unpacked: its rows would be read twice."""
    seen: dict[str, Path] = {}
    for file in files:
        plain = str(file)[: str(file).rindex(_ending(file)) + len(_ending(file))]
        if plain in seen:
            raise UserError(
                f"{seen[plain].name} and {file.name} would both be read for the split {split!r}; keep one", OPTION
            )
        seen[plain] = file


def _of_readme(folder: Path, subset: str) -> dict[str, Any]:
    """Returns the README's `configs` entry of a subset, or of the default one: `data_files`, `data_dir`; empty if there
    is none."""
    configs = cards.configs_in(folder / "README.md")
    if not configs:
        if subset:
            raise UserError(f"got {subset!r}, but this folder's README names no configs; leave it empty", "data.subset")
        return {}
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    defaults = [name for name, config in by_name.items() if name == "default" or config.get("default")]
    wanted = subset or (defaults[0] if defaults else next(iter(by_name)) if len(by_name) == 1 else "")
    if wanted not in by_name:
        raise UserError(f"this folder has the subsets {', '.join(by_name)}; got {subset!r}", "data.subset")
    return by_name[wanted]


def _ending(file: Path) -> str:
    """Returns the suffix: `.jsonl` for `a.jsonl.gz`; empty for a file of another kind."""
    name = file.name
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    ending = Path(name).suffix
    return ending if ending in _ENDINGS else ""


def _stem(file: Path) -> str:
    return file.name.partition(_ending(file))[0]


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


@dataclass(frozen=True)
class Rows:
    """Rows that are read during iteration."""

    files: list[Path]
    folder: Path | None

    def __iter__(self) -> Iterator[Row]:
        for file in self.files:
            for where, values in _items(file):
                if not isinstance(values, dict):
                    kind = type(values).__name__
                    raise UserError(f"{where}: expected an object with named columns, got {kind}", OPTION)
                yield Row(where, values, self.folder)


def _items(file: Path) -> Iterator[tuple[str, object]]:
    ending = _ending(file)
    if ending == ".parquet":
        return _parquet(file)
    if ending in (".tsv", ".csv"):
        return _table(file, ending)
    if ending == ".txt":
        return _lines(file)
    if ending == ".json" and _starts_with(file, b"["):
        return _json_list(file)
    return _json_lines(file)


def _starts_with(file: Path, mark: bytes) -> bool:
    with unpacked(file) as content:
        return next((start for line in content if (start := line.removeprefix(BOM_UTF8).strip())), b"")[:1] == mark


def _parse(text: bytes, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not readable as JSON: {error}", OPTION) from None


def _json_lines(file: Path) -> Iterator[tuple[str, object]]:
    with unpacked(file) as content:
        for number, line in enumerate(content, start=1):
            if line.strip():
                where = f"{file.name}:{number}"
                yield where, _parse(line, where)


def _json_list(file: Path) -> Iterator[tuple[str, object]]:
    with unpacked(file) as content:
        items = _parse(content.read(), file.name)
    assert isinstance(items, list)
    for index, values in enumerate(items):
        yield f"{file.name}[{index}]", values


def _lines(file: Path) -> Iterator[tuple[str, object]]:
    """Yields each line as a row with the column `text`."""
    with unpacked(file) as content:
        for number, line in enumerate(content, start=1):
            where = f"{file.name}:{number}"
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            try:
                yield where, {"text": line.decode().removesuffix("\n").removesuffix("\r")}
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not valid Unicode: {error}", OPTION) from None


def _table(file: Path, ending: str) -> Iterator[tuple[str, object]]:
    """Yields the rows of a table whose first line names the columns. TSV has no quotes: a `"` is text."""
    csv.field_size_limit(_LONGEST_FIELD)
    with unpacked(file) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as content:
        if ending == ".tsv":
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
        except UnicodeDecodeError as error:
            raise UserError(f"{file.name} is not valid UTF-8, after line {lines.line_num}: {error}", OPTION) from None
        except csv.Error as error:
            raise UserError(f"{file.name}:{lines.line_num} is not readable: {error}", OPTION) from None


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
