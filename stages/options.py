"""The base class of all options, typed, frozen and closed to unknown names, and types that several stages share."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from stages.sources.identity import identity

Sparsity = Annotated[float, Field(ge=0, lt=1)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range of numpy's generators

Beta = Annotated[float, Field(ge=0, lt=1)]

LossWeight = Annotated[float, Field(ge=0, le=1e6)]  # larger ones overflow 32-bit gradients at any learning rate

Precision = Literal["fp32", "bf16", "auto"]
"""auto: bf16 if this CPU has instructions for it, otherwise fp32; it is resolved before the fingerprint. Training with
stochastic rounding always computes in bf16."""


class Options(BaseModel):
    added: ClassVar[frozenset[str]] = frozenset()
    """Options added after results were stored without them. At their default they stay out of the fingerprint, so that
    those results are still hits."""

    section: ClassVar[str] = ""
    """Section in which users find these options, if it is not named like the stage or option that has them."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def identify(self, described: dict[str, Any], option: str) -> None:
        """Replaces the outside paths in `described`, the dump of these options, by identities for a fingerprint. Most
        options have none. `option` is their dotted name in errors."""

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                found.pop(name, None)
        return found

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses `true` where a number is expected; pydantic would take it for 1."""
        parts = value if isinstance(value, list | tuple) else (value,)
        annotation = cls.model_fields[info.field_name or ""].annotation
        if any(isinstance(part, bool) for part in parts) and not _mentions(annotation, bool):
            raise ValueError("expected no boolean")
        return value


class Located(Options):
    """Options that name something outside by `path` and `revision`. Fingerprints hold its identity instead of both."""

    path: str
    revision: str

    def identify(self, described: dict[str, Any], option: str) -> None:
        described["identity"] = identity(described.pop("path"), described.pop("revision"), f"{option}.path")


def _mentions(annotation: Any, kind: type) -> bool:
    """Returns whether a type is `kind`, or contains it."""
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


Bos = Literal["window", "stream"]
"""Where a tokenizer begins texts with a token of its own (BOS of Llama, Gemma): `window` puts it before each window of
a text, as models saw texts in training and as Gemma needs it; `stream` once before the whole text, as published
scripts do. Where the tokenizer has none, both are the same."""


def regular_expressions(patterns: list[str]) -> list[str]:
    """Returns the patterns; raises ValueError for one that is not a regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return patterns
