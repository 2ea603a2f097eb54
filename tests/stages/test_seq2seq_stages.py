"""Encoder-decoders beside T5 through every stage, layers that must not be dropped, and runs that are resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
from engine.__main__ import main
from stages import checkpoints, families, json_lines, masks
from stages.calibrate import run as calibrate
from stages.contracts import Artifact, Calibration, Checkpoint, Corpus, DataSet, Examples, Stopped, UserError
from stages.dense import run as dense
from stages.dense.spec import DenseOptions
from stages.evaluate import run as evaluate
from stages.evaluate.spec import EvaluateOptions
from stages.families.encoder_decoder import Decoding
from stages.finetune import run as finetune
from stages.finetune.spec import FinetuneOptions
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.prune import run as prune
from stages.prune.spec import PruneOptions
from stages.quantize import run as quantize
from tests import tiny, tiny_seq2seq, tiny_whisper
from tests.recording import AskedToStop, RecordingLog
from tests.running_stages import assert_same_weights, ran, weights_of
from tests.stage_options import TASK, calibrating, distilling, generating, pruning, quantizing, training
from tests.tiny import change, text_data

LENGTH = {"sequence_length": 24}
"""Within the positions of these models."""


def prepared(kind: str, folder: Path) -> tuple[Checkpoint, DataSet]:
    """A model and data for it; of Whisper whole windows."""
    if kind == "opt":
        return Checkpoint(tiny.save_model(folder / "model", "opt"), "model"), text_data(folder / "data")
    if kind == "whisper":
        model = tiny_whisper.save(folder / "model")
        clips = {"train": [0.3, 0.5, 0.9] * 4, "validation": [0.4, 0.6], "test": [0.7, 0.3]}
        corpus: Corpus = tiny_whisper.save_corpus(folder / "corpus", clips, window="full")
    else:
        model = Checkpoint(tiny_seq2seq.save(kind, folder / "model"), "model")
        corpus = tiny_seq2seq.save_corpus(folder / "corpus", kind)
    made = ran(folder, prepare, PrepareOptions(), "examples", {"model": model, "data": corpus})[0]
    return model, Examples(made.path, "examples")


# ---- every stage ----


def test_a_translation_model_goes_through_every_stage(tmp_path: Path) -> None:
    model, data = prepared("mbart50", tmp_path)
    change(model.path / "generation_config.json", {"no_repeat_ngram_size": 2, "min_length": 3})
    before = weights_of(model)
    asked = DenseOptions(training=training(optimizer="adafactor", **LENGTH), distill=TASK)
    trained, _ = ran(tmp_path, dense, asked, "dense", {"model": model, "data": data})
    drawn = ran(tmp_path, calibrate, calibrating(length=24), "drawn", {"model": trained, "data": data})[0]
    calibration = Calibration(drawn.path, "calibration")
    given: dict[str, Artifact] = {"model": trained, "calibration": calibration}
    sparse, log = ran(tmp_path, prune, PruneOptions(prune=pruning(), sparsity=0.5), "sparse", given)
    assert log.found["metrics"]["prunable_share"] == 1
    mix = distilling(eps=1e-8, ce=0.5, kd=1, squarehead=1)
    tuning = FinetuneOptions(training=training(weight_decay=0, **LENGTH), distill=mix)
    tuned, _ = ran(tmp_path, finetune, tuning, "tuned", {"model": sparse, "data": data, "teacher": trained})
    assert masks.digest(masks.of(tuned)) == masks.digest(masks.of(sparse))
    int8, _ = ran(tmp_path, quantize, quantizing(smooth=0.5), "int8", {"model": tuned, "calibration": calibration})
    # the bias of the logits is no parameter: it stays as it was in every stage
    for made in (trained, sparse, tuned, int8):
        assert torch.equal(weights_of(made)["final_logits_bias"], before["final_logits_bias"])
    generation = generating(max_new_tokens=5, beams=2)
    judged = EvaluateOptions.model_validate(
        {"perplexity": None, "generation": generation, "tasks": [], "batch_size": 3, "runtime": "torch"}
    )
    for name, judge in (("tuned", tuned), ("int8", int8)):
        texts, told = ran(tmp_path, evaluate, judged, f"texts of {name}", {"model": judge, "data": data})
        assert {"bleu", "chrf"} <= told.found["metrics"].keys()
        protocol = json.loads((texts.path / "metrics.json").read_text())["bleu"]["protocol"]
        assert (protocol["no_repeat_ngram_size"], protocol["min_length"]) == (2, 3)
        lines = list(json_lines.read(texts.path / "hypotheses.jsonl"))
        assert len(lines) == 4
        assert not any("de_DE" in line["hypothesis"] for line in lines)
    assert main(["export", str(tuned.path), str(tmp_path / "engine"), "--dtype", "fp32"]) == 0
    family: Any = families.of(tuned.path)
    batch = family.rows(checkpoints.load(tuned), tuned.path, data, "test", 24, "option").take(torch.arange(4))
    decoding = Decoding(data.facts()["prompt"], 2, 1.0, 6)
    expected = family.generate(checkpoints.load(tuned), batch, decoding)
    assert family.generate(engine.load(tmp_path / "engine"), batch, decoding) == expected


# ---- layer drop ----

DROPPED = {"whisper": "encoder_layerdrop", "bart": "decoder_layerdrop", "m2m_100": "encoder_layerdrop",
           "opt": "layerdrop"}  # fmt: skip


@pytest.mark.parametrize("kind", DROPPED)
def test_training_drops_no_layers_whatever_the_loss(kind: str, tmp_path: Path) -> None:
    """With and without the setting a run makes the same weights."""
    model, data = prepared(kind, tmp_path)
    # M2M100 drops layers of both stacks where nothing is said
    zero = ("activation_dropout", "attention_dropout", "dropout", "encoder_layerdrop", "decoder_layerdrop")
    change(model.path / "config.json", dict.fromkeys(zero, 0.0))
    for loss, given in (("ce", {"ce": 1}), ("squarehead", {"ce": 1, "squarehead": 1})):
        made = []
        for dropped in (0.0, 0.7):
            change(model.path / "config.json", {DROPPED[kind]: dropped})
            asked = FinetuneOptions(training=training(steps=2, **LENGTH), distill=distilling(**given))
            inputs: dict[str, Artifact] = {"model": model, "data": data, "teacher": model}
            tuned, log = ran(tmp_path, finetune, asked, f"{loss} {dropped}", inputs)
            made.append(tuned)
            assert log.found.get("layer_drop_switched_off", 0) == dropped
            assert any("layer drop of 0.7 is switched off" in note for note in log.notes) == bool(dropped)
        assert_same_weights(*made)
        kept = json.loads((made[1].path / "config.json").read_text())
        assert kept[DROPPED[kind]] == 0.7


def test_states_of_a_model_that_drops_layers_are_refused(tmp_path: Path) -> None:
    model, data = prepared("bart", tmp_path)
    family: Any = families.of(model.path)
    loaded = family.load(model.path).train()
    loaded.model.decoder.layerdrop = 1.0
    batch = family.rows(loaded, model.path, data, "train", 24, "option").take(torch.arange(2))
    with pytest.raises(UserError, match=r"distill.squarehead: 2 of 5 blocks ran"):
        family.states(loaded, batch)


# ---- SpecAugment ----


def test_a_resumed_whisper_hears_what_it_would_have_heard(tmp_path: Path) -> None:
    model, data = prepared("whisper", tmp_path)
    change(model.path / "config.json", {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 4,
                                        "mask_feature_prob": 0.2, "mask_feature_length": 4})  # fmt: skip
    asked = FinetuneOptions(training=training(steps=6, checkpoint_every=4), distill=TASK)
    inputs: dict[str, Artifact] = {"model": model, "data": data}
    np.random.seed(1)
    whole, _ = ran(tmp_path, finetune, asked, "whole", inputs)
    plain, _ = ran(tmp_path, finetune, asked, "again", inputs)
    assert_same_weights(whole, plain)
    log, out = AskedToStop(tmp_path / "resume"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Stopped):
        finetune.run(asked, inputs, out, log)
    np.random.seed(7)
    finetune.run(asked, inputs, out, RecordingLog(log.resume))
    assert_same_weights(whole, Checkpoint(out, "resumed"))
    change(model.path / "config.json", {"apply_spec_augment": False})
    unmasked, _ = ran(tmp_path, finetune, asked, "unmasked", inputs)
    assert differ(weights_of(unmasked), weights_of(whole))


def differ(found: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(tensor, other[name]) for name, tensor in found.items())
