"""The DAG: who needs whom, what is shared, what is run and why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.fingerprint import code_digest
from pipeline.plan import Plan, Stores, make_plan
from pipeline.recipes import build
from stages.contracts import CURVES, UserError
from stages.index import STAGES
from stages.schedule import cubic, rungs
from tests.composed import config_of


def nodes(*overrides: str) -> list[str]:
    return list(build(config_of(*overrides)))


def test_the_main_line_is_dense_prune_finetune_quantize_with_the_dense_model_as_teacher() -> None:
    graph = build(config_of("schedule=ladder", "schedule.levels=[0.3]"))
    assert graph["prune_30"].inputs == {"model": "dense", "calibration": "calibrate"}
    assert graph["finetune_30"].inputs == {"model": "prune_30", "data": "data", "teacher": "dense"}
    assert graph["prune_50"].inputs["model"] == "finetune_30"
    assert graph["finetune_50"].inputs["teacher"] == "dense"
    assert graph["quantize"].inputs == {"model": "finetune_50", "calibration": "calibrate"}
    assert graph["evaluate"].inputs == {"model": "finetune_50", "data": "data", "baseline": "dense_eval"}
    assert graph["benchmark"].inputs["quantized"] == "quantize"


def test_every_training_of_a_run_sees_the_data_in_another_order() -> None:
    graph = build(config_of("schedule=ladder", "schedule.levels=[0.3]", "seed=7"))
    seeds = [graph[name].config.training.seed for name in ("dense", "finetune_30", "finetune_50")]  # type: ignore[attr-defined]
    assert seeds == [7, 8, 9]


def test_skipping_dense_makes_the_pretrained_model_the_teacher() -> None:
    graph = build(config_of("dense.skip=true"))
    assert "dense" not in graph
    assert graph["finetune_50"].inputs["teacher"] == "model"


def test_a_loss_without_a_teacher_asks_for_none() -> None:
    assert "teacher" not in build(config_of("distill=ce"))["finetune_50"].inputs


def test_magnitude_pruning_asks_for_no_calibration() -> None:
    assert "calibrate" not in nodes("prune=magnitude", "quantize=none")


def test_smoothing_asks_for_calibration() -> None:
    smoothed = build(config_of("prune=magnitude", "quantize.smooth=0.5"))
    assert smoothed["quantize"].inputs["calibration"] == "calibrate"
    plain = build(config_of("prune=magnitude", "quantize.smooth=0"))
    assert "calibration" not in plain["quantize"].inputs


def test_zero_sparsity_prunes_nothing_and_quantizes_the_dense_model() -> None:
    graph = build(config_of("sparsity=0"))
    assert not [name for name in graph if name.startswith(("prune", "finetune"))]
    assert {"dense_eval", "dense_eval_q", "benchmark"} <= set(graph)


def test_no_finetuning_steps_mean_pruning_alone() -> None:
    graph = build(config_of("finetune.steps=0"))
    assert graph["evaluate"].inputs["model"] == "prune_50"


def test_cubic_prunes_inside_finetuning() -> None:
    graph = build(config_of("schedule=cubic", "schedule.initial=0.2", "prune=magnitude"))
    assert graph["finetune_50"].inputs["model"] == "prune_20"
    assert graph["finetune_50"].config.cubic.end_step == 80  # 80 % of 100 steps


def test_n_of_m_ladders_keep_their_m() -> None:
    graph = build(config_of("prune.pattern='2:8'", "sparsity=0.75", "schedule=ladder", "schedule.levels=[0.5]"))
    assert graph["prune_4of8"].config.prune.pattern == "4:8"
    assert graph["prune_2of8"].config.prune.pattern == "2:8"


def test_one_shot_is_not_pruned_twice_when_it_is_the_only_rung() -> None:
    graph = build(config_of("evaluate.one_shot=true"))
    assert "one_shot" not in graph
    assert graph["one_shot_eval"].inputs["model"] == "prune_50"


def test_rungs_are_those_below_the_target_and_the_target() -> None:
    assert rungs([0.7, 0.3, 0.5, 0.3], 0.6) == [0.3, 0.5, 0.6]
    assert rungs([], 0.6) == [0.6]


def test_cubic_follows_its_closed_form() -> None:
    assert cubic(0, 0, 100, 0.2, 0.8) == pytest.approx(0.2)
    assert cubic(50, 0, 100, 0.2, 0.8) == pytest.approx(0.8 - 0.6 / 8)
    assert cubic(100, 0, 100, 0.2, 0.8) == cubic(500, 0, 100, 0.2, 0.8) == pytest.approx(0.8)
    assert cubic(5, 10, 20, 0.2, 0.8) == pytest.approx(0.2)


# ---- plans ----


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """Sources whose digests need no network, and stores of their own."""
    for name in ("model", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.jsonl").write_text(name)
    return [
        f"model.path={tmp_path / 'model'}",
        f"data.path={tmp_path / 'data'}",
        f"runs={tmp_path / 'runs'}",
        f"cache.folder={tmp_path / 'cache'}",
    ]


def plan(local: list[str], *overrides: str) -> Plan:
    resolved = config_of(*local, *overrides)
    return make_plan(resolved, build(resolved), Stores.of(resolved))


def publish(item: Any, local: list[str], code: str | None = None, content: str = "", **more: Any) -> None:
    """A result as the runner would publish it, without the work."""
    store = Stores.of(config_of(*local)).for_stage(item.spec)
    with store.fill(item.node.stage, item.fingerprint, print, replace=item.replace) as slot:
        (slot.out / "result.txt").write_text(content or item.node.name)
        (slot.out / CURVES).write_text(str(time.time()))
        slot.publish(
            {
                "stage": item.node.stage,
                "version": item.spec.version,
                "fingerprint": item.fingerprint,
                "config": item.config,
                "inputs": item.inputs,
                "facts": {},
                "metrics": {},
                "seconds": 1.0,
                "created": "2026-01-01T00:00:00+00:00",
                "environment": {},
                "code": code or code_digest(item.spec.module),
            }
            | more
        )


def fingerprints(found: Plan) -> set[tuple[str, str]]:
    return {(item.node.stage, item.fingerprint) for item in found.values()}


def test_sweep_points_share_their_prefix(local: list[str]) -> None:
    ladder = ["schedule=ladder", "schedule.levels=[0.3,0.4]", "quantize=none", "benchmark=none"]
    plans = [plan(local, *ladder, f"sparsity={s}") for s in (0.5, 0.6)]
    shared = fingerprints(plans[0]) & fingerprints(plans[1])
    assert {stage for stage, _ in shared} == {
        "model", "data", "dense", "evaluate", "calibrate", "prune", "finetune",
    }  # fmt: skip
    assert len(shared) == 9  # of those, two rungs of prune and finetune, and only the dense evaluation
    losses = [plan(local, "quantize=none", "benchmark=none", f"distill={loss}") for loss in ("ce", "kd", "squarehead")]
    assert len(set.union(*map(fingerprints, losses))) == 6 + 3 * 2  # fine-tuning and its evaluation differ


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("finetune.lr=3e-4", {"finetune", "evaluate", "quantize", "benchmark"}),
        ("evaluate.perplexity.windows=3", {"evaluate"}),
        ("benchmark.rounds=9", {"benchmark"}),
        ("calibrate.seed=7", {"calibrate", "prune", "finetune", "evaluate", "quantize", "benchmark"}),
        ("finetune.checkpoint_every=7", set()),
        ("tracking.experiment=other", set()),
        ("threads=1", {"benchmark"}),
        ("finetune.lr=0.0002", set()),  # the default, written otherwise
    ],
)
def test_a_change_reaches_exactly_what_depends_on_it(local: list[str], override: str, changed: set[str]) -> None:
    before, after = plan(local, "threads=2"), plan(local, "threads=2", override)
    moved = {after[name].node.stage for name in after if after[name].fingerprint != before[name].fingerprint}
    assert moved == changed


def test_the_content_of_a_source_is_fingerprinted_and_not_its_path(local: list[str], tmp_path: Path) -> None:
    before = plan(local)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    moved = plan([f"model.path={tmp_path / 'elsewhere'}", *local[1:]])
    assert fingerprints(moved) == fingerprints(before)
    (tmp_path / "elsewhere" / "file.jsonl").write_text("other")
    assert (
        plan([f"model.path={tmp_path / 'elsewhere'}", *local[1:]])["model"].fingerprint != before["model"].fingerprint
    )


def test_a_task_of_the_user_is_fingerprinted_by_its_content(local: list[str], tmp_path: Path) -> None:
    task = f"evaluate.tasks=[{{name: own, include: {tmp_path / 'tasks'}}}]"
    with pytest.raises(UserError, match="there is no folder"):
        plan(local, task)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text("task: own")
    before = plan(local, task)
    assert str(tmp_path) not in str(before["evaluate"].config)
    (tmp_path / "tasks" / "own.yaml").write_text("task: own\nnum_fewshot: 3")
    after = plan(local, task)
    assert after["evaluate"].fingerprint != before["evaluate"].fingerprint
    assert after["finetune_50"].fingerprint == before["finetune_50"].fingerprint


def test_reasons_name_the_differing_keys_against_the_nearest_result(local: list[str]) -> None:
    assert plan(local)["data"].reason == "no earlier result"
    for item in plan(local).values():
        publish(item, local)
    assert {item.status for item in plan(local).values()} == {"hit"}
    after = plan(local, "finetune.lr=0.01")
    assert after["finetune_50"].reason == "training.lr 0.0002 → 0.01"
    assert after["evaluate"].reason == "input finetune_50 differs"
    assert after["prune_50"].status == "hit"
    assert {item.reason for item in plan(local, "data.size=2").values()} >= {"new data"}
    assert plan(local, "data.size=2")["evaluate"].reason == "new data"


def test_force_runs_a_node_and_what_depends_on_it(local: list[str]) -> None:
    for item in plan(local).values():
        publish(item, local)
    forced = plan(local, "force=[finetune_50]")
    assert forced["finetune_50"].reason == "forced"
    assert forced["evaluate"].reason == "its input finetune_50 is made again"
    assert {name for name, item in forced.items() if item.status == "run"} == {
        "finetune_50", "evaluate", "quantize", "evaluate_q", "benchmark",
    }  # fmt: skip


def test_until_plans_only_a_node_and_its_ancestors(local: list[str]) -> None:
    assert set(plan(local, "until=prune_50")) == {"model", "data", "dense", "calibrate", "prune_50"}
    with pytest.raises(UserError, match="until: no node 'prune_99'"):
        plan(local, "until=prune_99")
    with pytest.raises(UserError, match="force: no node"):
        plan(local, "force=[nothing]")


def test_changed_code_warns_or_with_strict_runs_again(local: list[str]) -> None:
    first = plan(local)
    for item in first.values():
        publish(item, local, code="older" if item.node.name == "prune_50" else None)
    lenient = plan(local)["prune_50"]
    assert lenient.status == "hit"
    assert "code changed" in lenient.warning
    strict = plan(local, "cache.code=strict")
    assert strict["prune_50"].status == "run"
    assert strict["finetune_50"].status == "run"
    assert strict["calibrate"].status == "hit"


def test_a_result_whose_input_came_out_otherwise_since_warns_or_with_strict_runs_again(local: list[str]) -> None:
    for name in plan(local):
        there = plan(local)
        sources = there[name].node.inputs
        publish(there[name], local, contents={role: there[source].entry.content for role, source in sources.items()})
    prune = plan(local, "force=[prune_50]")["prune_50"]
    publish(prune, local)
    again = plan(local, "cache.code=strict")
    assert {item.status for item in again.values()} == {"hit"}, "made twice alike, but for the times in its curves"
    publish(prune, local, content="other weights")
    lenient = plan(local)["finetune_50"]
    assert lenient.status == "hit"
    assert "its input prune_50 was made again since" in lenient.warning
    strict = plan(local, "cache.code=strict")
    assert {name for name, item in strict.items() if item.status == "run"} >= {"finetune_50", "evaluate"}
    assert strict["dense_eval"].status == "hit"


def test_a_lost_intermediate_is_made_again_only_if_something_needs_it(local: list[str]) -> None:
    for item in plan(local).values():
        publish(item, local)
    stores = Stores.of(config_of(*local))
    gone = plan(local)["prune_50"]
    assert stores.runs.remove(gone.entry.path)
    assert plan(local)["prune_50"].status == "unneeded"
    again = plan(local, "finetune.lr=0.01")
    assert again["prune_50"].status == "run"
    assert again["dense"].status == "hit"


def test_a_damaged_result_runs_again_and_says_so(local: list[str]) -> None:
    for item in plan(local).values():
        publish(item, local)
    victim = plan(local)["dense"].entry.path / "result.txt"
    victim.chmod(0o644)
    victim.write_text("")
    damaged = plan(local)["dense"]
    assert damaged.status == "run"
    assert "result.txt" in damaged.reason


def test_every_stage_of_the_registry_has_a_module_with_a_digest() -> None:
    for spec in STAGES.values():
        assert len(code_digest(spec.module)) == 64
