"""Training on a packed corpus: budgets of tokens, learning rates, pieces that make up the whole, released masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages import families, masks
from stages.contracts import Artifact, Checkpoint, PackedCorpus, UserError
from stages.finetune import batches
from stages.finetune import run as finetune
from stages.finetune.optim import learning_rate
from stages.finetune.spec import Distill, FinetuneOptions, Training, decay_steps, stable_steps
from tests import tiny, tiny_corpus
from tests.recording import RecordingLog

TASK = Distill(ce=1, kd=0, squarehead=0, temperature=1, eps=0, normalize="layer", skip_first=0)
FAMILY = families.get("causal_lm")
ROW = 32


def training(**changes: Any) -> Training:
    given = {
        **tiny.TRAINING, "steps": 0, "warmup_steps": 0, "lr": 1e-2, "decay": "linear", "weight_decay": 0.1,
        "betas": (0.9, 0.99), "clip_norm": 1.0, "divergence": 5.0, "activation_checkpointing": False,
        "teacher_cache_gb": 0, "seed": 3,
    }  # fmt: skip
    return Training.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Pruned to some 60 %."""
    folder = tiny.save_model(tmp_path_factory.mktemp("model"))
    loaded = FAMILY.load(folder)
    generator = torch.Generator().manual_seed(1)
    pruned = {n: torch.rand(m.weight.shape, generator=generator) > 0.6 for n, m in FAMILY.prunable(loaded).items()}
    masks.apply_(loaded, pruned)
    loaded.save_pretrained(folder)
    masks.save(pruned, folder / "masks.safetensors")
    return Checkpoint(folder, "model")


@pytest.fixture(scope="module")
def corpus(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    sources = tiny_corpus.save_sources(tmp_path_factory.mktemp("texts"))
    return tiny_corpus.pack(tiny_corpus.options(sources), model, tmp_path_factory.mktemp("corpus"))


def run(
    inputs: dict[str, Artifact], out: Path, config: Training, **options: Any
) -> tuple[Checkpoint, dict[str, float], RecordingLog]:
    out.mkdir(parents=True)
    log = RecordingLog(out.with_name(f"{out.name}_resume"))
    metrics = finetune.run(FinetuneOptions(training=config, distill=TASK, **options), inputs, out, log)
    return Checkpoint(out, out.name), metrics, log


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    left, right = (load_file(it.path / "model.safetensors") for it in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---- learning rates and budgets ----


def test_wsd_stands_and_then_falls_linearly_to_its_end() -> None:
    config = training(decay="wsd", decay_fraction=0.25, warmup_steps=4, lr=1.0, final_lr_fraction=0.1)
    rates = [learning_rate(step, 20, config) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:16] == pytest.approx([1.0] * 12)
    assert rates[16:] == pytest.approx([1 - 0.9 * k / 5 for k in (1, 2, 3, 4, 5)])
    assert decay_steps(20, config) == 5
    assert decay_steps(5, config.model_copy(update={"decay_fraction": 0.9})) == 1, "not into the warm-up"


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_learning_rate_may_end_above_0(decay: str) -> None:
    to_zero = training(decay=decay, lr=1.0)
    above = training(decay=decay, lr=1.0, final_lr_fraction=0.2)
    for step in range(11):
        assert learning_rate(step, 10, above) == pytest.approx(0.2 + 0.8 * learning_rate(step, 10, to_zero))


@pytest.mark.parametrize(
    "changes",
    [{"steps": 2, "tokens": 9}, {"epochs": 1, "tokens": 9}, {"decay": "constant", "final_lr_fraction": 0.1},
     {"decay_fraction": 0.5}],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give one of|ends where it is|belongs to decay=wsd"):
        training(**changes)


def test_a_budget_of_tokens_ends_with_the_step_that_reaches_it() -> None:
    config = training(tokens=1000, batch_size=4, micro_batch_size=4)
    assert batches.steps_of_tokens(config, torch.full((50,), 32)) == 8  # of 128 tokens each
    sizes_R = torch.randint(5, 32, (30,), generator=torch.Generator().manual_seed(0))
    for tokens in (40, 300, 1000, 1500):
        asked = config.model_copy(update={"tokens": tokens})
        steps = batches.steps_of_tokens(asked, sizes_R)
        seen = [int(sizes_R[batches.order(30, n * 4, config.seed)].sum()) for n in (steps - 1, steps)]
        assert seen[0] < tokens <= seen[1]


def test_rows_are_drawn_without_replacement_epoch_after_epoch() -> None:
    order = batches.order(10, 30, 3)
    assert [sorted(order[at : at + 10].tolist()) for at in (0, 10, 20)] == [list(range(10))] * 3
    assert torch.equal(order[:14], batches.order(10, 14, 3)), "the rows of a step do not depend on how many follow"


# ---- on a corpus ----


def test_tokens_and_the_loss_of_each_source_are_recorded(
    model: Checkpoint, corpus: PackedCorpus, tmp_path: Path
) -> None:
    made, metrics, log = run({"model": model, "data": corpus}, tmp_path / "a", training(tokens=1000))
    assert (metrics["steps"], metrics["tokens"]) == (8, 1024)
    losses = {metrics[f"validation_loss_{name}"] for name in ("rows", "files")}
    assert min(losses) < metrics["validation_loss"] < max(losses)
    assert log.found["data_digest"] == corpus.digest
    assert masks.digest(masks.of(made)) == masks.digest(masks.of(model))


def test_budgets_that_share_a_trunk_are_each_the_run_they_would_be_alone(
    model: Checkpoint, corpus: PackedCorpus, tmp_path: Path
) -> None:
    whole = training(tokens=20 * 4 * ROW, decay="wsd")
    assert stable_steps(whole) == 16
    alone, expected, _ = run({"model": model, "data": corpus}, tmp_path / "alone", whole)
    inputs: dict[str, Artifact] = {"model": model, "data": corpus}
    for number, steps in enumerate((6, 16)):
        piece = training(steps=steps, decay="constant")
        inputs["model"], _, _ = run(inputs, tmp_path / f"trunk{number}", piece, keeps_state=True, continues=number > 0)
    ended, found, _ = run(inputs, tmp_path / "end", whole, continues=True)
    assert same_weights(ended, alone)
    assert found["validation_loss"] == expected["validation_loss"]
    assert found["tokens"] == expected["tokens"] == 20 * 4 * ROW
    assert not (ended.path / "state").exists()


def test_released_weights_are_trained(model: Checkpoint, corpus: PackedCorpus, tmp_path: Path) -> None:
    released, metrics, log = run({"model": model, "data": corpus}, tmp_path / "a", training(tokens=500, release=True))
    assert metrics["sparsity"] == 0
    assert released.masks is None
    was_zero = ~masks.of(model)["model.layers.0.mlp.up_proj"]
    weight_OI = load_file(released.path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert (weight_OI[was_zero] != 0).float().mean() > 0.9
    assert any("releases" in note for note in log.notes)
    with pytest.raises(UserError, match="dense already"):
        run({"model": released, "data": corpus}, tmp_path / "b", training(tokens=500, release=True))


def test_separate_documents_do_not_see_each_other(model: Checkpoint, corpus: PackedCorpus, tmp_path: Path) -> None:
    _, joined, _ = run({"model": model, "data": corpus}, tmp_path / "a", training(tokens=500))
    _, apart, _ = run({"model": model, "data": corpus}, tmp_path / "b", training(tokens=500, documents="separate"))
    assert apart["validation_loss"] != joined["validation_loss"]
    opt = Checkpoint(tiny.save_model(tmp_path / "opt", "opt"), "opt")
    with pytest.raises(UserError, match="does not begin anew") as refused:
        run({"model": opt, "data": corpus}, tmp_path / "c", training(tokens=500, documents="separate"))
    assert refused.value.option == "finetune.documents"
