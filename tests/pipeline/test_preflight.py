"""What the model and the data tell is checked before any work: in a dry run by records, in a run by rows as well."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import gpu
from pipeline.plan import Stores, make_plan
from pipeline.preflight import early_problems, shortages
from pipeline.recipes import build
from stages.contracts import Corpus, Examples, Structure, UserError
from stages.evaluate.spec import EvaluateOptions, Generation
from stages.finetune.spec import FinetuneOptions
from stages.index import STAGES
from tests import tiny
from tests.composed import config, config_of
from tests.running import Place

SMALL = ["quantize=none", "benchmark=none", "tracking=none"]
BEYOND = tiny.CONTEXT + 1
WRONG = [
    ("calibrate.split=dev", "calibrate", "calibrate.split"),
    ("evaluate.perplexity.split=dev", "dense_eval", "evaluate.perplexity.split"),
    ("calibrate.samples=100000", "calibrate", "calibrate.samples"),
    (f"calibrate.length={BEYOND}", "calibrate", "calibrate.length"),
    (f"finetune.sequence_length={BEYOND}", "finetune_50", "finetune.sequence_length"),
    (f"dense.training.sequence_length={BEYOND}", "dense", "dense.training.sequence_length"),
    (f"evaluate.perplexity.length={BEYOND}", "dense_eval", "evaluate.perplexity.length"),
    ("evaluate.perplexity.windows=100000", "dense_eval", "evaluate.perplexity.windows"),
    ("prune.skip=[nothing.like.it]", "prune_50", "prune.skip"),
    ("prune.pattern='12:24'", "prune_12of24", "prune.pattern"),
    ("quantize=w8a8,quantize.skip=[nothing.like.it]", "quantize", "quantize.skip"),
    ("quantize=w8a8,quantize.skip_sensitive=14", "quantize", "quantize.skip_sensitive"),
    (f"benchmark=torch,benchmark.prompt_tokens={BEYOND}", "benchmark", "benchmark.prompt_tokens"),
]


@pytest.fixture(scope="module")
def stored(sources, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The model and the data are there."""
    place = Place(sources, tmp_path_factory.mktemp("stored"))
    place.run(*SMALL, "until=data")
    place.run(*SMALL, "until=model")
    return place


@pytest.mark.parametrize(("overrides", "node", "option"), WRONG)
def test_a_dry_run_knows_what_the_records_tell(stored: Place, overrides: str, node: str, option: str) -> None:
    resolved = config_of(*stored.options, *SMALL, *overrides.split(","))
    problems = early_problems(make_plan(resolved, build(resolved), Stores.of(resolved)), resolved.device)
    assert problems[node].option == option
    assert "\n" not in str(problems[node])


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (["evaluate=gsm"], "evaluate.tasks"),
        (["evaluate.tasks=[{name: no_such_task, include: packaged}]"], "evaluate.tasks"),
        (["evaluate.tasks=[{name: no_such_task_anywhere}]"], "evaluate.tasks"),
        (["evaluate=bleu"], "evaluate.generation"),
        (["data=translation", "model=t5"], "evaluate.perplexity"),
        (["data=translation", "model=t5", "evaluate=bleu", "evaluate.generation.tokenize=ja-mecab"],
         "evaluate.generation.tokenize"),
        (["data=qa", "calibrate.draw=documents"], "calibrate.draw"),
        (["benchmark.beams=4"], "benchmark.beams"),
        (["schedule=cubic", "schedule.update_every=81"], "schedule.update_every"),
        (["distill.skip_first=256"], "distill.skip_first"),
        (["data=speech", "model=whisper", "evaluate=wer", "data.speech.window=clip", "finetune.teacher_cache_gb=1"],
         "finetune.teacher_cache_gb"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused_before_any_download(overrides: list[str], option: str) -> None:
    with pytest.raises(UserError) as caught:
        build(config_of(*overrides, "model.path=owner/not_here", "data.path=owner/not_here"))
    assert caught.value.option == option
    assert "\n" not in str(caught.value)


def test_what_is_forced_and_left_out_is_refused(stored: Place) -> None:
    resolved = config_of(*stored.options, *SMALL, "until=calibrate", "force=[evaluate]")
    with pytest.raises(UserError, match="until=calibrate leaves out evaluate"):
        make_plan(resolved, build(resolved), Stores.of(resolved))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("built_with", ["cuda: Optional[str] = None", "cuda: Optional[str] = '12.8'", None])
def test_a_dry_run_knows_that_there_is_no_gpu(
    stored: Place, built_with: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if built_with:
        (tmp_path / "version.py").write_text(f"{built_with}\nhip: Optional[str] = None\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    monkeypatch.setattr(gpu, "DRIVER", tmp_path)
    for until, refused in (("", {"dense"}), ("until=data", set())):
        resolved = config_of(*stored.options, *SMALL, "device=cuda", *filter(None, [until]))
        found = early_problems(make_plan(resolved, build(resolved), Stores.of(resolved)), resolved.device)
        assert set(found) == refused
        assert {error.option for error in found.values()} <= {"device"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_without_a_gpu_brings_in_no_model(place: Place) -> None:
    outcomes = place.run(*SMALL, "device=cuda")
    assert {outcome.status for outcome in outcomes.values()} == {"failed", "not run"}
    assert outcomes["dense"].error.startswith("device: ")


@pytest.mark.parametrize(("overrides", "node", "option"), WRONG)
def test_a_run_stops_before_any_work(stored: Place, overrides: str, node: str, option: str) -> None:
    outcomes = stored.run(*SMALL, *overrides.split(","))
    assert outcomes[node].status == "failed"
    assert outcomes[node].error.startswith(option)
    assert {outcome.status for outcome in outcomes.values()} == {"hit", "failed", "not run"}
    assert "dense" not in {outcome.stage for outcome in outcomes.values() if outcome.status == "done"}


@pytest.mark.parametrize(
    ("override", "node", "option"),
    [
        # fewer bytes than that would be needed, so that only counting tokens tells
        ("calibrate.samples=60", "calibrate", "calibrate.samples"),
        ("evaluate.perplexity.windows=60", "dense_eval", "evaluate.perplexity.windows"),
        ("finetune.sequence_length=320", "finetune_50", "finetune.sequence_length"),
    ],
)
def test_a_run_counts_rows_before_any_work(place: Place, override: str, node: str, option: str) -> None:
    tiny.save_texts(place.folder / "few", train=60, others=4)
    outcomes = place.run(*SMALL, f"data.path={place.folder / 'few'}", override)
    assert outcomes[node].error.startswith(option)
    assert {name for name, outcome in outcomes.items() if outcome.status == "done"} == {"model", "data"}


def test_a_plan_that_is_right_has_no_problems(stored: Place) -> None:
    resolved = config_of(*stored.options, *SMALL)
    plan = make_plan(resolved, build(resolved), Stores.of(resolved))
    assert early_problems(plan, "cpu") == {}
    assert shortages(plan, {}, resolved, Stores.of(resolved)) == []


def test_too_little_memory_and_disk_are_known(stored: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = config_of(*stored.options, *SMALL)
    stores = Stores.of(resolved)
    plan = make_plan(resolved, build(resolved), stores)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 10**6}))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    found = shortages(plan, {}, resolved, stores)
    assert [error.option for error in found] == ["model.path", "runs"]
    assert "this machine has 1 MB of memory, " in found[0].message


def test_a_gpu_must_hold_what_is_computed_on_it(stored: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = config(*stored.options, *SMALL, "device=cuda")
    plan = make_plan(resolved, build(resolved), Stores.of(resolved))
    known: list[float | None] = [80e9, None, 1e6]
    monkeypatch.setattr(gpu, "memory_bytes", lambda: known.pop(0))
    assert shortages(plan, {}, resolved, Stores.of(resolved)) == []
    assert shortages(plan, {}, resolved, Stores.of(resolved)) == [], "nobody knows how much it has"
    (found,) = shortages(plan, {}, resolved, Stores.of(resolved))
    assert found.option == "model.path"
    assert "this GPU has 1 MB of memory, finetune_50 needs about " in found.message
    assert "less with model.dtype=bfloat16, finetune.bf16_updates=" in found.message


def test_a_failed_baseline_stops_the_training_that_nobody_could_judge(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise UserError("on purpose", "evaluate")

    monkeypatch.setattr("stages.evaluate.run.run", fail)
    outcomes = place.run(*SMALL)
    assert outcomes["dense_eval"].status == "failed"
    assert [outcomes[node].status for node in ("calibrate", "prune_50", "finetune_50")] == ["not run"] * 3
    assert "dense_eval failed" in outcomes["calibrate"].error


def test_reasons_why_a_model_cannot_be_trained_are_told_by_the_record(tmp_path: Path) -> None:
    known = {"linears": {"a": (4, 4)}, "left_alone": {}, "block_weights": 16, "prunable_weights": 16, "context": None}
    training = config("model.path=x").finetune
    for what, option in (("training", "model.path"), ("squarehead", "distill.squarehead")):
        structure = Structure(**known, vocabulary=8, refused={what: "because"})
        slice_ = FinetuneOptions(training=training, distill=config("model.path=x", "distill=squarehead").distill)
        with pytest.raises(UserError, match="because") as caught:
            STAGES["finetune"].check_early(slice_, structure, None)
        assert caught.value.option == option


@pytest.mark.parametrize("kind", ["text", "qa", "translation", "speech"])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_split_that_is_not_there_is_named_for_every_kind_of_data(kind: str, prepared: bool, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"facts": {"format": kind, "digest": "d"}, "metrics": {}}))
    for split in ("train", "test"):
        if prepared:
            (tmp_path / split).mkdir()
        else:
            (tmp_path / f"{split}.jsonl").write_text("{}")
    data = (Examples if prepared else Corpus)(tmp_path, "data")
    structure = Structure(
        linears={}, left_alone={}, block_weights=1, prunable_weights=1, context=None, vocabulary=8, refused={}
    )
    asked = config("model.path=x").calibrate.model_copy(update={"samples": 1, "length": 2})
    STAGES["calibrate"].check_early(asked, structure, data)
    with pytest.raises(UserError, match="no split 'dev' in this data; it has: test, train") as caught:
        STAGES["calibrate"].check_early(asked.model_copy(update={"split": "dev"}), structure, data)
    assert caught.value.option == "calibrate.split"
    scored = Generation(
        split="dev",
        limit=0,
        beams=1,
        length_penalty=1.0,
        max_new_tokens=8,
        normalizer="none",
        full_window=False,
        bootstrap=100,
        seed=0,
    )
    judge = EvaluateOptions(perplexity=None, generation=scored, tasks=[], batch_size=1, runtime="torch")
    with pytest.raises(UserError, match="no split 'dev'") as caught:
        STAGES["evaluate"].check_early(judge, structure, data)
    assert caught.value.option == "evaluate.generation.split"


def test_without_the_data_nothing_is_checked_against_them(place: Place, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for split in ("train", "validation", "test"):
        (broken / f"{split}.jsonl").write_text("{no json\n")
    found = place.run(*SMALL, f"data.path={broken}")
    assert found["data"].status == "failed"
    assert (found["dense"].status, found["dense"].error) == ("not run", "needs data")
