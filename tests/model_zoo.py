"""Every architecture of transformers' causal mapping, built small, through all stages: right, or refused.

`python -m tests.model_zoo` (`make zoo`) goes through them all and writes docs/models.md; the tests take some.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from engine import kernels
from stages import checkpoints, engine_models, families, masks
from stages.calibrate import run as calibrate
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus, UserError
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions
from stages.finetune import run as finetune
from stages.finetune.spec import FinetuneOptions
from stages.index import STAGES
from stages.model import run as source
from stages.prune import run as prune
from stages.prune.spec import PruneOptions
from stages.quantize import run as quantize
from tests import tiny, zoo_sizes
from tests.composed import config_of
from tests.recording import RecordingLog

DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"
SECONDS = 60
"""Of processor time, for one class."""


@dataclass(frozen=True)
class Found:
    model_type: str
    outcome: str
    """right, refused, wrong, or not built."""
    told: str
    share: float | None = None


def model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def examine(model_type: str, folder: Path) -> Found:
    """One class, from its folder in hub format on."""
    try:
        built = zoo_sizes.build(model_type)
        built(input_ids=torch.arange(1, 7).view(2, 3), use_cache=False)
        built.save_pretrained(folder / "hub")
    except Exception as error:
        return Found(model_type, "not built", f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    tiny.save_tokenizer(folder / "hub")
    share = None
    try:
        model, share = _imported(folder)
        _through(model, folder, built)
    except TimeoutError:
        raise
    except UserError as error:
        line = str(error).replace(str(folder), "FOLDER")
        return Found(model_type, "refused", line[:200], share)
    except Exception as error:
        return Found(model_type, "wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}", share)
    return Found(model_type, "right", "", share)


def _imported(folder: Path) -> tuple[Checkpoint, float]:
    (folder / "m").mkdir()
    asked = config_of(f"model.path={folder / 'hub'}").model
    source.run(asked, {}, folder / "m", RecordingLog(folder / "log-m"))
    model = Checkpoint(folder / "m", "m")
    structure = model.structure()
    assert structure is not None
    return model, structure.prunable_share


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 25).view(2, 12), use_cache=False).logits
    return found.float()


def _through(model: Checkpoint, folder: Path, built: Any) -> None:
    """prune -> fine-tune -> quantize -> evaluate -> engine. AssertionError for what is wrong."""
    torch.testing.assert_close(_logits(checkpoints.load(model)), _logits(built), rtol=1e-4, atol=1e-4)
    tiny.save_texts(folder / "t")
    meta = {"facts": {"format": "text", "digest": "d"}, "metrics": {}}
    (folder / "t" / "meta.json").write_text(json.dumps(meta))
    data, stages = Corpus(folder / "t", "t"), Stages(folder, model)
    options = stages.options
    stages.run("c", calibrate, options.calibrate, {"model": model, "data": data})
    pruning = options.prune.model_copy(update={"precision": "fp32"})
    slice_ = PruneOptions(prune=pruning, sparsity=0.5)
    training = FinetuneOptions(training=options.finetune, distill=options.distill)
    for stage, asked in (("prune", slice_), ("finetune", training)):
        STAGES[stage].check_early(asked, model.structure(), data)
    sparse = Checkpoint(folder / "p", "p")
    found = stages.run("p", prune, slice_, {"model": model, "calibration": Calibration(folder / "c", "c")})
    assert abs(found["sparsity"] - 0.5) < 0.02, f"sparsity {found['sparsity']}"
    stages.run("f", finetune, training, {"model": sparse, "data": data, "teacher": model})
    tuned = checkpoints.load(Checkpoint(folder / "f", "f"))
    masks.check(tuned, masks.of(sparse))
    calibration = Calibration(folder / "c", "c")
    stages.run("q", quantize, options.quantize, {"model": Checkpoint(folder / "f", "f"), "calibration": calibration})
    rounded = checkpoints.load(Checkpoint(folder / "q", "q"), torch.float32)
    expected = _logits(tuned)
    off = float((_logits(rounded) - expected).abs().max() / expected.abs().max())
    assert off < 0.3, f"int8 logits are off by {off:.2f} of the largest"
    judge = EvaluateOptions(**{key: getattr(options.evaluate, key) for key in EvaluateOptions.model_fields})
    quality = stages.run("e", evaluate, judge, {"model": Checkpoint(folder / "q", "q"), "data": data})
    assert quality["perplexity"] < 10_000, quality
    if not kernels.unavailable():
        for name, dtype, torch_model in (("f", "fp32", tuned), ("q", "int8", rounded)):
            ours = engine_models.load(Checkpoint(folder / name, name), dtype, "evaluate.runtime")
            torch.testing.assert_close(_logits(ours), _logits(torch_model), rtol=1e-3, atol=1e-3)


@dataclass(frozen=True)
class Stages:
    folder: Path
    model: Checkpoint

    @property
    def options(self) -> Any:
        return config_of(
            "data=text", "data.path=x", "distill=squarehead",
            *tiny.options(self.model.path, self.folder / "r", self.folder / "k"), "calibrate.samples=4",
            "finetune.steps=2",
        )  # fmt: skip

    def run(self, name: str, stage: Any, config: Any, inputs: dict[str, Artifact]) -> dict[str, float]:
        (self.folder / name).mkdir()
        found: dict[str, float] = stage.run(
            config, inputs, self.folder / name, RecordingLog(self.folder / f"log-{name}")
        )
        return found


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"takes more than {seconds} s")

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def inspect_model(model_type: str) -> Found:
    families.get("causal_lm")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _within(SECONDS):
                return examine(model_type, Path(folder))
        except TimeoutError as error:
            return Found(model_type, "not built", str(error))


def table(found: list[Found]) -> str:
    counts = {kind: sum(one.outcome == kind for one in found) for kind in ("right", "refused", "wrong", "not built")}
    rows, unbuilt = [], []
    for one in found:
        told = one.told.replace("|", "/")
        share = "" if one.share is None else f"{one.share:.1%}"
        if one.outcome == "not built":
            unbuilt.append(f"| {one.model_type} | {told} |")
        else:
            rows.append(f"| {one.model_type} | {share} | {one.outcome} | {told} |")
    return f"""{HEAD}
{counts["right"]} right, {counts["refused"]} refused, {counts["wrong"]} wrong; {counts["not built"]} not built small.

| model_type | prunable share of the blocks | outcome | line |
|---|---|---|---|
{chr(10).join(rows)}

Not built small, and why:

| model_type | what its classes say |
|---|---|
{chr(10).join(unbuilt)}
"""


HEAD = """# Models

Every architecture of transformers' causal mapping, built small (`tests/zoo_sizes.py`) with random weights, goes through
import, calibration, SparseGPT at 50 %, fine-tuning with SquareHead, int8 with SmoothQuant, evaluation and the engine
(`make zoo` writes this page). Right: the import's logits are transformers' own, zeros and their counts are exact, int8
stays near, and the engine computes what torch does. Refused: in one line, which is shown; where it names
`distill.squarehead`, another distillation can be chosen. A class that takes more than a minute counts as not built.
"""


def main(say: Callable[[str], None] = print) -> int:
    found = []
    for model_type in sys.argv[1:] or model_types():
        found.append(inspect_model(model_type))
        say(f"{found[-1].model_type}: {found[-1].outcome} {found[-1].told}")
    if not sys.argv[1:]:
        DOCS.write_text(table(found), encoding="utf-8")
    return 1 if any(one.outcome == "wrong" for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
