"""The benchmark of encoder-decoders: real examples one by one, equal work for all, and what was left out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from rich.console import Console

from engine import cpu
from engine.bench import decoding
from engine.bench.weight_bytes import bytes_per_token
from pipeline.table import show_rows
from stages import checkpoints, families
from stages.benchmark import rounds, torch_backends, workloads
from stages.benchmark import run as benchmark
from stages.benchmark.backends import BACKENDS
from stages.benchmark.workloads import Sample, Workload
from stages.contracts import Artifact, Checkpoint, Examples, UserError
from stages.families import encoder_decoder
from stages.quantize import run as quantize
from stages.quantize.spec import Quantize
from tests import tiny
from tests import tiny_encoder_decoders as tiny_models
from tests.recording import RecordingLog
from tests.running_stages import benchmarked
from tests.stage_options import BACKEND_NAMES, benchmarking

KINDS = ("t5", "whisper")
PEERS = [name for name in BACKENDS.names() if name.startswith(("onnxruntime", "deepsparse", "llamacpp"))]
LENGTHS = (2, 3, 5, 8, 13, 21)
"""Tokens of the references."""


def examples(kind: str, folder: Path) -> Examples:
    """Six examples, the longest first, and with Whisper a piece of a clip, whose words nobody knows."""
    draw = np.random.default_rng(0)
    prompt = tiny_models.prompt(kind)
    end = tiny_models.EOS if kind == "whisper" else 1
    rows: list[dict[str, Any]] = []
    for number, length in enumerate(reversed(LENGTHS)):
        labels = [*prompt[1:], *draw.integers(10, 99, length - 1).tolist(), end]
        row = {"labels": labels, "reference": "words", "id": f"id-{number}"}
        if kind == "t5":
            rows.append(row | {"input_ids": [*range(10, 10 + 2 * length), end], "size": 3 * length})
        else:
            rows.append(row | heard(4 * length, labels, draw))
    if kind == "whisper":
        cut = [*prompt[1:], end]
        rows.insert(0, {"labels": cut, "reference": "many", "id": "long"} | heard(60, cut, draw))
    datasets.Dataset.from_list(rows, features=families.get(kind).columns()).save_to_disk(folder / "test")  # type: ignore[attr-defined]
    speech = {"language": "en", "task": "transcribe", "timestamps": False, "window": "clip"}
    facts = {"format": "x", "digest": "d", "prompt": prompt, "speech": speech if kind == "whisper" else None}
    (folder / "meta.json").write_text(json.dumps({"facts": facts, "metrics": {}}))
    return Examples(folder, "examples")


def heard(frames: int, labels: list[int], draw: np.random.Generator) -> dict[str, Any]:
    mel = draw.normal(size=frames * tiny_models.MELS).astype(np.float32)
    size = frames + len(labels)
    return {"input_features": mel, "frames": frames, "size": size, "piece": 0, "seconds": frames / 100}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Artifact]]:
    """A kind, and its dense and sparse tiny models, each with its quantized form, and examples."""
    kind, folder = request.param, tmp_path_factory.mktemp("inputs")
    tiny_models.build(kind).save_pretrained(folder / "dense")
    tiny.save_tokenizer(folder / "dense")
    dense = Checkpoint(folder / "dense", "dense")
    sparse = tiny_models.pruned(kind)
    (folder / "sparse").mkdir()
    checkpoints.save(sparse, dense, tiny_models.zeros(kind, sparse), folder / "sparse")
    found: dict[str, Artifact] = {"dense": dense, "sparse": Checkpoint(folder / "sparse", "sparse")}
    rounding = Quantize(scheme="w8a8", smooth=0, skip=[], skip_sensitive=0, dense=True)
    for role, source in (("quantized", "sparse"), ("quantized_dense", "dense")):
        (folder / role).mkdir()
        quantize.run(rounding, {"model": found[source]}, folder / role, RecordingLog(folder / "resume"))
        found[role] = Checkpoint(folder / role, role)
    return kind, found | {"data": examples(kind, folder / "examples")}


def test_every_backend_runs_the_same_examples(model: tuple[str, dict[str, Artifact]], tmp_path: Path) -> None:
    kind, inputs = model
    summary, result, _ = benchmarked(
        tmp_path, inputs, benchmarking(backends=[*BACKEND_NAMES, *PEERS], beams=2, rounds=1, warmup=0)
    )
    rows = {(row["backend"], row["model"]): row for row in result.rows()}
    measured = ["prefill_ms", "decode_tokens_per_second", "beam_tokens_per_second"]
    measured += ["real_time_factor"] * (kind == "whisper")
    for (backend, name), row in rows.items():
        if backend in PEERS or (backend, name) == ("torch_csr", "dense"):
            assert row["status"] == "n/a"
            assert backend == "torch_csr" or f"no encoder-decoder ({kind})" in row["reason"]
            continue
        if backend == "torch_bf16" and not cpu.has_bf16():
            assert row["reason"] == "this CPU has no bf16 instructions"
            continue
        assert row["status"] == "ok", row
        for key in measured:
            assert len(row[f"{key}_rounds"]) == 1
            assert 0 < row[f"{key}_min"] <= row[key] <= row[f"{key}_max"]
            assert summary[f"{backend}.{name}.{key}"] == row[key]
        assert ("real_time_factor" in row) == (kind == "whisper")
        assert [len(ids) for ids in row["generated"]] == [4, 4, 4]
        fp32 = rows["torch_fp32", "dense"]
        assert row["prefill_speedup"]["torch_fp32_dense"] == pytest.approx(fp32["prefill_ms"] / row["prefill_ms"])
        assert (row["note"] is None) == (not backend.startswith("engine"))
    for backend in ("torch_csr", "engine_fp32"):
        assert rows[backend, "sparse"]["same_tokens"] == 1.0
    assert rows["engine_int8", "sparse"]["same_tokens"] == rows["squarehead_w8a8", "sparse"]["same_tokens"]
    assert rows["engine_fp32", "sparse"]["weight_bytes"] < rows["torch_fp32", "sparse"]["weight_bytes"]

    record = json.loads((result.path / "benchmark.json").read_text())
    assert record["protocol"]["workload"] == "3 examples of the test split"
    # of six sorted by size the 2nd, 4th and 6th; the piece is no candidate
    assert record["protocol"]["samples"] == ["id-4", "id-2", "id-0"]
    console = Console(width=300, record=True, file=(tmp_path / "shown").open("w"))
    show_rows(record, console)
    shown = " ".join(console.export_text().split())
    assert "3 examples of the test split" in shown
    assert ("real-time factor" in shown) == (kind == "whisper")


def test_without_beams_nothing_is_searched(model: tuple[str, dict[str, Artifact]], tmp_path: Path) -> None:
    _, inputs = model
    alone = {"dense": inputs["dense"], "data": inputs["data"]}
    summary, result, _ = benchmarked(tmp_path, alone, benchmarking(backends=["torch_fp32"], beams=1))
    assert not [key for row in (*result.rows(), summary) for key in row if "beam" in key]


def test_greedy_steps_equal_whole_forward_passes(model: tuple[str, dict[str, Artifact]]) -> None:
    _, inputs = model
    dense = inputs["dense"]
    assert isinstance(dense, Checkpoint)
    loaded = checkpoints.load(dense)
    workload = workloads.of(benchmarking(), dense, inputs["data"])  # type: ignore[arg-type]
    runner = torch_backends.torch_runner(loaded, dense)
    for sample in workload.samples:
        _, chosen = decoding.greedy(runner, sample, 6)
        ids = sample.ids_1T[0].tolist()
        for token in chosen:
            with torch.inference_mode():
                logits_V = loaded(**sample.encoder, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            assert int(logits_V.argmax()) == token
            ids.append(token)


def test_as_many_tokens_count_as_written_as_the_transcript_has(model: tuple[str, dict[str, Artifact]]) -> None:
    _, inputs = model
    dense, data = inputs["dense"], inputs["data"]
    assert isinstance(dense, Checkpoint)
    assert isinstance(data, Examples)
    workload = workloads.of(benchmarking(), dense, data)
    test = {row["id"]: row["labels"] for row in encoder_decoder.load(data, "test").with_format(None)}
    lengths = [len(test[name]) for name in workload.described["samples"]]
    assert [sample.written for sample in workload.samples] == [n - len(data.facts()["prompt"]) + 1 for n in lengths]


def test_a_step_reads_the_decoder_without_keys_and_values_of_the_encoder() -> None:
    t5, whisper = tiny_models.build("t5"), tiny_models.build("whisper")
    head, attention, mlp, norm = 4 * tiny.VOCABULARY * 32, 4 * 32 * 32, 4 * 32 * 48, 4 * 32
    assert bytes_per_token(t5) == head + 2 * (6 * attention + 2 * mlp + 3 * norm) + norm
    # q, v and out have biases, k has none; norms have two vectors; cross-attention is q and out
    biases = (3 + 2) * norm + 4 * 48 + norm
    assert bytes_per_token(whisper) == head + 2 * (6 * attention + 2 * mlp + biases + 6 * norm) + 2 * norm


class Clock:
    """Time as the runner below makes it pass."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowRunner:
    """10 s for each prompt, 1 s for each step, 100 s for a search."""

    weight_bytes = note = process = None

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def prefill(self, sample: Sample) -> int:
        self.clock.now += 10
        return 7

    def decode(self, token: int) -> int:
        self.clock.now += 1
        return token + 1

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        self.clock.now += 100


def test_a_round_is_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (rounds, decoding):
        monkeypatch.setattr(module, "time", clock)
    ids_1T = torch.tensor([[1]])
    clips = [Sample(ids_1T, {}, written=6, audio_seconds=4.0), Sample(ids_1T, {}, written=2, audio_seconds=6.0)]
    found = rounds.measure(SlowRunner(clock), Workload(clips, new_tokens=3, beams=4, described={}))
    assert found.prefill_ms == 10_000
    assert found.decode_tokens_per_second == 1
    # six tokens are a prompt and five steps, two tokens a prompt and one
    assert found.real_time_factor == pytest.approx((15 + 11) / (4 + 6))
    assert found.beam_tokens_per_second == pytest.approx(2 * 3 / 200)
    assert found.generated == [[7, 8, 9, 10]] * 2
    texts = [Sample(ids_1T, {}, written=6)]
    silent = rounds.measure(SlowRunner(clock), Workload(texts, new_tokens=3, beams=0, described={}))
    assert (silent.real_time_factor, silent.beam_tokens_per_second) == (None, None)


def test_samples_are_the_middles_of_equal_parts() -> None:
    size_N = torch.tensor([9, 1, 8, 2, 7, 3, 6, 4])
    assert size_N[workloads.evenly(size_N, 4)].tolist() == [2, 4, 7, 9]
    assert size_N[workloads.evenly(size_N, 1)].tolist() == [6]
    assert sorted(workloads.evenly(size_N, 8).tolist()) == list(range(8))


def test_what_the_data_or_the_context_do_not_have_is_refused(model: tuple[str, dict[str, Artifact]]) -> None:
    kind, inputs = model

    def refused(**changes: object) -> str | None:
        try:
            workloads.of(benchmarking(**changes), inputs["dense"], inputs["data"])  # type: ignore[arg-type]
        except UserError as error:
            return error.option
        return None

    with pytest.raises(UserError, match="examples with a text"):  # before anything is trained
        benchmark.check(benchmarking(samples=len(LENGTHS) + 1), inputs["dense"], inputs["data"])  # type: ignore[arg-type]
    assert refused(samples=len(LENGTHS)) is None
    assert refused(samples=len(LENGTHS) + 1) == "benchmark.samples"
    # with the two tokens of its prompt; T5's positions have no end
    longest = tiny_models.TARGET_POSITIONS - 2
    assert refused(new_tokens=longest) is None
    assert refused(new_tokens=longest + 1) == ("benchmark.new_tokens" if kind == "whisper" else None)
