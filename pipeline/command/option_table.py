"""Lists every option of the configuration with its type, default and meaning, read from the typed sections.

The meaning is the docstring below an option in `stages/*/spec.py` and `pipeline/schema.py`; the default is the value
that `conf/` composes.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel

from pipeline.command import conf_files
from pipeline.schema import Config
from stages import options as shared_types
from stages.data.formats import FORMATS
from stages.data.generators import GENERATORS
from stages.evaluate.metrics import METRICS
from stages.finetune.losses import LOSSES
from stages.kinds import Kinds
from stages.prune.allocations import ALLOCATIONS
from stages.prune.pruners import PRUNERS
from stages.prune.reconstructions import RECONSTRUCTIONS
from stages.quantize.schemes import SCHEMES

KINDS: dict[str, Kinds[Any]] = {
    "data": FORMATS, "prune": PRUNERS, "prune.allocation": ALLOCATIONS, "prune.reconstruction": RECONSTRUCTIONS,
    "data.generator": GENERATORS,
    "distill.losses": LOSSES, "quantize": SCHEMES, "evaluate.metrics": METRICS,
}  # fmt: skip
"""Sections whose options depend on the chosen member of a kind."""
NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any value"}
NO_DEFAULT = object()


@dataclass(frozen=True)
class Option:
    name: str
    """Dotted, as on a command line."""
    type: str
    """In words: `number > 0`."""
    default: Any
    """Value if the command line does not set it; NO_DEFAULT for options that only some choices of their group have."""
    text: str
    """Describes the effect of the option."""
    belongs_to: tuple[str, ...] = ()
    """Members of a kind that have the option, if not all do: `prune.method=random`."""


@dataclass(frozen=True)
class Section:
    name: str
    """Dotted; empty for the top level."""
    text: str
    options: tuple[Option, ...]


@cache
def sections() -> dict[str, Section]:
    """Returns the sections by name, in the order of the configuration, the top level first."""
    given = conf_files.defaults()
    return {section.name: section for section in _sections(Config, "", given)}


def options() -> dict[str, Option]:
    return {option.name: option for section in sections().values() for option in section.options}


def _sections(model: type[BaseModel], name: str, given: Mapping[str, Any]) -> Iterator[Section]:
    found, below = [], []
    for option, inner in _fields(model, name, given):
        if inner is None or option.type.startswith("list"):
            found.append(option)
        if inner is not None:
            below.append((inner, option))
    yield Section(name, _class_text(model), (*found, *_of_members(name, model, given)))
    for inner, option in below:
        for section in _sections(inner, option.name, given):
            if section.name == option.name and not option.type.startswith("list"):
                section = replace(section, text=f"{section.text} {option.text}".strip())
            yield section


def _fields(
    model: type[BaseModel], name: str, given: Mapping[str, Any]
) -> Iterator[tuple[Option, type[BaseModel] | None]]:
    """Yields each field as an option, with the model of its entries or of its section, if it has one."""
    texts = _field_texts(model)
    for key, field in model.model_fields.items():
        dotted = f"{name}.{key}" if name else key
        default = given.get(dotted, NO_DEFAULT if field.is_required() else field.get_default(call_default_factory=True))
        kind = _type(field.annotation, field.metadata)
        yield Option(dotted, kind, default, texts.get(key, "")), _model_in(field.annotation)


def _of_members(name: str, base: type[BaseModel], given: Mapping[str, Any]) -> Iterator[Option]:
    """Returns the options that only some members of a kind have."""
    if name not in KINDS:
        return
    found: dict[str, Option] = {}
    for member in KINDS[name].names():
        choice = f"{KINDS[name].option}={member}"
        own = KINDS[name].get(member).options
        for option, _ in _fields(own, name, given) if issubclass(own, base) else ():
            if option.name.rpartition(".")[2] not in base.model_fields:
                known = found.setdefault(option.name, option)
                found[option.name] = replace(known, belongs_to=(*known.belongs_to, choice))
    yield from found.values()


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    members = [name for item in metadata if isinstance(item, Kinds) for name in item.names()]
    if members:
        return " | ".join(members)
    bounds = [text for item in metadata if (text := _bound(item))]
    return " ".join([_plain_type(annotation), *bounds])


def _plain_type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], [part for item in inner[1:] for part in getattr(item, "metadata", [item])])
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in inner)
    if origin is list:
        entry = "sections" if _model_in(inner[0]) else _type(inner[0])
        return f"list of ({entry})" if " " in entry else f"list of {entry}"
    if origin is tuple:
        return f"[{', '.join(_type(part) for part in inner)}]"
    if origin is dict:
        return f"mapping of names to {_type(inner[1])}"
    return "section" if _model_in(annotation) else NAMES[annotation]


def _bound(item: Any) -> str:
    for sign, kind, key in (
        ("≥", annotated_types.Ge, "ge"),
        (">", annotated_types.Gt, "gt"),
        ("≤", annotated_types.Le, "le"),
        ("<", annotated_types.Lt, "lt"),
    ):
        if isinstance(item, kind):
            limit = getattr(item, key)
            return f"{sign} {limit:g}" if limit < 1e6 else f"{sign} {limit:.0f}"
    return ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the model that an annotation is, or that it holds in a list, an optional or an Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _class_text(model: type[BaseModel]) -> str:
    """Returns the first paragraph of the class's docstring."""
    return _one_line((model.__dict__.get("__doc__") or "").partition("\n\n")[0])


def _field_texts(model: type[BaseModel]) -> dict[str, str]:
    """Returns for each field the docstring below it, followed by that of its named type (`Precision`)."""
    texts = {}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        own = _docstrings(kind)
        for key, annotation in inspect.get_annotations(kind).items():
            words = set(re.findall(r"\w+", str(annotation)))
            aliases = [text for name, text in _docstrings(shared_types).items() if name in words]
            texts[key] = " ".join([*([own[key]] if key in own else []), *aliases])
    return texts


@cache
def _docstrings(owner: type | types.ModuleType) -> dict[str, str]:
    """Returns the string below each definition of a class or a module, by name."""
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    body = tree.body[0].body if isinstance(owner, type) else tree.body
    found = {}
    for definition, below in itertools.pairwise(body):
        target = definition.targets[0] if isinstance(definition, ast.Assign) else getattr(definition, "target", None)
        if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[target.id] = _one_line(str(below.value.value))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
