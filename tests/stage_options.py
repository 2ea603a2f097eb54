"""Options of stages for tests of a stage alone."""

from __future__ import annotations

from typing import Any

from stages.prune.spec import Prune


def pruning(**changes: Any) -> Prune:
    """The section `prune`, small; of pruners that take other options than SparseGPT's, give `changes` with None for
    those to leave out."""
    given = {
        "method": "sparsegpt", "pattern": "unstructured", "block_size": 16, "damping": 0.01, "max_damping": 1.0,
        "precision": "fp32", "micro_batch_size": 3, "skip": [],
    } | changes  # fmt: skip
    return Prune.model_validate({name: value for name, value in given.items() if value is not None})
