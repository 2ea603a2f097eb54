"""The rows of a benchmark: what each holds, what could not run and why, and in which order they ran."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from engine import cpu
from engine.bench import decoding
from engine.bench.decoding import Prompt
from engine.bench.weight_bytes import bytes_per_token
from stages import checkpoints, families, masks
from stages.benchmark import rounds, torch_backends
from stages.benchmark.backends import BACKENDS
from stages.benchmark.early import check_early
from stages.contracts import Artifact, Checkpoint, Corpus, Structure, UserError
from stages.quantize import run as quantize
from stages.quantize.spec import Quantize
from tests import tiny
from tests.recording import RecordingLog
from tests.running_stages import benchmarked
from tests.stage_options import BACKEND_NAMES, benchmarking
from tests.tiny import text_data

INT8 = ["squarehead_w8a8", "engine_int8", "engine_int8_head"]


@pytest.mark.parametrize(
    ("rows", "changed", "option"),
    [
        ("text", {"prompt_tokens": 400}, "benchmark.prompt_tokens"),
        ("text", {"prompt_tokens": 90}, "benchmark.prompt_tokens"),
        ("qa", {"prompt_tokens": 400}, "benchmark.prompt_tokens"),
        ("speech", {"prompt_tokens": 400}, ""),
        ("translation", {"prompt_tokens": 400}, ""),
        ("text", {}, ""),
    ],
)
def test_what_the_records_tell_is_refused_early(
    rows: str, changed: dict[str, object], option: str, tmp_path: Path
) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"facts": {"format": rows, "digest": "d"}}))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "x" * 50, "id": "1"}) + "\n")
    model = Structure({}, {}, 1, 1, context=320, vocabulary=320, refused={})
    try:
        check_early(benchmarking(**changed), model, Corpus(tmp_path, "data"))
        found = ""
    except UserError as error:
        found = error.option
    assert found == option


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A dense and a sparse tiny model, each with its quantized form, and texts."""
    folder = tmp_path_factory.mktemp("inputs")
    dense = Checkpoint(tiny.save_model(folder / "dense"), "dense")
    model = checkpoints.load(dense)
    torch.manual_seed(0)
    prunable = families.get("causal_lm").prunable(model)
    pruned = {name: torch.rand(linear.weight.shape) < 0.5 for name, linear in prunable.items()}
    masks.apply_(model, pruned)
    (folder / "sparse").mkdir()
    checkpoints.save(model, dense, pruned, folder / "sparse")
    found: dict[str, Artifact] = {"dense": dense, "sparse": Checkpoint(folder / "sparse", "sparse")}
    rounding = Quantize(scheme="w8a8", smooth=0, skip=[], skip_sensitive=0, dense=True)
    for role, source in (("quantized", "sparse"), ("quantized_dense", "dense")):
        (folder / role).mkdir()
        quantize.run(rounding, {"model": found[source]}, folder / role, RecordingLog(folder / "resume"))
        found[role] = Checkpoint(folder / role, role)
    return found | {"data": text_data(folder / "texts")}


def test_every_row_states_what_was_measured(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    summary, result, log = benchmarked(tmp_path, inputs, benchmarking())
    rows = {(row["backend"], row["model"]): row for row in result.rows()}
    assert rows.keys() == {(backend, model) for backend in BACKEND_NAMES for model in ("dense", "sparse")}
    for (backend, model), row in rows.items():
        assert (row["threads"], row["cpu"], row["instructions"]) == (1, cpu.model(), cpu.instructions())
        if row["status"] != "ok":
            continue
        assert row["prefill_ms_min"] <= row["prefill_ms"] <= row["prefill_ms_max"]
        assert len(row["prefill_ms_rounds"]) == len(row["decode_tokens_per_second_rounds"]) == 2
        rate = row["decode_tokens_per_second"]
        assert row["gigabytes_per_second"] == pytest.approx(row["weight_bytes"] * rate / 1e9)
        fp32 = rows["torch_fp32", "dense"]["decode_tokens_per_second"]
        best = max(r["decode_tokens_per_second"] for r in rows.values() if r["model"] == "dense" and "generated" in r)
        assert row["decode_speedup"]["torch_fp32_dense"] == pytest.approx(rate / fp32)
        assert row["decode_speedup"]["best_dense"] == pytest.approx(rate / best)
        assert rows[row["decode_best_dense"], "dense"]["decode_tokens_per_second"] == best
        if backend != "torch_csr":
            same = rows[backend, "dense"]
            assert row["prefill_speedup"]["same_backend_dense"] == pytest.approx(same["prefill_ms"] / row["prefill_ms"])
        assert [len(ids) for ids in row["generated"]] == [4]
        assert row["disk_bytes"] > 0
        assert summary[f"{backend}.{model}.decode_tokens_per_second"] == rate
    assert rows["torch_fp32", "sparse"]["same_tokens"] == rows["torch_csr", "sparse"]["same_tokens"] == 1.0
    assert rows["torch_csr", "sparse"]["decode_speedup"]["same_backend_dense"] is None
    assert rows["engine_fp32", "sparse"]["same_tokens"] == rows["engine_fp32", "dense"]["same_tokens"] == 1.0
    assert rows["engine_fp32", "sparse"]["weight_bytes"] < 0.8 * rows["engine_fp32", "dense"]["weight_bytes"]
    assert log.bars == ["load", "benchmark"]


def test_what_cannot_run_says_why(inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)
    without = {role: artifact for role, artifact in inputs.items() if not role.startswith("quantized")}
    summary, result, _ = benchmarked(tmp_path, without, benchmarking())
    reasons = {(r["backend"], r["model"]): r["reason"] for r in result.rows() if r["status"] == "n/a"}
    assert reasons.keys() == {
        ("torch_bf16", "dense"), ("torch_bf16", "sparse"), ("torch_csr", "dense"),
        *[(name, model) for name in INT8 for model in ("dense", "sparse")],
    }  # fmt: skip
    assert "bf16" in reasons["torch_bf16", "dense"]
    assert "zeros" in reasons["torch_csr", "dense"]
    assert all("quantize.scheme" in reasons[name, "sparse"] for name in INT8)
    assert not any(name.startswith("torch_bf16") for name in summary)


def test_rounds_are_interleaved_and_warm_up_is_left_out(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    _, result, log = benchmarked(tmp_path, inputs, benchmarking(backends=["torch_fp32", "squarehead_w8a8"], warmup=2))
    once = ["torch_fp32.dense", "torch_fp32.sparse", "squarehead_w8a8.dense", "squarehead_w8a8.sparse"]
    assert json.loads((result.path / "benchmark.json").read_text())["order"] == once * 2
    assert [step for step, _ in log.points] == [0] * 4 + [1] * 4


def test_a_dense_model_alone_is_benchmarked(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    alone = {"dense": inputs["dense"], "data": inputs["data"]}
    _, result, _ = benchmarked(tmp_path, alone, benchmarking(backends=["torch_fp32"]))
    assert [(row["model"], row["status"]) for row in result.rows()] == [("dense", "ok")]


def test_threads_are_those_asked_for_and_given_back(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    measure = rounds.measure

    def spied(*args: object) -> object:
        seen.append(torch.get_num_threads())
        return measure(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds, "measure", spied)
    benchmarked(tmp_path, inputs, benchmarking(backends=["torch_fp32"], threads=before + 1))
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
    monkeypatch.setattr(rounds, "measure", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        benchmarked(tmp_path / "again", inputs, benchmarking(backends=["torch_fp32"], threads=before + 1))
    assert torch.get_num_threads() == before


def test_decoding_with_the_cache_equals_whole_forward_passes(inputs: dict[str, Artifact]) -> None:
    model = checkpoints.load(inputs["dense"])
    ids_1T = torch.arange(1, 9)[None]
    _, chosen = decoding.greedy(decoding.TransformersRunner(model), Prompt(ids_1T), 5)
    ids = ids_1T[0].tolist()
    for token in chosen:
        with torch.inference_mode():
            assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_weight_bytes_count_what_a_token_reads() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 6), nn.Linear(4, 10, bias=False))
    assert bytes_per_token(model) == 4 * (4 * 6 + 6 + 4 * 10)
    model[2].weight = model[0].weight
    assert bytes_per_token(model) == 4 * (4 * 6 + 6 + 4 * 10), "a tied head is read"
    linear = nn.Linear(4, 3, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 2, 3, 0], [0, 0, 0, 0]])
    with warnings.catch_warnings(action="ignore"):
        sparse = torch_backends.CsrLinear(linear)
    assert bytes_per_token(sparse) == 3 * 4 + 3 * 4 + 4 * 4
    for tokens in (1, 5):
        x_TI = torch.randn(tokens, 4)
        assert torch.allclose(sparse(x_TI), linear(x_TI), atol=1e-6)


def test_weight_bytes_count_every_dynamically_quantized_linear() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(12)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert bytes_per_token(packed) == 12 * 8 * 8


@pytest.mark.parametrize("kind", ["opt", "mpt"])
def test_other_architectures_run(kind: str, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    model = Checkpoint(tiny.save_model(tmp_path / kind, kind), kind)
    chosen = ["torch_fp32", "torch_bf16", "torch_int8"]
    summary, _, _ = benchmarked(tmp_path, {"dense": model, "data": inputs["data"]}, benchmarking(backends=chosen))
    assert summary["torch_int8.dense.decode_tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"backends": ["torch_fp32", "abacus"]}, "benchmark.backends"),
        ({"prompt_tokens": tiny.CONTEXT}, "benchmark.prompt_tokens"),
        ({"beams": 4}, "benchmark.beams"),
    ],
)
def test_impossible_benchmarks_are_refused(
    changes: dict[str, object], option: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        benchmarked(tmp_path, inputs, benchmarking(**changes))
    assert caught.value.option == option


def test_every_registered_backend_is_there() -> None:
    assert all(BACKENDS.get(name).weight_bytes for name in BACKENDS.names())
    assert set(BACKEND_NAMES) <= set(BACKENDS.names())
