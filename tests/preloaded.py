"""What the commands of `tests.running.fork` need, imported once before the first of them."""

import importlib

import mlflow  # noqa: F401

from stages.index import STAGES

for spec in STAGES.values():
    importlib.import_module(spec.module)
