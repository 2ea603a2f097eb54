"""Stages that take no time and need no torch, for tests of what goes on around them.

`python -m tests.cheap ...` is `python -m pipeline ...` with these in the place of the real ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from stages.contracts import Artifact, Log, UserError
from stages.index import STAGES

SECONDS = 0.05
TOO_MANY = 1000
"""Calibration samples."""


def modules() -> dict[str, ModuleType]:
    """By the names under which the pipeline imports stages."""
    return {spec.module: _module(spec.module, name) for name, spec in STAGES.items()}


def _module(name: str, stage: str) -> ModuleType:
    def run(config: BaseModel, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
        with log.bar(stage, total=2, unit="step") as bar:
            for _ in range(2):
                time.sleep(SECONDS / 2)
                bar.advance()
        (out / "made").write_text(stage)
        if stage == "calibrate" and config.samples > TOO_MANY:  # type: ignore[attr-defined]
            raise UserError(f"there are {TOO_MANY} samples", "calibrate.samples")
        if stage == "evaluate":
            told = {"perplexity": {"value": 12.5, "stderr": 0.5, "protocol": {}}}
            (out / "metrics.json").write_text(json.dumps(told))
            return {"perplexity": 12.5, "perplexity_stderr": 0.5, "perplexity_recovery": 80.0}
        return {"sparsity": getattr(config, "sparsity", 0.0)}

    module = ModuleType(name)
    module.run = run  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    sys.modules.update(modules())
    from pipeline.__main__ import main

    main()
