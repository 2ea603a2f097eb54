"""Running the DAG: what is stored is not run again, a failure stops its descendants only, kills lose nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.plan import Stores
from pipeline.record.outcome import Outcome
from pipeline.store.store import Store
from stages import json_lines
from stages.calibrate import run as calibrate
from stages.contracts import UserError
from tests import tiny, tiny_pairs, tiny_whisper
from tests.composed import CONF, config
from tests.running import PROJECT, Place, hear_interrupts

SMALL = ["quantize=none", "benchmark=none"]


def statuses(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes.items()}


def executed(place: Place) -> set[tuple[str, str]]:
    stores = Stores.of(config(*place.options))
    return {(entry.stage, entry.fingerprint) for store in (stores.runs, stores.cache) for entry in store.entries()}


OWN_DATA = {
    "gsm8k": ["data.subset=''"],
    "gsm_symbolic": ["data.size=0"],
    "gradual": ["schedule.update_every=1"],
}


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TRANSLATES_OR_HEARS = {
    "t5_libreoffice": [
        *(f"model.scratch.settings.{key}={value}" for key, value in tiny_pairs.T5_SIZES.items()),
        f"model.scratch.vocabulary={tiny_pairs.VOCABULARY}",
    ],
    "t5_wmt14": ["data.subset=''"],
    "whisper_asterisk": [],
    "whisper_common_voice_hi": ["data.subset=''"],
}


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - set(TRANSLATES_OR_HEARS)))
def test_every_experiment_runs(place: Place, experiment: str) -> None:
    """As its file says, on a tiny model and tiny data of the same format."""
    asks = experiment.startswith("gsm")
    data = place.sources.questions if asks else place.sources.texts
    columns = [] if asks else ["data.columns={text: text, id: id}"]
    tasks = ["evaluate.tasks.0.limit=4"] if asks else []
    line = [
        f"experiment={experiment}",
        *place.small,
        f"data.path={data}",
        *columns,
        *tasks,
        *OWN_DATA.get(experiment, []),
    ]
    outcomes = place.run_config(*line)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}, statuses(outcomes)
    assert outcomes["evaluate"].metrics["perplexity"].value > 1
    assert set(statuses(place.run_config(*line)).values()) == {"hit"}


@pytest.mark.parametrize("experiment", TRANSLATES_OR_HEARS)
def test_every_experiment_of_encoder_decoders_runs(place: Place, experiment: str) -> None:
    """From tokenizer and features to int8 and speed, as its file says, on a tiny model and tiny data."""
    hears = experiment.startswith("whisper")
    model = place.folder / "model"
    if hears:
        tiny_whisper.save(model, multilingual=experiment == "whisper_common_voice_hi")
    elif experiment == "t5_wmt14":
        tiny_pairs.save_t5(model)
    data = (tiny_pairs.save_clips if hears else tiny_pairs.save_pairs)(place.folder / "data")
    kept = ("model.path", "evaluate.perplexity", "benchmark.prompt_tokens")
    line = [
        f"experiment={experiment}",
        *(option for option in place.small if not option.startswith(kept)),
        *([f"model.path={model}"] if experiment != "t5_libreoffice" else []),
        f"data.path={data}",
        "data.splits={}",
        "evaluate.generation.limit=4",
        "evaluate.generation.max_new_tokens=6",
        *(["evaluate.generation.normalizer=basic"] if hears else []),
        "benchmark.samples=2",
        "sparsity=0.67",
        *TRANSLATES_OR_HEARS[experiment],
    ]
    outcomes = place.run_config(*line)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}, statuses(outcomes)
    judged = {name: metric.value for name, metric in outcomes["evaluate_q"].metrics.items()}
    assert judged["wer"] > 0 if hears else 0 <= judged["bleu"] < 100
    assert outcomes["evaluate"].metrics.keys() >= ({"wer", "cer"} if hears else {"bleu", "chrf"})
    assert set(statuses(place.run_config(*line)).values()) == {"hit"}


def test_the_record_of_a_result_tells_all_that_made_it(ran: Place) -> None:
    outcomes = ran.run(*SMALL)
    entry = Store(ran.runs / "store").find("finetune", outcomes["finetune_50"].fingerprint)
    assert entry is not None
    assert entry.meta["config"]["training"]["lr"] == 2e-4
    assert entry.meta["inputs"]["teacher"] == outcomes["dense"].fingerprint
    assert entry.meta["environment"]["threads"] == 1
    assert entry.meta["environment"]["packages"]["torch"]
    assert entry.meta["facts"]
    assert set(entry.meta["files"]) >= {"config.json", "model.safetensors", "masks.safetensors", "metrics.jsonl"}
    steps = [row["step"] for row in json_lines.read(entry.path / "metrics.jsonl")]
    assert steps == sorted(steps)
    assert max(steps) == 4


def test_shared_stages_run_once(place: Place) -> None:
    first = place.run(*SMALL, "schedule=ladder", "schedule.levels=[0.3]", "sparsity=0.5")
    second = place.run(*SMALL, "schedule=ladder", "schedule.levels=[0.3]", "sparsity=0.6")
    assert set(statuses(first).values()) == {"done"}
    assert {name for name, status in statuses(second).items() if status == "done"} == {
        "prune_60", "finetune_60", "evaluate",
    }  # fmt: skip
    distinct = {(o.stage, o.fingerprint) for o in [*first.values(), *second.values()]}
    assert executed(place) == distinct


def test_what_cannot_end_well_stops_everything_once_the_sources_are_there(place: Place) -> None:
    broken = place.run(*SMALL, "calibrate.samples=100000")
    assert "calibrate.samples" in broken["calibrate"].error
    assert statuses(broken) == {
        "model": "done", "data": "done", "dense": "not run", "dense_eval": "not run", "calibrate": "failed",
        "prune_50": "not run", "finetune_50": "not run", "evaluate": "not run",
    }  # fmt: skip


def test_a_failure_stops_its_descendants_only_and_the_next_run_goes_on_from_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise UserError("on purpose", "calibrate.samples")

    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "run", fail)
        broken = place.run(*SMALL)
    assert broken["calibrate"].status == "failed"
    assert "calibrate.samples" in broken["calibrate"].error
    assert {name for name, status in statuses(broken).items() if status == "not run"} == {
        "prune_50", "finetune_50", "evaluate",
    }  # fmt: skip
    assert broken["dense_eval"].status == "done"
    mended = statuses(place.run(*SMALL))
    assert mended["dense"] == mended["dense_eval"] == "hit"
    assert mended["calibrate"] == mended["evaluate"] == "done"


@pytest.mark.parametrize(
    ("override", "node", "option"),
    [
        (f"finetune.sequence_length={tiny.CONTEXT + 1}", "finetune_50", "finetune.sequence_length"),
        (f"dense.training.sequence_length={tiny.CONTEXT + 1}", "dense", "dense.training.sequence_length"),
        (f"calibrate.length={tiny.CONTEXT + 1}", "calibrate", "calibrate.length"),
        (f"evaluate.perplexity.length={tiny.CONTEXT + 1}", "dense_eval", "evaluate.perplexity.length"),
        ("prune.pattern='1:2',prune.skip=['nothing.like.it']", "prune_1of2", "prune.skip"),
        ("prune.pattern='12:24'", "prune_12of24", "prune.pattern"),  # 32 inputs are no multiple of 24
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_the_name_of_its_option(
    place: Place, override: str, node: str, option: str
) -> None:
    outcomes = place.run(*SMALL, *override.split(","))
    assert outcomes[node].status == "failed"
    assert option in outcomes[node].error
    assert len(outcomes[node].error.splitlines()) == 1


def test_an_empty_data_set_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    outcomes = place.run(*SMALL, f"data.path={tmp_path / 'empty.jsonl'}")
    assert outcomes["data"].status == "failed"
    assert "empty" in outcomes["data"].error or "no " in outcomes["data"].error


def test_killed_anywhere_the_same_line_continues_to_the_same_result(place: Place, tmp_path: Path) -> None:
    """SIGKILL at random moments, several times, then one run to the end: bitwise what an unbroken run makes."""
    options = [*SMALL, "tracking=none", "finetune.steps=12", "finetune.checkpoint_every=2", "dense.training.steps=8"]
    unbroken = Place(place.sources, tmp_path / "unbroken")
    unbroken.folder.mkdir()
    started = time.monotonic()
    whole = unbroken.run(*options)
    seconds = time.monotonic() - started
    draw = random.Random(0)
    kills = 0
    for _ in range(6):
        process = place.fork(*options).process
        process.join(draw.uniform(0.1, 0.5) * seconds)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        for entry in Store(place.runs / "store").entries():
            assert not Store(place.runs / "store").damage(entry.stage, entry.fingerprint)
    assert kills
    resumed = place.run(*options)
    assert all(outcome.status in ("done", "hit") for outcome in resumed.values())
    weights = [
        load_file(
            Store(at.runs / "store").find("finetune", found["finetune_50"].fingerprint).path / "model.safetensors"
        )  # type: ignore[union-attr]
        for at, found in ((place, resumed), (unbroken, whole))
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    curves = [
        (Store(at.runs / "store").find("finetune", found["finetune_50"].fingerprint).path / "metrics.jsonl").read_text()  # type: ignore[union-attr]
        for at, found in ((place, resumed), (unbroken, whole))
    ]
    steps = [[json.loads(line)["step"] for line in curve.splitlines()] for curve in curves]
    assert steps[0] == steps[1]


def test_two_processes_never_do_the_same_stage_twice(place: Place) -> None:
    options = [*SMALL, "tracking=none"]
    both = [it.end() for it in [place.fork(*options) for _ in range(2)]]
    assert [code for code, _ in both] == [0, 0], both
    records = [json.loads(path.read_text()) for path in sorted(place.runs.glob("jobs/*/summary.json"))]
    assert len(records) == 2
    for name in records[0]:
        done = [record[name]["status"] for record in records].count("done")
        assert done == 1, f"{name} was executed {done} times"


def test_an_interrupted_run_leaves_finished_stages(place: Place) -> None:
    process = subprocess.Popen(
        place.command(*SMALL, "tracking=none", "finetune.steps=100000"), cwd=place.folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((place.runs / "store" / "prune").glob("*/meta.json")):
        assert time.monotonic() < deadline, "pruning did not end"
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert place.run(*SMALL)["prune_50"].status == "hit"
