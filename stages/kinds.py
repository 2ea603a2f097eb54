"""Things that come in kinds (pruners, allocations, metrics, recipes): a file each, found by its name.

A member is a module of the package for its kind, which defines one constant, for example `PRUNER` in
`stages/prune/pruners/wanda.py`. Another installed package adds members of its own by entry points of the group
`squarehead.<package's last name>`, for example `squarehead.pruners`. Names are known without importing a member; no
member is imported until it is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from stages.contracts import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Kinds(Generic[T]):
    """The members of a kind."""

    what: str
    """One of them, in messages: `pruner`."""
    package: str
    """Where the members of this project are: `stages.prune.pruners`."""
    constant: str
    """What each module defines: `PRUNER`."""
    option: str
    """The option that chooses one: `prune.method`."""

    def names(self) -> list[str]:
        """All there are, those of this project first. A name that two packages give is an error when it is used."""
        return [*_modules(self.package), *_installed(self._group)]

    def get(self, name: str) -> T:
        """The member of this name. Raises UserError for an unknown one, and for one that is not registered whole."""
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
            found: T = getattr(module, self.constant)
            return found
        try:
            loaded: T = installed[name].load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"the {self.what} {name!r} cannot be loaded: {error}", self.option) from None
        return loaded

    def provider(self, name: str) -> str:
        """`distribution==version` of a member from another package; empty for those of this project."""
        point = _installed(self._group).get(name)
        return f"{point.dist.name}=={point.dist.version}" if point and point.dist else ""

    @property
    def _group(self) -> str:
        return f"squarehead.{self.package.rpartition('.')[2]}"


@cache
def _modules(package: str) -> tuple[str, ...]:
    spec = find_spec(package)
    assert spec is not None
    folders = spec.submodule_search_locations or ()
    return tuple(sorted(path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py")))


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
