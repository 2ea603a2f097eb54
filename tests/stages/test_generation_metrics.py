"""Texts that encoder-decoders write: how they are written, kept, scored and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import sacrebleu
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from stages import families, json_lines
from stages.contracts import Artifact, Checkpoint, Corpus, Examples, Metrics, UserError
from stages.evaluate import compare, generation
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions, Generation
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.scratch import run as scratch
from stages.scratch.spec import Scratch, ScratchOptions
from tests import tiny
from tests.recording import RecordingLog
from tests.running_stages import stage_output
from tests.stage_options import generating
from tests.tiny_pairs import LABEL

# ---- the stage ----


def test_items_are_counted_before_anything_is_decoded() -> None:
    pieces = datasets.Dataset.from_dict({"piece": [0, 1, 0, 0, 1]})
    assert generation.chosen_items(Generation.model_validate(generating(limit=2)), pieces) == [[0, 1], [2]]
    with pytest.raises(UserError, match="has 3 items, not 4") as caught:
        generation.chosen_items(Generation.model_validate(generating(limit=4)), pieces)
    assert caught.value.option == "evaluate.generation.limit"


PREFIX = "translate: "
SIZES: dict[str, int | float | str | bool] = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
}  # fmt: skip


def random_t5(corpus: Corpus, folder: Path, seed: int) -> Checkpoint:
    folder.mkdir()
    log = RecordingLog(folder.parent / f"{folder.name}-resume")
    described = Scratch(label=LABEL, vocabulary=64, settings=SIZES, seed=seed)
    scratch.run(ScratchOptions(family="t5", dtype="float32", scratch=described), {"data": corpus}, folder, log)
    return Checkpoint(stage_output(folder, log), folder.name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, (split, count) in enumerate((("train", 60), ("test", 7))):
        rows = [
            {"id": f"{split}-{i}", "source": PREFIX + text[: 20 + 9 * i], "target": text[: 9 + 5 * i]}
            for i, text in enumerate(tiny.sentences(count, seed))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(
        json.dumps({"facts": {"format": "translation", "digest": "pairs"}, "metrics": {}})
    )
    return Corpus(folder, "corpus")


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_t5(corpus, tmp_path_factory.mktemp("t5") / "model", seed=0)


@pytest.fixture(scope="module")
def examples(corpus: Corpus, model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    log = RecordingLog(folder.parent / "examples-resume")
    prepare.run(PrepareOptions(), {"model": model, "data": corpus}, folder, log)
    return Examples(stage_output(folder, log), "examples")


PIECES = {"a": [0.6], "b": [0.9, 0.9, 0.3], "c": [0.2], "d": [0.5], "e": [0.4]}
"""Clip -> seconds of the pieces it was cut into."""
MELS, WINDOW_FRAMES = 8, 100


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random Whisper whose windows are a second long."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=tiny.VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=MELS, max_target_positions=32,
        max_source_positions=WINDOW_FRAMES // 2, decoder_start_token_id=5, eos_token_id=0, pad_token_id=0,
        bos_token_id=0, init_std=1.0,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=5, eos_token_id=0, pad_token_id=0, no_timestamps_token_id=6
    )
    model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return Checkpoint(folder, "whisper")


def heard(folder: Path, window: str, pieces: bool = True) -> Examples:
    """Noise, in clips or in windows. pieces=False: each piece is a clip of its own."""
    noise = np.random.default_rng(0)
    rows = [
        {
            "input_features": noise.normal(size=round(100 * seconds) * MELS).astype(np.float32),
            "frames": round(100 * seconds), "labels": [6, 9, 0], "size": round(100 * seconds) + 3,
            "reference": f"the river {clip}" if i == 0 or not pieces else "", "id": clip,
            "piece": i if pieces else 0, "seconds": seconds,
        }
        for clip, lengths in PIECES.items() for i, seconds in enumerate(lengths)
    ]  # fmt: skip
    datasets.Dataset.from_list(rows, features=families.get("whisper").columns()).save_to_disk(folder / "test")
    speech = {"language": "en", "task": "transcribe", "timestamps": False, "window": window}
    facts = {"format": "speech", "digest": "noise", "prompt": [5, 6], "speech": speech}
    (folder / "meta.json").write_text(json.dumps({"facts": facts, "metrics": {}}))
    return Examples(folder, folder.name)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return heard(tmp_path_factory.mktemp("clips"), "clip")


def evaluated(
    tmp_path: Path, inputs: dict[str, Artifact], name: str = "out", batch_size: int = 3, perplexity: object = None,
    **changes: object,
) -> tuple[dict[str, float], Metrics, RecordingLog]:  # fmt: skip
    slice_ = EvaluateOptions.model_validate(
        {
            "perplexity": perplexity, "generation": generating(**changes), "tasks": [], "batch_size": batch_size,
            "runtime": "torch",
        }
    )  # fmt: skip
    out, log = tmp_path / name, RecordingLog(tmp_path / "resume")
    out.mkdir()
    return evaluate.run(slice_, inputs, out, log), Metrics(out, name), log


def hypotheses(metrics: Metrics) -> list[dict[str, Any]]:
    return list(json_lines.read(metrics.path / "hypotheses.jsonl"))


def test_translations_are_written_scored_and_kept(
    model: Checkpoint, corpus: Corpus, examples: Examples, tmp_path: Path
) -> None:
    summary, metrics, log = evaluated(tmp_path, {"model": model, "data": examples}, beams=2, length_penalty=0.6)
    rows = hypotheses(metrics)
    texts, references = [row["hypothesis"] for row in rows], [row["reference"] for row in rows]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(7)]
    assert references == [row["target"] for row in json_lines.read(corpus.split("test"))]
    assert summary["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert summary["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert summary["chrf_stderr"] > 0
    protocol = metrics.values()["bleu"]["protocol"]
    assert protocol["signature"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert protocol | {
        "kind": "sacrebleu bleu", "split": "test", "items": 7, "beams": 2, "length_penalty": 0.6, "max_new_tokens": 6,
        "early_stopping": False, "higher_is_better": True, "bootstrap": 100, "bootstrap_seed": 0,
        "data_digest": "pairs", "precision": "fp32",
    } == protocol  # fmt: skip
    low, high = metrics.values()["chrf"]["protocol"]["interval"]
    assert low < high
    assert log.found["generation"]["tokens_per_second"] > 0
    assert log.bars == ["decode test"]


def test_texts_do_not_depend_on_the_batch_and_are_those_of_each_sentence_alone(
    model: Checkpoint, examples: Examples, tmp_path: Path
) -> None:
    inputs: dict[str, Artifact] = {"model": model, "data": examples}
    found = [hypotheses(evaluated(tmp_path, inputs, f"by-{size}", batch_size=size, beams=2)[1]) for size in (1, 3, 7)]
    assert found[0] == found[1] == found[2]
    assert len({row["hypothesis"] for row in found[0]}) > 1


def test_a_limit_takes_the_first_items(model: Checkpoint, examples: Examples, tmp_path: Path) -> None:
    inputs: dict[str, Artifact] = {"model": model, "data": examples}
    _, metrics, _ = evaluated(tmp_path, inputs, limit=2)
    assert [row["id"] for row in hypotheses(metrics)] == ["test-0", "test-1"]
    assert metrics.values()["bleu"]["protocol"]["items"] == 2
    with pytest.raises(UserError, match="7 items, not 8") as caught:
        evaluated(tmp_path, inputs, "more", limit=8)
    assert caught.value.option == "evaluate.generation.limit"


def test_pieces_of_a_clip_are_one_text(whisper: Checkpoint, clips: Examples, tmp_path: Path) -> None:
    """And one item of the bootstrap; errors and real-time factor are of whole clips."""
    summary, metrics, log = evaluated(tmp_path, {"model": whisper, "data": clips})
    rows = hypotheses(metrics)
    assert [row["id"] for row in rows] == list(PIECES)
    alone = heard(tmp_path / "alone", "clip", pieces=False)
    parts = hypotheses(evaluated(tmp_path, {"model": whisper, "data": alone}, "out-alone")[1])[1:4]
    assert rows[1]["hypothesis"] == " ".join(part["hypothesis"] for part in parts if part["hypothesis"])
    assert rows[1]["tokens"] == sum(part["tokens"] for part in parts)
    assert rows[1]["reference"] == "the river b"
    whole = 100 * sum(row["errors"] for row in rows) / sum(row["words"] for row in rows)
    assert summary["wer"] == pytest.approx(whole)
    assert sum(summary[f"wer_{kind}"] for kind in ("substitutions", "deletions", "insertions")) == pytest.approx(whole)
    protocol = metrics.values()["wer"]["protocol"]
    assert (protocol["items"], protocol["reference_words"], protocol["normalizer"]) == (5, 15, "none")
    assert protocol["higher_is_better"] is False
    speed = log.found["generation"]
    assert speed["real_time_factor"] == pytest.approx(speed["seconds"] / 3.8)


def test_clips_are_heard_in_full_windows_as_well(whisper: Checkpoint, clips: Examples, tmp_path: Path) -> None:
    summary, metrics, _ = evaluated(tmp_path, {"model": whisper, "data": clips}, full_window=True)
    whole, whole_metrics, _ = evaluated(tmp_path, {"model": whisper, "data": heard(tmp_path / "w", "full")}, "whole")
    texts = metrics.path / "hypotheses_full_window.jsonl"
    assert texts.read_text() == (whole_metrics.path / "hypotheses.jsonl").read_text()
    assert texts.read_text() != (metrics.path / "hypotheses.jsonl").read_text()
    for name in ("wer", "cer", "wer_insertions"):
        assert summary[f"{name}_full_window"] == whole[name]
    windows = [metrics.values()[name]["protocol"]["speech"]["window"] for name in ("wer", "wer_full_window")]
    assert windows == ["clip", "full"]


def changed(source: Checkpoint, folder: Path, name: str, value: float) -> Checkpoint:
    """The model with one tensor at one value: with all its embeddings, so are its logits."""
    folder.mkdir()
    for file in source.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(folder, folder.name)


def test_empty_texts_are_scored_and_the_cut_off_counted(
    model: Checkpoint, whisper: Checkpoint, examples: Examples, clips: Examples, tmp_path: Path
) -> None:
    silent = changed(model, tmp_path / "silent", "shared.weight", 0.0)  # of equal logits the first is padding's
    summary, metrics, _ = evaluated(tmp_path, {"model": silent, "data": examples})
    assert {row["hypothesis"] for row in hypotheses(metrics)} == {""}
    assert (summary["bleu"], summary["chrf"]) == (0.0, 0.0)
    assert metrics.values()["bleu"]["protocol"]["cut_off"] == 7
    mute = changed(whisper, tmp_path / "mute", "model.decoder.embed_tokens.weight", 0.0)  # here the end's
    summary, metrics, _ = evaluated(tmp_path, {"model": mute, "data": clips}, "heard")
    assert [summary[name] for name in ("wer", "wer_deletions", "wer_insertions", "cer")] == [100.0, 100.0, 0.0, 100.0]
    assert metrics.values()["wer"]["protocol"]["cut_off"] == 0


def test_a_broken_model_is_an_error_and_not_a_text(model: Checkpoint, examples: Examples, tmp_path: Path) -> None:
    broken = changed(model, tmp_path / "broken", "shared.weight", float("nan"))
    with pytest.raises(UserError, match="broken") as caught:
        evaluated(tmp_path, {"model": broken, "data": examples})
    assert caught.value.option == "evaluate.generation"
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_recovery_of_wer_is_that_of_a_score_to_be_low(whisper: Checkpoint, clips: Examples, tmp_path: Path) -> None:
    _, baseline, _ = evaluated(tmp_path, {"model": whisper, "data": clips}, "dense")
    mute = changed(whisper, tmp_path / "mute", "model.decoder.embed_tokens.weight", 0.0)
    summary, _, _ = evaluated(tmp_path, {"model": mute, "data": clips, "baseline": baseline})
    assert summary["wer_recovery"] == pytest.approx(100 * baseline.values()["wer"]["value"] / summary["wer"])


def test_what_a_family_or_its_data_cannot_have_is_refused(
    model: Checkpoint, whisper: Checkpoint, examples: Examples, clips: Examples, corpus: Corpus, tmp_path: Path
) -> None:
    causal = Checkpoint(tiny.save_model(tmp_path / "causal"), "causal")
    hindi = Examples(tmp_path / "hindi", "hindi")
    hindi.path.mkdir()
    meta = json.loads((clips.path / "meta.json").read_text())
    meta["facts"]["speech"]["language"] = "hi"
    (hindi.path / "meta.json").write_text(json.dumps(meta))
    perplexity = {"split": "test", "length": 8, "windows": 0}
    cases: list[tuple[str, Checkpoint, Artifact, dict[str, Any]]] = [
        ("evaluate.generation", causal, corpus, {}),
        ("evaluate.perplexity", model, examples, {"perplexity": perplexity}),
        ("evaluate.generation.normalizer", model, examples, {"normalizer": "basic"}),
        ("evaluate.generation.normalizer", whisper, hindi, {"normalizer": "english"}),
        ("evaluate.generation.full_window", whisper, heard(tmp_path / "full", "full"), {"full_window": True}),
        ("evaluate.generation.max_new_tokens", whisper, clips, {"max_new_tokens": 31}),
        ("evaluate.generation.full_window", model, examples, {"full_window": True}),
        ("data", model, examples, {"split": "validation"}),
    ]
    for i, (option, source, data, changes) in enumerate(cases):
        with pytest.raises(UserError) as caught:
            evaluated(tmp_path, {"model": source, "data": data}, f"refused-{i}", **changes)
        assert caught.value.option == option
        assert "\n" not in str(caught.value)


# ---- comparison ----


def test_two_models_are_compared_on_the_same_items_only(
    model: Checkpoint, whisper: Checkpoint, corpus: Corpus, examples: Examples, clips: Examples, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mute = changed(whisper, tmp_path / "mute", "model.decoder.embed_tokens.weight", 0.0)
    other = random_t5(corpus, tmp_path / "other", seed=5)
    store = tmp_path / "runs" / "store" / "evaluate"
    store.mkdir(parents=True)
    _, a, _ = evaluated(store, {"model": whisper, "data": clips}, "a1b2", full_window=True)
    _, b, _ = evaluated(store, {"model": mute, "data": clips}, "b2c3", batch_size=5, full_window=True)
    evaluated(store, {"model": mute, "data": clips}, "c3d4", beams=2, full_window=True)
    evaluated(store, {"model": other, "data": examples}, "d4e5")
    evaluated(store, {"model": model, "data": examples}, "e5f6")
    found = {comparison.metric: comparison for comparison in compare.compare([a], [b], 1000, seed=0)}
    assert found.keys() == {"wer", "cer", "wer_full_window", "cer_full_window"}
    for name, comparison in found.items():
        assert (comparison.a, comparison.b) == (a.values()[name]["value"], b.values()[name]["value"])
        assert comparison.difference.value == pytest.approx(comparison.b - comparison.a)
    wer = found["wer"]

    def told(first: str, second: str) -> tuple[int, str]:
        capsys.readouterr()
        code = compare.main([first, second, "--runs", str(tmp_path / "runs"), "--samples", "1000"])
        said = capsys.readouterr()
        return code, said.out or said.err

    code, said = told("a1b2", str(b.path))
    assert code == 0
    assert f"A {wer.a:.2f}   B {wer.b:.2f}   B - A {wer.difference.value:+.2f}" in said
    assert told("d4e5", "e5f6")[0] == 0
    code, said = told("a1b2,b2c3", "b2c3")
    assert code == 0
    assert f"A {(wer.a + wer.b) / 2:.2f}   B {wer.b:.2f}" in said
    assert "resamples of the items and of the seeds" in said
    assert told("a1b2", "c3d4") == (2, "wer was measured in two ways: beams is 1 and 2\n")
    code, said = told("a1b2", "d4e5")
    assert code == 2
    assert "only one of them has" in said
    assert told("a1b2", "nothing")[0] == 2
    rows = hypotheses(b)
    (b.path / "hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    assert told("a1b2", "b2c3") == (2, "they were evaluated on other items\n")
