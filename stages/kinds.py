"""Things that come in kinds (pruners, data formats, recipes): a file each, found by its name.

A member is a module of the package for its kind, which defines one constant, for example `PRUNER` in
`stages/prune/pruners/wanda.py`. Another installed package adds members of its own by entry points of the group
`squarehead.<package's last name>`, for example `squarehead.pruners`. Names are known without importing a member; no
member is imported until it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from stages.contracts import UserError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Kinds(Generic[T]):
    """The members of a kind. `Annotated[str, PRUNERS]` is an option that names one: it is checked, and its provider is
    known to `providers`."""

    what: str
    """Name of a member in messages: `pruner`."""
    package: str
    """Package of this project's members: `stages.prune.pruners`."""
    constant: str
    """Constant that each module defines: `PRUNER`."""
    option: str
    """Option that chooses one: `prune.method`."""
    form: Any = None
    """Protocol, or a union of several, that a member has to fit; None if members are functions."""

    def names(self) -> list[str]:
        """Returns all names, those of this project first. A name that two packages give is an error when it is used."""
        return [*_modules(self.package), *_installed(self._group)]

    def get(self, name: str) -> T:
        """Returns the member of this name. Raises UserError for an unknown one, and for an incomplete one."""
        own, installed = _modules(self.package), _installed(self._group)
        if name not in own and name not in installed:
            known = ", ".join(self.names())
            raise UserError(f"no {self.what} {name!r}; there are: {known}", self.option)
        if name in own and name in installed:
            other = installed[name].value
            raise UserError(f"{other} gives the {self.what} {name!r} a second time; rename it there", self.option)
        if name in own:
            module = importlib.import_module(f"{self.package}.{name}")
            if not hasattr(module, self.constant):
                raise UserError(f"{module.__name__} defines no {self.constant}, so it is no {self.what}", self.option)
            return self._whole(name, getattr(module, self.constant))
        try:
            loaded = installed[name].load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"the {self.what} {name!r} cannot be loaded: {error}", self.option) from None
        return self._whole(name, loaded)

    def _whole(self, name: str, member: T) -> T:
        """Returns the member. Raises UserError for one that lacks something its kind must have."""
        forms = get_args(self.form) or (self.form,)
        if self.form and not isinstance(member, forms):
            missing = [sorted(key for key in _members(form) if not hasattr(member, key)) for form in forms]
            lacks: list[str] = min(missing, key=len)
            raise UserError(f"the {self.what} {name!r} is not whole: it has no {', '.join(lacks)}", self.option)
        return member

    def validated(self, base: type[M], cls: type[M], value: Any, handler: Callable[[Any], M], key: str = "method") -> M:
        """Validates `value` in a wrap validator of `base`, called for `cls`: returns an instance of the class that the
        member named by its `key` has as its `options`."""
        if cls is base and isinstance(value, dict) and isinstance(value.get(key), str):
            member: Any = self.get(value[key])
            options: type[M] = member.options
            if options is not base:
                return options.model_validate(value)
        return handler(value)

    def provider(self, name: str) -> str:
        """Returns `distribution==version` of a member from another package; empty for those of this project."""
        point = _installed(self._group).get(name)
        return distribution(point) if point else ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        self.get(name)
        return name

    @property
    def _group(self) -> str:
        return f"squarehead.{self.package.rpartition('.')[2]}"


def distribution(point: EntryPoint) -> str:
    """Returns `distribution==version` that an entry point belongs to."""
    assert point.dist is not None
    return f"{point.dist.name}=={point.dist.version}"


def providers(options: BaseModel) -> dict[str, str]:
    """Returns the members from other distributions that options name: `pruner largest` -> `extra-methods==1.2`."""
    found: dict[str, str] = {}
    for name, field in type(options).model_fields.items():
        kinds = [*_kinds(field.annotation), *(part for part in field.metadata if isinstance(part, Kinds))]
        for value in _values(getattr(options, name)):
            if isinstance(value, BaseModel):
                found |= providers(value)
            else:
                found |= {f"{kind.what} {value}": kind.provider(value) for kind in kinds}
    return {member: provider for member, provider in found.items() if provider}


def _members(form: type) -> set[str]:
    """Returns the attributes that a protocol requires."""
    return {*form.__annotations__, *(name for name, value in vars(form).items() if callable(value) and name[0] != "_")}


def _kinds(annotation: Any) -> list[Kinds[Any]]:
    """Returns the kinds that a type is annotated with, anywhere inside."""
    inner = get_args(annotation)
    return [part for part in inner if isinstance(part, Kinds)] + [kind for part in inner for kind in _kinds(part)]


def _values(value: Any) -> list[str | BaseModel]:
    """Returns the names and options among the values of an option."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, str | BaseModel)]


@cache
def _modules(package: str) -> tuple[str, ...]:
    spec = find_spec(package)
    assert spec is not None
    folders = spec.submodule_search_locations or ()
    return tuple(sorted(path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py")))


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
