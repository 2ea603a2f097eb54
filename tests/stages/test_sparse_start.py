"""A model that comes sparse, as published sparse checkpoints do: its zeros stay zero from the model to the int8 one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import table
from pipeline.record.metrics import of_result
from pipeline.record.outcome import Outcome
from pipeline.record.status import Status
from pipeline.reporting import quality_tables, study
from stages import masks
from stages.contracts import Artifact, Checkpoint, UserError
from stages.finetune import run as finetune
from stages.finetune.spec import CubicOptions
from stages.model import run as source
from stages.model import zeros
from stages.model.spec import ModelOptions
from stages.prune import run as prune
from stages.prune.selection import num_pruned, target
from stages.prune.spec import PruneOptions
from tests import tiny
from tests.composed import config_of
from tests.recording import RecordingLog
from tests.running import Place, make_sources
from tests.running_stages import calibrated
from tests.stage_options import TASK, finetuning, pruning
from tests.tiny import text_data
from tests.tiny_reports import Runs
from tests.tiny_training import FAMILY, prune_config


def save_sparse(folder: Path, share: float = 0.5, how: str = "evenly") -> Path:
    """A tiny model in hub format with zeros, and no masks beside them."""
    model = tiny.build()
    generator = torch.Generator().manual_seed(0)
    for name, linear in FAMILY.prunable(model).items():
        W_OI = linear.weight.data
        scores_OI = torch.rand(W_OI.shape, generator=generator)
        match how:
            case "evenly":  # as magnitude pruning, of each linear
                W_OI[scores_OI <= scores_OI.flatten().kthvalue(round(share * scores_OI.numel())).values] = 0
            case "by column":  # some inputs matter less than others, and so do some outputs
                weights_OI = torch.linspace(0.5, 1.5, W_OI.shape[1]) * torch.linspace(0.7, 1.3, W_OI.shape[0])[:, None]
                scores_OI = scores_OI * weights_OI
                W_OI[scores_OI <= scores_OI.flatten().kthvalue(round(share * scores_OI.numel())).values] = 0
            case "2:4":
                W_OI.view(-1, 4)[scores_OI.view(-1, 4).argsort(-1) < 2] = 0
                W_OI[0, :4] = 0  # and a weight that is 0 by chance
            case "mlp only":
                if "mlp" in name:
                    W_OI[scores_OI < share] = 0
    model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


def imported(folder: Path, tmp_path: Path, choice: str = "auto") -> tuple[Checkpoint, dict[str, float], RecordingLog]:
    out, log = tmp_path / f"imported {choice}", RecordingLog(tmp_path / "resume of import")
    out.mkdir(parents=True)
    config = ModelOptions(path=str(folder), revision="", family="causal_lm", dtype="float32", masks=choice)  # type: ignore[arg-type]
    metrics = source.run(config, {}, out, log)
    return Checkpoint(out, "sparse"), metrics, log


def zeros_of(folder: Path) -> dict[str, Tensor]:
    names = FAMILY.prunable(tiny.build())
    weights = load_file(folder / "model.safetensors")
    return {name: weights[f"{name}.weight"] == 0 for name in names}


def share(found: dict[str, Tensor]) -> float:
    return sum(int(zero.sum()) for zero in found.values()) / sum(zero.numel() for zero in found.values())


# ---- the model stage ----


def test_zeros_become_masks_where_there_are_many(tmp_path: Path) -> None:
    folder = save_sparse(tmp_path / "m", 0.5, "mlp only")
    checkpoint, metrics, log = imported(folder, tmp_path)
    kept, found = masks.of(checkpoint), zeros_of(folder)
    assert all(torch.equal(~kept[name], found[name]) for name in found)
    assert metrics["sparsity"] == pytest.approx(share(found))
    assert log.found["zeros"] == pytest.approx(share(found))
    assert len(log.notes) == 1
    assert "of the prunable weights are zero (6 of 14 linears are sparse): masks keep them" in log.notes[0]

    free, metrics, log = imported(folder, tmp_path, "none")
    assert free.masks is None
    assert "sparsity" not in metrics
    assert "training will revive them" in log.notes[0]


def test_a_model_of_ours_comes_in_with_its_masks_beside_it(tmp_path: Path) -> None:
    checkpoint, _, _ = imported(save_sparse(tmp_path / "m", 0.5), tmp_path)
    again, metrics, _ = imported(checkpoint.path, tmp_path / "again")
    assert metrics["sparsity"] == pytest.approx(share(zeros_of(checkpoint.path)))
    kept = masks.of(again)
    assert all(torch.equal(kept[name], keep_OI) for name, keep_OI in masks.of(checkpoint).items())


def test_a_dense_model_has_no_masks(tmp_path: Path) -> None:
    folder = save_sparse(tmp_path / "m", 0.01)
    checkpoint, _, log = imported(folder, tmp_path)
    assert checkpoint.masks is None
    assert not log.notes
    assert log.found["zeros"] == pytest.approx(0.01, abs=1e-3)
    asked, _, _ = imported(folder, tmp_path, "from_zeros")
    assert masks.sparsity(masks.of(asked)) == pytest.approx(0.01, abs=1e-3)


def test_linears_that_were_never_trained_are_not_taken_for_sparse() -> None:
    linears = {"trained": nn.Linear(8, 8), "at zero": nn.Linear(8, 8)}
    nn.init.zeros_(linears["at zero"].weight)
    found = zeros.find(linears, "auto")
    assert not found.pruned
    assert "1 linears are all zeros, first at zero: training fills them" in found.note
    with pytest.raises(UserError, match="none of the prunable weights is zero") as caught:
        zeros.find({"trained": linears["trained"]}, "from_zeros")
    assert caught.value.option == "model.masks"
    with pytest.raises(UserError, match="a model from scratch has no zeros"):
        config_of("model=t5_from_scratch", "data=translation", "data.path=x", "evaluate=bleu", "model.masks=none")


def test_linears_that_were_pruned_whole_stay_so_beside_sparse_ones() -> None:
    linears = {name: nn.Linear(8, 8) for name in ("dense", "half", "whole")}
    nn.init.zeros_(linears["whole"].weight)
    linears["half"].weight.data[:4] = 0
    found = zeros.find(linears, "auto")
    assert {name: masks.sparsity({name: keep}) for name, keep in found.pruned.items()} == {
        "dense": 0, "half": 0.5, "whole": 1,
    }  # fmt: skip
    assert "2 of 3 linears are sparse" in found.note


# ---- pruning from there ----


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("how", ["evenly", "by column"])
def test_a_sparse_model_is_taken_further_to_exactly_the_level(how: str, method: str, tmp_path: Path) -> None:
    checkpoint, _, _ = imported(save_sparse(tmp_path / "m", 0.5, how), tmp_path)
    log, metrics, out = pruned_to(0.6, checkpoint, tmp_path, method=method)
    assert not log.notes
    earlier, found = zeros_of(checkpoint.path), zeros_of(out)
    for name, zero_OI in found.items():
        assert not (earlier[name] & ~zero_OI).any()
        assert int(zero_OI.sum()) == num_pruned(*zero_OI.shape, 0.6, pruning(method=method))
    assert metrics["sparsity"] == pytest.approx(share(found), abs=1e-6)
    # the level it has already: nothing more is pruned
    log, _, out = pruned_to(0.5, checkpoint, tmp_path, method=method, name="again")
    assert share(zeros_of(out)) == pytest.approx(0.5, abs=0.01)


def pruned_to(
    sparsity: float, checkpoint: Checkpoint, tmp_path: Path, name: str = "pruned", **changes: Any
) -> tuple[RecordingLog, dict[str, float], Path]:
    out, log = tmp_path / name, RecordingLog(tmp_path / f"resume of {name}")
    out.mkdir()
    calibration, _ = calibrated(tmp_path / name, checkpoint, text_data(tmp_path / name / "texts"))
    inputs: dict[str, Artifact] = {"model": checkpoint, "calibration": calibration}
    made = tmp_path / f"{name} model"
    made.mkdir()
    return log, prune.run(PruneOptions(prune=pruning(**changes), sparsity=sparsity), inputs, made, log), made


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_pattern_that_the_zeros_have_is_kept(method: str, tmp_path: Path) -> None:
    """A group in which a weight is 0 by chance holds one zero more, which is told."""
    checkpoint, _, _ = imported(save_sparse(tmp_path / "m", how="2:4"), tmp_path)
    log, _, out = pruned_to(0.5, checkpoint, tmp_path, method=method, pattern="2:4")
    assert all(torch.equal(zeros_of(checkpoint.path)[name], zero_OI) for name, zero_OI in zeros_of(out).items())
    assert any("hold more zeros than 0.5 leaves room for" in note for note in log.notes)
    assert target("2:4", 0.5) == (2, 4)


@pytest.mark.parametrize(
    ("how", "sparsity", "changes"),
    [
        ("evenly", 0.3, {}),
        ("evenly", 0.3, {"method": "magnitude"}),
        ("evenly", 0.5, {"pattern": "2:4"}),
        ("2:4", 0.25, {"pattern": "3:4"}),
        ("mlp only", 0.4, {"method": "wanda"}),
    ],
)
def test_a_level_below_the_zeros_is_refused_by_name_and_number(
    how: str, sparsity: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint, _, _ = imported(save_sparse(tmp_path / "m", 0.5, how), tmp_path)
    with pytest.raises(
        UserError, match=r"linears hold more zeros than .*_proj has \d+ of \d+, \d+ are to be pruned"
    ) as caught:
        pruned_to(sparsity, checkpoint, tmp_path, **changes)
    assert caught.value.option == "sparsity"
    with pytest.raises(UserError, match="groups of 7 do not divide") as pattern:
        pruned_to(4 / 7, checkpoint, tmp_path, "by sevens", **{**changes, "pattern": "3:7"})
    assert pattern.value.option == "prune.pattern"
    assert "the sparsity would come to 0." in caught.value.message


def test_skipped_linears_keep_their_zeros_and_dense_ones_get_no_mask(tmp_path: Path) -> None:
    checkpoint, _, _ = imported(save_sparse(tmp_path / "m", 0.5, "mlp only"), tmp_path)
    _, metrics, out = pruned_to(0.6, checkpoint, tmp_path, method="magnitude", skip=[r".*(q|up)_proj"])
    pruned = masks.of(Checkpoint(out, ""))
    assert not any("q_proj" in name for name in pruned)
    up = {name: keep for name, keep in pruned.items() if "up_proj" in name}
    assert masks.sparsity(up) == pytest.approx(0.5, abs=0.05)
    assert metrics["sparsity"] == masks.sparsity(pruned)


def test_a_level_that_uneven_zeros_leave_no_room_for_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    place = Place(make_sources(tmp_path / "sources"), tmp_path)
    folder = save_sparse(tmp_path / "uneven", 0.9, "mlp only")
    outcomes = place.run(f"model.path={folder}", "sparsity=0.7", "quantize=none", "benchmark=none")
    assert outcomes["prune_70"].error.startswith("sparsity: 6 of 14 linears hold more zeros than 0.7")
    assert {name for name, outcome in outcomes.items() if outcome.status == "done"} == {"model", "data"}


def test_a_cubic_schedule_begins_at_the_zeros_that_are_there(tmp_path: Path) -> None:
    checkpoint, _, _ = imported(save_sparse(tmp_path / "m"), tmp_path)
    data = text_data(tmp_path / "texts")

    def trained(initial: float) -> dict[str, float]:
        schedule = CubicOptions(
            prune=prune_config("magnitude"), initial=initial, final=0.75, begin_step=0, end_step=3, update_every=1
        )
        out = tmp_path / f"out {initial}"
        out.mkdir()
        inputs: dict[str, Artifact] = {"model": checkpoint, "data": data}
        return finetune.run(
            finetuning(TASK, schedule, steps=4), inputs, out, RecordingLog(tmp_path / f"resume {initial}")
        )

    with pytest.raises(UserError, match="hold more zeros than 0 leaves room for") as caught:
        trained(0.0)
    assert caught.value.option == "schedule.initial"
    assert trained(0.5)["sparsity"] == 0.75


# ---- the whole way ----


def test_a_checkpoint_of_50_percent_is_imported_again_and_taken_to_60(tmp_path: Path) -> None:
    """What a run stored is another run's model.path, without its masks: as somebody would publish it."""
    first = Place(make_sources(tmp_path / "sources"), tmp_path / "first")
    made = first.run("until=finetune_50", "dense.skip=true", "sparsity=0.5", "distill=ce")
    assert made["finetune_50"].status == "done"
    (stored,) = first.runs.glob("store/finetune/*")
    published = tmp_path / "published"
    published.mkdir()
    for file in stored.iterdir():
        if file.name not in ("masks.safetensors", "meta.json", "metrics.jsonl"):
            (published / file.name).write_bytes(file.read_bytes())
    second = Place(make_sources(tmp_path / "others"), tmp_path / "second")
    line = (f"model.path={published}", "sparsity=0.6", "benchmark=none", "evaluate.one_shot=true")
    outcomes = second.run(*line)
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "done")
    half = zeros_of(published)
    assert outcomes["model"].value("sparsity") == outcomes["dense"].value("sparsity") == pytest.approx(share(half))
    assert share(half) == pytest.approx(0.5, abs=0.01)
    for stage, expected in (("dense", 0.5), ("finetune", 0.6)):
        (folder,) = second.runs.glob(f"store/{stage}/*")
        found = zeros_of(folder)
        assert not any((half[name] & ~found[name]).any() for name in half)
        assert share(found) == pytest.approx(expected, abs=0.01)
        assert json.loads((folder / "meta.json").read_text())["metrics"]["sparsity"] == pytest.approx(share(found))
    with_int8 = [path for path in second.runs.glob("store/quantize/*") if (path / "masks.safetensors").exists()]
    assert sorted(round(masks.sparsity(masks.of(Checkpoint(path, ""))), 2) for path in with_int8) == [0.5, 0.6]


@pytest.mark.parametrize(
    ("zeros", "label"), [(0.0, "dense"), (0.5, "imported, 50 % sparse"), (0.7012, "imported, 70 % sparse")]
)
def test_a_model_that_came_sparse_is_not_called_dense(zeros: float, label: str, tmp_path: Path) -> None:
    runs = Runs(tmp_path, reference="wikitext2_opt_125m", came_with=zeros)
    runs.job(0.8, "squarehead", 11.0, int8=True)
    runs.write_sweep()
    found = study.collect([runs.place], None, Path("nowhere"))
    labels = {row["kind"]: row["label"] for row in found.models}
    assert (labels["dense_eval"], labels["dense_eval_q"]) == (label, f"{label}, int8")
    told = {row["model"].text: row["zeros"].text for row in quality_tables.models(found).rows if "zeros" in row}
    assert (label in told) == bool(zeros)
    # a published dense figure stands beside dense models alone
    beside = {at.row["kind"] for at in found.comparisons}
    assert ("dense_eval" in beside) == (not zeros)


def test_the_terminal_does_not_call_it_dense_either() -> None:
    perplexity = of_result("evaluate", {"perplexity": 9.0}, None)
    judged = Outcome("dense_eval", "evaluate", "b", Status.DONE, metrics=perplexity)
    for metrics, label in (({}, "dense"), ({"sparsity": 0.5}, "imported, 50 % sparse")):
        model = Outcome("model", "model", "a", Status.HIT, metrics=of_result("model", metrics, None))
        console = Console(record=True, width=120)
        table.show_quality({"model": model, "dense_eval": judged, "dense_eval_q": judged}, console)
        written = console.export_text()
        assert f"{label} " in written
        assert f"{label}, int8" in written
