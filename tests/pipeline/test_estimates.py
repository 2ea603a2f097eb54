"""A dry run says how long it will take: measured where this machine did the like before, else roughly or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from engine import cpu
from pipeline.estimating.estimates import (
    FLOPS_PER_THREAD,
    Estimate,
    format_duration,
    format_seconds,
    format_total,
    of_jobs,
    of_plan,
    setting_of,
    total,
)
from pipeline.graph import ancestors
from pipeline.plan import Plan, Planned, Stores, make_plan
from pipeline.recipes import build
from pipeline.schema import Config
from pipeline.table import show_plan
from stages import model_size
from stages.cost import LIBRARIES, Workload
from stages.index import STAGES
from stages.model_size import ModelSize
from stages.prune.cost import HESSIAN_BYTES
from tests.composed import config_of

PARAMETERS = 100 * 8 + 16 * 8
ROWS = 40


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """Options of a job on a model and data in folders here."""
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    save_model(model, vocabulary=100)
    data.write_text('{"question": "q", "answer": "a"}\n' * 3)
    own = [f"model.path={model}", "data=qa", f"data.path={data}", "evaluate.perplexity.windows=16"]
    return [*own, f"runs={tmp_path / 'runs'}", f"cache.folder={tmp_path / 'cache'}", "threads=2"]


def save_model(folder: Path, vocabulary: int) -> None:
    folder.mkdir(parents=True)
    described = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(described))
    tensors = {"embedding": np.zeros((vocabulary, 8), np.float32), "linear": np.zeros((16, 8), np.float32)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def planned(options: Sequence[str]) -> tuple[Plan, Config, Stores]:
    chosen = config_of(*options)
    stores = Stores.of(chosen)
    return make_plan(chosen, build(chosen), stores), chosen, stores


def estimated(options: Sequence[str]) -> dict[str, Estimate]:
    return of_plan(*planned(options))


def publish(options: Sequence[str], name: str, seconds: float, **other: Any) -> None:
    """Stores a result of a node as if it had taken so long, and before it all that it needs."""
    plan, chosen, stores = planned(options)
    needed = ancestors(build(chosen), name)
    for item in (item for node, item in plan.items() if node in needed and item.entry is None):
        its_own = {"seconds": seconds, **other} if item.node.name == name else {}
        store_result(item, chosen, stores, its_own)


def store_result(item: Planned, chosen: Config, stores: Stores, changed: dict[str, Any]) -> None:
    stage = item.node.stage
    known = {"model": {"parameters": float(PARAMETERS)}, "data": {"train_rows": float(ROWS)}}
    meta = {
        "stage": stage,
        "version": item.spec.version,
        "fingerprint": item.fingerprint,
        "config": item.config,
        "inputs": item.inputs,
        "facts": {"rows": ROWS} if stage in ("dense", "finetune") else {},
        "metrics": known.get(stage, {}),
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
        "environment": {"cpu": cpu.model(), "threads": chosen.threads},
        "code": "",
    }
    with stores.for_stage(item.spec).fill(stage, item.fingerprint, print) as slot:
        if stage == "model":
            for file in Path(chosen.model.path).iterdir():
                (slot.out / file.name).write_bytes(file.read_bytes())
        (slot.out / "result").write_bytes(bytes(changed.pop("num_bytes", 10)))
        slot.publish(meta | changed)


def test_the_size_of_a_model_is_read_from_its_headers(tmp_path: Path) -> None:
    save_model(tmp_path / "model", vocabulary=100)
    assert model_size.of_folder(tmp_path / "model") == ModelSize(PARAMETERS, 8, 2, 4, 100)
    assert model_size.of_folder(tmp_path) is None


@pytest.mark.parametrize(
    ("described", "layers"),
    [
        ({"d_model": 8, "encoder_layers": 3, "decoder_layers": 2, "num_hidden_layers": 3, "num_heads": 2}, 5),
        ({"d_model": 8, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 2}, 7),
        ({"d_model": 8, "n_layers": 6, "n_heads": 2}, 6),
        ({"n_embd": 8, "n_layer": 6, "n_head": 2}, 6),
    ],
    ids=["whisper", "t5", "mpt", "gpt2"],
)
def test_blocks_are_counted_in_every_family(tmp_path: Path, described: dict[str, int], layers: int) -> None:
    save_model(tmp_path / "model", vocabulary=100)
    (tmp_path / "model" / "config.json").write_text(json.dumps(described | {"vocab_size": 100}))
    found = model_size.of_folder(tmp_path / "model")
    assert found is not None
    assert found.layers == layers


def test_nothing_is_guessed_of_a_model_that_is_not_here(local: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").unlink()
    for estimate in estimated(local).values():
        assert estimate == Estimate(None, None, None, "unknown")


def test_where_nothing_was_measured_time_is_operations_over_a_stated_speed(local: list[str]) -> None:
    found = estimated([*local, "finetune.steps=10", "finetune.batch_size=4", "finetune.eval_windows=8", "distill=ce"])
    tokens, validated = 10 * 4 * 256, 8 * 256  # at the end only: 10 steps are fewer than eval_every
    work = PARAMETERS * (6 * tokens + 2 * validated)
    assert found["finetune_50"].seconds == pytest.approx(work / (FLOPS_PER_THREAD * 2))
    assert found["finetune_50"].basis == "rough"
    assert found["evaluate"].seconds == pytest.approx(2 * PARAMETERS * 16 * 256 / (FLOPS_PER_THREAD * 2))
    assert estimated([*local, "evaluate.perplexity.windows=0"])["evaluate"].basis == "unknown", "all, however many"
    assert found["model"] == found["data"] == Estimate(None, None, None, "unknown")


def test_training_is_measured_by_an_earlier_one_in_proportion_to_its_steps(local: list[str]) -> None:
    short = [*local, "finetune.steps=60", "finetune.eval_windows=1", "finetune.eval_every=0"]
    publish(short, "finetune_50", 60.0)
    found = estimated([*short, "finetune.steps=100", "finetune.lr=1e-3"])["finetune_50"]
    assert found.basis == "measured"
    assert found.seconds == pytest.approx(100, rel=0.01)
    longer = estimated([*short, "finetune.steps=1000"])["finetune_50"]
    assert (longer.basis, longer.seconds) == ("rough", pytest.approx(1000, rel=0.01))


def test_start_up_does_not_grow_with_the_steps(local: list[str]) -> None:
    tiny = [*local, "finetune.warmup_steps=0", "finetune.steps=2", "finetune.eval_every=0", "distill=ce"]
    publish(tiny, "finetune_50", 130.0, metrics={"tokens": 20.0, "tokens_per_second": 2.0})
    validation = 32 * 2 / (2 * 8 * 6) * 10  # at the speed of the two steps, which took 10 s
    found = estimated([*tiny, "finetune.steps=100"])["finetune_50"]
    assert (found.basis, found.seconds) == ("rough", pytest.approx(130 - 10 + 500))
    again = estimated([*tiny, "finetune.eval_windows=64", "finetune.lr=1e-3"])["finetune_50"]
    assert (again.basis, again.seconds) == ("measured", pytest.approx(130 + validation))


def test_a_run_of_about_as_much_work_is_preferred_then_the_longest(local: list[str]) -> None:
    quiet = [*local, "finetune.warmup_steps=0", "finetune.eval_windows=1", "finetune.eval_every=0"]
    publish([*quiet, "finetune.steps=100"], "finetune_50", 100.0)
    publish([*quiet, "finetune.steps=2"], "finetune_50", 40.0)  # start-up, on a busy machine
    publish([*quiet, "finetune.steps=900", "threads=1"], "finetune_50", 9e5)
    found = {
        steps: estimated([*quiet, f"finetune.steps={steps}", "finetune.lr=1e-3"])["finetune_50"]
        for steps in (80, 3, 800)
    }
    assert {steps: (one.basis, round(one.seconds or 0)) for steps, one in found.items()} == {
        80: ("measured", 80), 3: ("measured", 60), 800: ("rough", 800),
    }  # fmt: skip


def test_a_training_that_was_resumed_took_longer_than_its_last_process(local: list[str]) -> None:
    short = [*local, "finetune.steps=10"]
    publish(short, "finetune_50", 5.0, metrics={"tokens": 1000.0, "tokens_per_second": 10.0})
    again = estimated([*short, "finetune.lr=1e-3"])["finetune_50"]
    validation = 32 * 2 / (10 * 8 * 8) * 100
    assert again.seconds == pytest.approx(100 + validation)


@pytest.mark.parametrize(
    ("other", "basis"),
    [
        (["threads=1", "finetune.lr=1e-3"], "rough"),
        (["distill=ce"], "rough"),
        (["data.size=2"], "rough"),
        (["finetune.lr=1e-3"], "measured"),
        (["finetune.batch_size=16"], "measured"),
    ],
    ids=["threads", "teacher", "data", "lr", "batch"],
)
def test_measured_is_only_what_the_same_work_took(local: list[str], other: list[str], basis: str) -> None:
    publish(local, "finetune_50", 60.0)
    assert estimated([*local, *other])["finetune_50"].basis == basis


def test_another_processor_tells_nothing(local: list[str]) -> None:
    before = estimated([*local, "finetune.lr=1e-3"])["finetune_50"]
    publish(local, "finetune_50", 1e6, environment={"cpu": "another", "threads": 2})
    after = estimated([*local, "finetune.lr=1e-3"])["finetune_50"]
    assert (after.seconds, after.basis) == (before.seconds, "rough")


def test_another_size_of_model_tells_a_speed_roughly(local: list[str], tmp_path: Path) -> None:
    publish(local, "finetune_50", 60.0)
    save_model(tmp_path / "large", vocabulary=1000)
    large = estimated([*local, f"model.path={tmp_path / 'large'}"])["finetune_50"]
    assert large.basis == "rough"
    assert large.seconds == pytest.approx(60 * (1000 * 8 + 16 * 8) / PARAMETERS)
    fewer = estimated([*local, f"model.path={tmp_path / 'large'}", "threads=1"])["finetune_50"]
    assert fewer.seconds == pytest.approx(2 * large.seconds)


def test_a_run_of_next_to_no_work_tells_no_speed(local: list[str]) -> None:
    quiet = [*local, "finetune.warmup_steps=0", "finetune.eval_windows=1", "finetune.eval_every=0"]
    long = [*quiet, "finetune.steps=10000"]
    before = estimated(long)["finetune_50"]
    publish([*quiet, "finetune.steps=1"], "finetune_50", 60.0)
    assert estimated(long)["finetune_50"] == replace(before, disk_bytes=10)
    assert (estimated([*quiet, "finetune.steps=500"])["finetune_50"].seconds or 0) > 60 * 100


def test_a_result_of_an_earlier_version_with_other_options_does_no_harm(local: list[str]) -> None:
    publish(local, "benchmark", 9.0, config={"old": True}, version="0")
    found = estimated([*local, "benchmark.rounds=7"])["benchmark"]
    assert found.basis == "rough"
    assert found.seconds is not None


def test_the_same_settings_take_as_long_again(local: list[str]) -> None:
    publish(local, "dense_eval", 31.0)
    publish(local, "evaluate", 33.0)
    again = estimated([*local, "finetune.lr=1e-3"])
    assert (again["evaluate"].seconds, again["evaluate"].basis) == (32.0, "measured")
    assert again["evaluate_q"].basis == "rough", "int8 models have a speed of their own"


def test_epochs_are_counted_by_the_rows_that_an_earlier_training_found(local: list[str]) -> None:
    epochs = [*local, "finetune.steps=0", "finetune.epochs=2", "finetune.eval_every=0", "finetune.eval_windows=1"]
    assert estimated(epochs)["finetune_50"].basis == "unknown"
    publish(local, "dense", 1.0)
    two = estimated(epochs)["finetune_50"].seconds
    four = estimated([*epochs, "finetune.epochs=4"])["finetune_50"].seconds
    assert two is not None
    assert four == pytest.approx(2 * two, rel=0.02)
    by_steps = estimated([*epochs, "finetune.epochs=0", f"finetune.steps={2 * ROWS // 8}"])["finetune_50"].seconds
    assert two == pytest.approx(by_steps)


def test_only_what_has_to_run_is_estimated(local: list[str]) -> None:
    publish(local, "finetune_50", 60.0)
    assert {"model", "data", "dense", "calibrate", "prune_50", "finetune_50"}.isdisjoint(estimated(local))


def test_what_jobs_share_counts_once(local: list[str]) -> None:
    publish(local, "dense", 10.0)
    jobs = [planned([*local, f"sparsity={level}"])[:2] for level in (0.5, 0.6)]
    both = of_jobs(jobs)
    alone = [estimated([*local, f"sparsity={level}"]) for level in (0.5, 0.6)]
    assert len(both) == len({item.fingerprint for plan, _ in jobs for item in plan.values() if item.status == "run"})
    assert len(both) < sum(map(len, alone))
    assert both[jobs[0][0]["prune_50"].fingerprint] == alone[0]["prune_50"]
    assert both[jobs[1][0]["prune_60"].fingerprint] == alone[1]["prune_60"]


def test_disk_is_what_such_results_took(local: list[str]) -> None:
    by_formula = estimated(local)["finetune_50"].disk_bytes
    assert by_formula == pytest.approx(PARAMETERS * (4 + 1 / 8))
    publish(local, "finetune_50", 60.0, num_bytes=12345)
    assert estimated([*local, "finetune.lr=1e-3"])["finetune_50"].disk_bytes == 12345


def test_memory_of_pruning_counts_the_hessians_of_a_block(tmp_path: Path) -> None:
    tensors = {
        **{f"layers.{block}.attention.{name}.weight": (8, 8) for block in (0, 1) for name in ("q", "k", "v")},
        **{f"layers.{block}.mlp.{name}.weight": (32, 8) for block in (0, 1) for name in ("gate", "up")},
        **{f"layers.{block}.mlp.down.weight": (8, 32) for block in (0, 1)},
        "layers.1.experts.down": (4, 8, 32),
        "embedding.weight": (100, 8),
    }
    folder = tmp_path / "model"
    save_model(folder, vocabulary=100)
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, folder / "model.safetensors")
    size = model_size.of_folder(folder)
    assert size is not None
    block = 4 * (8**2 + 8**2 + 32**2 + 4 * 32**2)  # q, k and v share one, gate and up another
    assert (size.gram_bytes, size.largest_gram_bytes) == (block, 4 * 32**2)

    def memory(method: str) -> float:
        load = Workload("prune", {"prune": {"method": method}}, {})
        return STAGES["prune"].cost.memory_bytes(load, size, setting_of(config_of()))

    assert memory("wanda") - memory("magnitude") == block
    assert memory("sparsegpt") - memory("wanda") == 3 * 4 * 32**2
    # of more than one pass gathers, only what it does
    many = replace(size, gram_bytes=1e12)
    load = Workload("prune", {"prune": {"method": "wanda"}}, {})
    more = STAGES["prune"].cost.memory_bytes(load, many, setting_of(config_of()))
    assert more - memory("magnitude") == HESSIAN_BYTES


def test_memory_of_training_is_the_stated_sum() -> None:
    size = ModelSize(parameters=1e6, hidden=100, layers=10, heads=10, vocabulary=1000)
    chosen = config_of("distill=ce", "finetune.precision=fp32", "finetune.micro_batch_size=2")
    slice_ = {"training": chosen.finetune.model_dump()}

    def need(**inputs: str) -> float:
        return STAGES["finetune"].cost.memory_bytes(Workload("finetune", slice_, inputs), size, setting_of(chosen))

    weights_gradients_moments_masks = (4 + 4 + 8 + 1) * 1e6
    activations = 2 * 256 * 10 * 34 * 100 * 4
    logits = 2 * 256 * 1000 * 4 * 3
    assert need(model="prune") == pytest.approx(LIBRARIES + weights_gradients_moments_masks + activations + logits)
    assert need(model="prune", teacher="dense") - need(model="prune") == pytest.approx(4e6)


def test_pruning_without_data_costs_no_passes() -> None:
    pruned = [
        STAGES["prune"].cost.operations(
            Workload("prune", {"prune": {"method": method}}, {}, calibration={"samples": 64, "length": 256}), 1e6
        )
        for method in ("sparsegpt", "magnitude")
    ]
    assert pruned == [6e6 * 64 * 256, 200e6]


def test_a_total_counts_what_it_does_not_know() -> None:
    found = total(
        [Estimate(60, 3e9, 1e6, "measured"), Estimate(30, 5e9, None, "rough"), Estimate(None, None, None, "unknown")]
    )
    assert (found.seconds, found.memory_bytes, found.disk_bytes) == (90, 5e9, 1e6)
    assert (found.nodes, found.rough, found.unknown) == (3, 1, 1)
    told = format_total(found)
    assert told == (
        "estimated: 2 min (rough: 1 of 3 nodes, unknown: 1 of 3 nodes), peak memory about 5 GB, 1 MB to store"
    )
    nothing = format_total(total([Estimate(None, None, None, "unknown")] * 2))
    assert nothing == "estimated: nothing yet; the size of the model is known once it is here (until=model)"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (7200, "2 h"), (36 * 3600, "36 h"),
     (3.25 * 86400, "3.2 days"), (1000 * 86400, "1,000 days")],
)  # fmt: skip
def test_durations_are_told_in_two_digits(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told


def test_a_plan_shows_which_times_are_rough_and_which_unknown(local: list[str]) -> None:
    publish(local, "finetune_50", 600.0)
    plan, chosen, stores = planned([*local, "finetune.lr=1e-3"])
    found = of_plan(plan, chosen, stores)
    assert format_seconds(found["finetune_50"]) == "10 min"
    assert format_seconds(found["quantize"]).startswith("~")
    assert format_seconds(Estimate(None, None, None, "unknown")) == "?"
    console = Console(file=io.StringIO(), width=140)
    show_plan(plan, found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = (line for line in shown.splitlines() if line.startswith("finetune_50"))
    assert "10 min" in line
    assert "estimated: " in shown
    assert "peak memory about" in shown
