"""Replaces outside paths and revisions in options by identities for fingerprints, and pins them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from stages.options import Located, Options

T = TypeVar("T", bound=Options)


def with_identities(described: dict[str, Any], options: Options, where: str) -> None:
    """Replaces paths and revisions in `described`, the dump of `options`, by identities. `where` is the option that
    errors name."""
    where = options.section or where
    options.identify(described, where)
    for keys, part in _parts(options):
        inner: Any = described
        for key in keys:
            inner = inner.get(key, {})
        if inner:  # else the dump omits it: a default of an option that is newer than stored results
            with_identities(inner, part, ".".join((where, *keys)))


def changed(options: T, change: Callable[[Located, tuple[str, ...]], dict[str, str]], at: tuple[str, ...] = ()) -> T:
    """Returns a copy in which each Located part is updated with the fields that `change` returns for it and for the
    keys that lead to it."""
    update: dict[str, Any] = dict(change(options, at)) if isinstance(options, Located) else {}
    for keys, part in _parts(options):
        new = changed(part, change, (*at, *keys))
        if new is not part and len(keys) == 1:
            update[keys[0]] = new
        elif new is not part:
            update[keys[0]] = {**update.get(keys[0], getattr(options, keys[0])), keys[1]: new}
    return options.model_copy(update=update) if update else options


def _parts(options: Options) -> Iterator[tuple[tuple[str, ...], Options]]:
    """Yields options inside others, directly or in a mapping, with the keys that lead there."""
    for name, value in options:
        if isinstance(value, Options):
            yield (name,), value
        elif isinstance(value, dict):
            yield from (((name, key), item) for key, item in value.items() if isinstance(item, Options))
