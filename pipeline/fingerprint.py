"""Computes fingerprints over canonical JSON, and digests of stage code."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stages.contracts import UserError

PROJECT = Path(__file__).resolve().parent.parent
CODE_PACKAGES = ("stages", "engine")
"""Packages whose source can change a result. `pipeline` only moves results."""
NATIVE_SUFFIXES = {".c", ".cc", ".cpp", ".h", ".hpp"}


def canonical_json(value: Any) -> str:
    """Returns the unique text of a JSON value: sorted keys, no spaces, ASCII, shortest floats that read back the same.

    Raises UserError for NaN and infinities, TypeError for values that are not JSON (paths included: outside data enter
    a fingerprint by digest).
    """
    return json.dumps(_canonical(value, ""), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"expected a finite number, got {value}", where)
        return value + 0.0  # -0.0 equals 0.0, and so must their texts
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"keys must be strings, got {wrong[0]!r} in {where or 'the top level'}")
        return {key: _canonical(item, _dotted(where, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, _dotted(where, str(index))) for index, item in enumerate(value)]
    raise TypeError(f"not a JSON value at {where or 'the top level'}: {type(value).__name__}")


def fingerprint(
    stage: str, version: str, config: Mapping[str, Any], inputs: Mapping[str, str], irrelevant: Iterable[str] = ()
) -> str:
    """Returns the identity of a result: 64 hex digits, the sha256 over the stage, its version, its config and its
    inputs' fingerprints.

    `irrelevant` holds dotted keys of `config` that cannot change the result; they are left out.
    """
    relevant = _without(config, frozenset(irrelevant), "")
    identity = {"stage": stage, "version": version, "config": relevant, "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode("ascii")).hexdigest()


def _without(config: Mapping[str, Any], irrelevant: frozenset[str], where: str) -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        dotted = _dotted(where, key)
        if dotted not in irrelevant:
            kept[key] = _without(value, irrelevant, dotted) if isinstance(value, Mapping) else value
    return kept


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaf values of `config` by dotted key, in its order. Lists of plain values are leaves; in lists of
    mappings the index is part of the key (`tasks.0.name`); empty mappings stay, as leaves."""
    return dict(_leaves(config, ""))


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = ((str(index), item) for index, item in enumerate(value))
    if not items:
        if where:
            yield where, value
        return
    for key, item in items:
        yield from _leaves(item, _dotted(where, key))


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


# ---- code ----


@cache
def code_digest(module: str, project: Path = PROJECT) -> str:
    """Returns the sha256 over the source of a stage module and of all project modules it can reach by imports.

    Follows `import`, `from ... import` (relative and inside functions too), string constants that name a module or
    `module:attribute` (lazy imports), and packages whose members are found by name (`stages.kinds`), within `stages`
    and `engine`. Imports nothing. Native sources beside an engine module count. Raises ModuleNotFoundError if `module`
    is not a module of the project.
    """
    files = _reachable(module, project)
    if not files:
        raise ModuleNotFoundError(f"no module {module} in {project}", name=module)
    total = hashlib.sha256()
    for relative in sorted(file.relative_to(project).as_posix() for file in files):
        total.update(f"{relative}\0{_sha256(project / relative)}\n".encode())
    return total.hexdigest()


def _reachable(module: str, project: Path) -> set[Path]:
    files: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        found = _source(name, project)
        if found is None or found in files:
            continue
        files.add(found)
        if name.partition(".")[0] == "engine":
            files.update(path for path in found.parent.rglob("*") if path.suffix in NATIVE_SUFFIXES)
        waiting.extend(_mentioned(found, name))
    return files


def _source(module: str, project: Path) -> Path | None:
    parts = module.split(".")
    if parts[0] not in CODE_PACKAGES or not all(part.isidentifier() for part in parts):
        return None
    package = project.joinpath(*parts)
    return next((path for path in (package / "__init__.py", package.with_suffix(".py")) if path.is_file()), None)


@cache
def _mentioned(source: Path, module: str) -> tuple[str, ...]:
    """Returns the names in a source that may be modules: imported ones, their parent packages, and string constants.

    Uses regular expressions: parsing all stages takes longer than the rest of planning a sweep of stored results.
    """
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    text = source.read_text(encoding="utf-8")
    names: set[str] = {package, *_STRING.findall(text)}
    if _MEMBERS.search(text):
        names.update(f"{package}.{member.stem}" for member in source.parent.glob("[a-z]*.py"))
    for modules in _IMPORT.findall(text):
        names.update(_WORD.findall(modules))
    for dots, base, imported in _FROM_IMPORT.findall(text):
        if dots:
            above = ".".join(package.split(".")[: len(package.split(".")) - len(dots) + 1])
            base = f"{above}.{base}" if base else above
        names.add(base)
        names.update(f"{base}.{name}" for name in _WORD.findall(_COMMENT.sub("", imported)))
    project_names = [name for name in names if name.partition(".")[0] in CODE_PACKAGES]
    parents = {".".join(name.split(".")[:length]) for name in project_names for length in range(1, name.count(".") + 1)}
    return tuple(sorted(parents.union(project_names)))


_WORD = re.compile(r"[A-Za-z_][\w.]*")
_COMMENT = re.compile(r"#.*")
_STRING = re.compile(rf"""["']((?:{"|".join(CODE_PACKAGES)})(?:\.\w+)*)(?::\w+)?["']""")
"""A constant that names a module, or `module:attribute`."""
_MEMBERS = re.compile(r"= Kinds\([^)]*__name__")
"""A package whose modules are found by their names (`stages.kinds`)."""
_IMPORT = re.compile(r"^[ \t]*import[ \t]+(.+)$", re.MULTILINE)
_FROM_IMPORT = re.compile(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]*(\([^)]*\)|.+)$", re.MULTILINE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
