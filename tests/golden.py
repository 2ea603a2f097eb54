"""Fingerprints of every node of every experiment, kept in golden_fingerprints.json: they keep users' stores valid.

`python -m tests.golden` writes them anew, which makes every stored result a miss: only a raised stage version may ask
for that.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest.mock import patch

from pipeline.plan import Stores, make_plan
from pipeline.recipes import build
from tests.composed import CONF, config

FILE = Path(__file__).with_suffix("").with_name("golden_fingerprints.json")
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix() for path in (CONF / "experiment").rglob("*.yaml")
)
VARIANTS = {
    "defaults": (),
    "ladder 2:4": ("experiment=two_of_four",),
    "cubic": ("schedule=cubic", "sparsity=0.7"),
    "magnitude, no training": ("prune=magnitude", "finetune.steps=0", "quantize=none"),
    "wanda, kd, every rung": (
        "prune=wanda", "distill=kd", "schedule=ladder", "schedule.levels=[0.3,0.5]", "sparsity=0.6",
        "evaluate.every_rung=true",
    ),
    "dense": ("sparsity=0", "benchmark=none"),
    "no dense stage": ("dense.skip=true", "evaluate.one_shot=true"),
}  # fmt: skip
"""Paths through the graph that the experiments may not take."""
MACHINE = ("device=cpu", "threads=2", "finetune.precision=fp32", "dense.training.precision=fp32",
           "prune.precision=fp32", "evaluate.int8_runtime=torch")  # fmt: skip
"""What would else be found on the machine."""


def fingerprints(folder: Path) -> dict[str, dict[str, str]]:
    """{experiment or variant: {node: fingerprint}}. `folder` is an empty one, for a store that holds nothing."""
    asked = {name: (f"experiment={name}",) for name in EXPERIMENTS} | VARIANTS
    with patch("stages.options.identity", _identity):
        return {name: _of(folder, *overrides) for name, overrides in asked.items()}


def _identity(path: str, revision: str, option: str) -> dict[str, str]:
    """Stands for what a source holds, which a hub or a package would have to be asked for."""
    return {"digest": hashlib.sha256(f"{path}@{revision}".encode()).hexdigest()}


def _of(folder: Path, *overrides: str) -> dict[str, str]:
    parsed = config(*overrides, *MACHINE, f"runs={folder}", f"cache.folder={folder}")
    plan = make_plan(parsed, build(parsed), Stores.of(parsed), reasons=False)
    return {name: item.fingerprint for name, item in plan.items()}


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as empty:
        FILE.write_text(json.dumps(fingerprints(Path(empty)), indent=1) + "\n", encoding="utf-8")
