"""Values that no stage can use are refused with the configuration, by the option that the user gave."""

from __future__ import annotations

import pytest

from stages.contracts import UserError
from tests.composed import config_of

REFUSED = [
    *("finetune.betas=[2,3]", "dense.training.betas=[0.9,-1]", "finetune.betas=[0.9,1.0]", "finetune.betas=[0.9,.nan]"),
    *(
        "finetune.lr=.inf",
        "dense.training.lr=.nan",
        "distill.temperature=.inf",
        "prune.damping=.inf",
        "distill.kd=.inf",
    ),
    *("data.fractions=[.nan,.nan,.nan]", "finetune.epochs=.inf", "evaluate.generation.length_penalty=.inf"),
    *("distill.kd=1e300", "distill.temperature=1e300", "distill.eps=1e300", "finetune.clip_norm=-1"),
    *("seed=-1", "finetune.seed=-1", "dense.training.seed=1180591620717411303424", "calibrate.seed=-3", "data.seed=-1"),
    *("threads=true", "finetune.steps=true", "finetune.lr=true", "sparsity=false", "finetune.betas=[true,0.9]"),
    *("model.path=''", "data.path=''", "evaluate.tasks=[{name: ''}]", "prune.pattern='²:4'", "prune.pattern='２:４'"),
    *("finetune.warmup_steps=101", "dense.training.warmup_steps=101", "prune.max_damping=1e-9"),
    "benchmark.backends=[torch_fp32,engine_fp32,torch_fp32]",
    *("benchmark.threads=true", "schedule.levels=[true]", "prune.micro_batch_size=true"),
]


@pytest.mark.parametrize("line", REFUSED)
def test_a_value_that_cannot_be_is_refused_by_its_name(line: str) -> None:
    translation = ["data=translation", "data.path=x", "model=t5", "model.path=x", "evaluate=bleu"]
    groups = translation if "generation" in line else ["schedule=ladder"] if "schedule" in line else []
    with pytest.raises(UserError) as caught:
        config_of(*groups, line)
    assert caught.value.option.startswith(line.partition("=")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["finetune.betas=[0,0.5]", "seed=4294967295", "quantize.dense=true", "finetune.steps=80.0"]
)
def test_what_can_be_is_taken(line: str) -> None:
    config_of(line)
