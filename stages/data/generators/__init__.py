"""Generators of data: items that are computed, not read. A file each.

A member defines `GENERATOR`. `data.path=generated` with a section `data.generator` names one. The same options, size
and seed make the same items on every machine. Its file is read when a run is planned: plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import BeforeValidator, SerializeAsAny

from stages.contracts import UserError
from stages.data.rows import Row
from stages.kinds import Kinds
from stages.options import Options
from stages.sources.identity import GENERATED


@runtime_checkable
class Generator(Protocol):
    options: type[GeneratorOptions]

    def items(self, options: Any, size: int, seed: int) -> Iterator[dict[str, Any]]:
        """Yields at most `size` different rows; fewer if there are no more."""


GENERATORS: Kinds[Generator] = Kinds("generator of data", __name__, "GENERATOR", "data.generator.name", Generator)


class GeneratorOptions(Options):
    """Options of a generator. A generator may add its own, each with a default."""

    name: Annotated[str, GENERATORS]
    """Name of the generator: a file of `stages/data/generators/`, or one that an installed package adds."""


def _of_the_named(value: Any) -> Any:
    """Validates a section by the options of the generator that it names."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return GENERATORS.get(value["name"]).options.model_validate(value)
    return value


AnyGenerator = Annotated[SerializeAsAny[GeneratorOptions], BeforeValidator(_of_the_named)]
LICENSE = "Apache-2.0 (generated)"


def check_path(path: str, options: GeneratorOptions | None) -> None:
    """Raises ValueError if only one of the path `generated` and the section `generator` is given."""
    if (path == GENERATED) != (options is not None):
        raise ValueError(f"path={GENERATED} and the section `generator` need each other")


def generate(options: GeneratorOptions, size: int, seed: int, option: str) -> list[Row]:
    """Returns `size` different rows. Raises UserError, with `option`, where the generator has not as many, and for a
    size of 0."""
    if not size:
        raise UserError("this data is generated: say how many items", option)
    items = list(GENERATORS.get(options.name).items(options, size, seed))
    if len(items) < size:
        raise UserError(f"{options.name} has {len(items)} different items, not {size}", option)
    return [Row(f"item {number}", item) for number, item in enumerate(items)]
