"""Options of stages for tests of a stage alone."""

from __future__ import annotations

from typing import Any

from stages.benchmark.spec import BenchmarkOptions
from stages.calibrate.spec import Calibrate
from stages.finetune.spec import CubicOptions, Distill, FinetuneOptions, Training
from stages.prune.spec import Prune
from stages.quantize.spec import Quantize
from tests import tiny

TASK = Distill(ce=1, kd=0, squarehead=0, temperature=1, eps=0, normalize="layer", skip_first=0)
ALL = Distill(ce=1, kd=0.5, squarehead=1, temperature=2, eps=1e-8, normalize="layer", skip_first=0)
ENGINE = ["engine_fp32", "engine_bf16", "engine_int8", "engine_int8_head"]
BACKEND_NAMES = ["torch_fp32", "torch_bf16", "torch_int8", "torch_csr", "squarehead_w8a8", *ENGINE]


def pruning(**changes: Any) -> Prune:
    """The section `prune`, small; of pruners that take other options than SparseGPT's, give `changes` with None for
    those to leave out."""
    given = {
        "method": "sparsegpt", "pattern": "unstructured", "block_size": 16, "damping": 0.01, "max_damping": 1.0,
        "precision": "fp32", "micro_batch_size": 3, "skip": [],
    } | changes  # fmt: skip
    return Prune.model_validate({name: value for name, value in given.items() if value is not None})


def training(**changes: object) -> Training:
    given = {
        **tiny.TRAINING, "lr": 1e-2, "decay": "linear", "weight_decay": 0.1, "betas": (0.9, 0.99), "clip_norm": 1.0,
        "divergence": 5.0, "activation_checkpointing": False, "teacher_cache_gb": 0, "seed": 3,
    }  # fmt: skip
    return Training.model_validate({**given, **changes})


def finetuning(distill: Distill = ALL, cubic_slice: CubicOptions | None = None, **changes: object) -> FinetuneOptions:
    return FinetuneOptions(training=training(**changes), distill=distill, cubic=cubic_slice)


def distilling(**changes: object) -> Distill:
    given = {"ce": 0, "kd": 0, "squarehead": 0, "temperature": 1, "eps": 0, "normalize": "layer", "skip_first": 0}
    return Distill.model_validate({**given, **changes})


def calibrating(**changes: Any) -> Calibrate:
    return Calibrate.model_validate({"samples": 8, "length": 32, "split": "train", "seed": 0} | changes)


def quantizing(**changes: object) -> Quantize:
    return Quantize.model_validate(
        {"scheme": "w8a8", "smooth": 0.0, "skip": [], "skip_sensitive": 0, "dense": True, **changes}
    )


def generating(**changes: object) -> dict[str, object]:
    return {
        "split": "test", "limit": 0, "beams": 1, "length_penalty": 1.0, "max_new_tokens": 6, "normalizer": "none",
        "full_window": False, "bootstrap": 100, "seed": 0, **changes,
    }  # fmt: skip


def benchmarking(**changes: object) -> BenchmarkOptions:
    return BenchmarkOptions.model_validate(
        {
            "backends": BACKEND_NAMES, "prompt_tokens": 8, "samples": 3, "beams": 0, "new_tokens": 3, "rounds": 2,
            "warmup": 1, "threads": 1, **changes,
        }
    )  # fmt: skip
