"""The sparse CPU runtime: transformers models whose linears skip their zeros.

    model = engine.convert(model, dtype="int8")     # in place; zeros among the weights are what it skips
    engine.save(model, "out", tokenizer)
    model = engine.load("out")                      # a transformers model: model.generate(...)

Usable without the pipeline. torch is imported with the first of these names, so that `--help` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.conversion import convert
    from engine.files import load, save

__all__ = ["convert", "load", "save"]

_MODULES = {"convert": "engine.conversion", "load": "engine.files", "save": "engine.files"}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
