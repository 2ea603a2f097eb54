"""The stage `prune` on whole small models: exact counts, patterns, nesting, refusals, resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import reach
from stages import checkpoints, families, masks
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus, UserError
from stages.prune import run as prune
from stages.prune.selection import num_pruned, target
from stages.prune.sequential import prune_model
from stages.prune.spec import PruneOptions
from tests import tiny
from tests.recording import Killed, KilledLog, RecordingLog
from tests.running_stages import calibrated
from tests.stage_options import pruning
from tests.tiny import checkpoint, described, text_data
from tests.tiny_training import padded_samples, spied

FAMILY = families.get("causal_lm")


def qa_data(folder: Path) -> Corpus:
    folder.mkdir()
    rows = [
        {"prompt": " ".join(text.split()[: 3 + n % 9]), "completion": " stone", "answer": "x"}
        for n, text in enumerate(tiny.sentences(20, 0))
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return described(folder, "qa")


def pruned(
    tmp_path: Path, model: Checkpoint, calibration: Calibration | None, sparsity: float, name: str = "", **changes: Any
) -> tuple[Checkpoint, dict[str, float], RecordingLog]:
    name = name or f"pruned {model.fingerprint} {sparsity} {changes}".replace(":", "of")
    out = tmp_path / name
    out.mkdir()
    log = RecordingLog(tmp_path / f"resume of {name}")
    inputs: dict[str, Artifact] = {"model": model} | ({"calibration": calibration} if calibration else {})
    metrics = prune.run(PruneOptions(prune=pruning(**changes), sparsity=sparsity), inputs, out, log)
    return Checkpoint(out, name), metrics, log


# ---- the stage ----


METHODS = ("magnitude", "wanda", "sparsegpt")


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_pattern_prunes_exactly(kind: str, method: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path, kind)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    original = checkpoints.load(model).state_dict()
    for pattern, sparsity in (("unstructured", 0.37), ("2:4", 0.5), ("4:8", 0.5)):
        given = calibration if method != "magnitude" else None
        sparse, metrics, log = pruned(tmp_path, model, given, sparsity, method=method, pattern=pattern)
        found = masks.of(sparse)
        loaded = checkpoints.load(sparse)
        assert set(found) == set(FAMILY.prunable(loaded))
        goal = target(pattern, sparsity)
        for keep_OI in found.values():
            assert int((~keep_OI).sum()) == num_pruned(*keep_OI.shape, goal, pruning(method=method))
            if pattern != "unstructured":
                keep, group = map(int, pattern.split(":"))
                assert (keep_OI.reshape(len(keep_OI), -1, group).sum(-1) == keep).all()
        assert metrics["sparsity"] == pytest.approx(sparsity, abs=0.02)
        zeros = sum(int((~keep_OI).sum()) for keep_OI in found.values())
        total = sum(parameter.numel() for parameter in loaded.parameters())
        assert metrics["model_sparsity"] == pytest.approx(zeros / total)
        changed = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, original[name])}
        assert changed == {f"{name}.weight" for name in found}, "embeddings, norms, biases and head stay"
        assert [step for step, _ in log.points] == list(range(len(found)))
        assert all(values["layer_sparsity"] == pytest.approx(sparsity, abs=0.04) for _, values in log.points)
        assert [layer["name"] for layer in log.found["layers"]] != []
        assert log.found["masks_digest"] == masks.digest(found)
        if method == "magnitude":
            assert not any("layer_error" in values for _, values in log.points)
        else:
            assert all(0 < values["layer_error"] < 1 for _, values in log.points)
            assert metrics["mean_layer_error"] > 0
        assert (log.found["damping"] is None) == (method != "sparsegpt")
        assert (sparse.path / "tokenizer.json").exists()


def test_sparsegpt_loses_less_than_wanda(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    calibration, _ = calibrated(tmp_path, model, qa_data(tmp_path / "questions"), length=40, samples=16)
    errors = [pruned(tmp_path, model, calibration, 0.5, method=m)[1]["mean_layer_error"] for m in METHODS[1:]]
    assert errors[1] < errors[0]


def test_magnitude_runs_no_forward_pass_but_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = torch.nn.Linear.forward

    def few_tokens(module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        assert x.numel() // x.shape[-1] <= reach.ROWS * reach.TOKENS, "a forward pass"
        return forward(module, x)

    model = checkpoint(tmp_path)
    monkeypatch.setattr(torch.nn.Linear, "forward", few_tokens)
    pruned(tmp_path, model, None, 0.5, method="magnitude")


@pytest.mark.parametrize("method", METHODS)
def test_rungs_nest_through_checkpoints(method: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    before: masks.Masks = {}
    for sparsity in (0.3, 0.5, 0.7):
        model, metrics, _ = pruned(tmp_path, model, calibration, sparsity, f"{method} {sparsity}", method=method)
        found = masks.of(model)
        assert metrics["sparsity"] == pytest.approx(sparsity, abs=0.02)
        assert not any((found[name] & ~keep_OI).any() for name, keep_OI in before.items())
        before = found
    with pytest.raises(UserError, match=r"hold more zeros than 0\.5 leaves room for"):
        pruned(tmp_path, model, calibration, 0.5, "downhill", method=method)


def test_sparsity_0_keeps_everything(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    sparse, metrics, _ = pruned(tmp_path, model, None, 0.0)
    assert metrics == {"sparsity": 0, "model_sparsity": 0, "mean_layer_error": 0, "prunable_share": 1}
    assert all(keep_OI.all() for keep_OI in masks.of(sparse).values())
    original, loaded = checkpoints.load(model).state_dict(), checkpoints.load(sparse).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in original.items())


def test_skipped_linears_stay_dense_and_have_no_mask(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    # k_proj leaves a group; the last of a block goes; a whole block goes
    skip = [r".*\.k_proj", r".*down_proj", r"model\.layers\.0\..*"]
    sparse, _, _ = pruned(tmp_path, model, calibration, 0.5, "skipped", skip=skip)
    found = masks.of(sparse)
    assert sorted(name.rsplit(".", 1)[1] for name in found) == ["gate_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert all(name.startswith("model.layers.1.") for name in found)
    before, after = checkpoints.load(model).state_dict(), checkpoints.load(sparse).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in found}


@pytest.mark.parametrize(
    ("changes", "sparsity", "option", "says"),
    [
        ({"skip": ["q_proj"]}, 0.5, "prune.skip", "matches no linear"),
        ({"skip": [".*"]}, 0.5, "prune.skip", "nothing is left"),
        ({"pattern": "2:6"}, 1 - 2 / 6, "prune.pattern", "do not divide 32"),
        ({"pattern": "2:4"}, 0.7, "sparsity", "means sparsity=0.5"),
    ],
)
def test_bad_options_are_named(
    changes: dict[str, Any], sparsity: float, option: str, says: str, log: RecordingLog
) -> None:
    with pytest.raises(UserError, match=says) as raised:
        prune_model(tiny.build(), FAMILY, padded_samples(), pruning(**changes), sparsity, {}, log)
    assert raised.value.option == option


def test_activations_that_are_not_finite_are_named(log: RecordingLog) -> None:
    for method in ("wanda", "sparsegpt"):
        model: Any = tiny.build()
        model.model.embed_tokens.weight.data[padded_samples()["input_ids"][0, 0]] = torch.nan
        with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj.*not finite"):
            prune_model(model, FAMILY, padded_samples(), pruning(method=method), 0.5, {}, log)


def test_damping_that_had_to_grow_is_told(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    # two tokens, 32 inputs: a Hessian of rank 2 needs more damping than 1e-12 in fp32
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"), samples=1, length=2)
    _, _, log = pruned(tmp_path, model, calibration, 0.5, "raised", damping=1e-12)
    assert log.found["damping"]["asked"] == 1e-12
    assert 1e-12 < log.found["damping"]["most_used"] <= 1.0
    assert any("damping was raised" in note for note in log.notes)
    with pytest.raises(UserError, match="not positive definite"):
        pruned(tmp_path, model, calibration, 0.5, "stopped", damping=1e-12, max_damping=1e-12)


# ---- resuming ----


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_prune_goes_on_at_its_block_to_the_same_result(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path)
    calibration, _ = calibrated(tmp_path, model, text_data(tmp_path / "texts"))
    whole, metrics, whole_log = pruned(tmp_path, model, calibration, 0.6, "whole", method=method)

    config = PruneOptions(prune=pruning(method=method), sparsity=0.6)
    inputs: dict[str, Artifact] = {"model": model, "calibration": calibration}
    out = tmp_path / "killed"
    out.mkdir()
    with pytest.raises(Killed):
        prune.run(config, inputs, out, KilledLog(tmp_path / "survives"))
    assert [path.name for path in (tmp_path / "survives").iterdir()] == ["block_0000"]
    shutil.rmtree(out)
    out.mkdir()
    log = RecordingLog(tmp_path / "survives")
    with spied(monkeypatch) as hessians:
        resumed = prune.run(config, inputs, out, log)
    assert len(hessians) == (4 if method == "sparsegpt" else 0), "only the second block is pruned again"
    assert resumed == metrics
    assert (out / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert log.found["masks_digest"] == whole_log.found["masks_digest"]
    assert log.points == whole_log.points
