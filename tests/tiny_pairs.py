"""Small sets of pairs and clips under every column name that the experiments ask for, and a T5 to read pairs."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile
import torch
from torch import nn

from stages import checkpoints
from stages.contracts import Checkpoint, Corpus
from stages.scratch import run as scratch
from stages.scratch import t5
from stages.scratch.spec import Scratch, ScratchOptions
from tests import tiny, tiny_whisper
from tests.running_stages import ran

LABEL = "T5 trained from scratch"

SPLITS = {"train": 40, "validation": 8, "test": 8}
T5_SIZES: dict[str, int | float | str | bool] = {
    "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2,
}  # fmt: skip
VOCABULARY = 40


def save_pairs(folder: Path) -> Path:
    """Sources and their words in reverse."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(SPLITS.items()):
        lines = []
        for i, text in enumerate(tiny.sentences(count, seed)):
            source = " ".join(text.split()[:6])
            target = " ".join(reversed(source.split()))
            pair = {"en": source, "de": target}
            named = {"source": source, "target": target, "en-US": source, "de": target, "page": f"{split}-{i}"}
            lines.append(json.dumps(named | {"translation": pair}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def save_clips(folder: Path) -> Path:
    """Manifests and wav files, of 0.5 to 1.5 seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(SPLITS.items()):
        lines = []
        for i, text in enumerate(tiny.sentences(count, seed)):
            file = f"{split}-{i}.wav"
            soundfile.write(folder / file, tiny_whisper.sound(0.5 + i % 5 / 4, i), tiny_whisper.RATE)
            short = " ".join(text.split()[:4])
            row = {"audio": file, "text": short, "sentence": short, "clip": file, "path": file}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def save_t5(folder: Path) -> Path:
    """A random T5 in hub format, with a tokenizer of these words."""
    tokenizer = t5.train_tokenizer(tiny.sentences(60, 0), VOCABULARY)
    config = Scratch(label="tiny", vocabulary=VOCABULARY, settings=T5_SIZES, seed=0)
    t5.random_t5(config, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def translations(folder: Path) -> Corpus:
    folder.mkdir()
    for seed, (split, count) in enumerate((("train", 40), ("validation", 4), ("test", 4))):
        rows = [
            {"id": f"{split}-{i}", "source": "translate: " + text[: 12 + i], "target": text[: 6 + i % 20]}
            for i, text in enumerate(tiny.sentences(count, seed))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_whisper.write_facts(folder, {"format": "translation", "digest": "pairs"})
    return Corpus(folder, "corpus")


def start(kind: str, folder: Path) -> tuple[Checkpoint, Corpus]:
    if kind == "whisper":
        # whole windows: those of clips end with the longest of a batch, and their states cannot be kept
        clips = {"train": [0.3, 0.5, 0.9] * 4, "validation": [0.4, 0.6], "test": [0.7, 0.3]}
        corpus = tiny_whisper.save_corpus(folder / "corpus", clips, window="full")
        return tiny_whisper.save(folder / "model"), corpus
    corpus = translations(folder / "corpus")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1}
    gated = {"feed_forward_proj": "gated-gelu"} if kind == "t5_gated" else {}
    described = Scratch(label=LABEL, vocabulary=64, settings=sizes | gated, seed=0)
    asked = ScratchOptions(family="t5", dtype="float32", scratch=described)
    model = ran(folder, scratch, asked, "model", {"data": corpus})[0]
    if kind == "t5_gated":
        give_a_head_of_its_own(model)
    return model, corpus


def give_a_head_of_its_own(checkpoint: Checkpoint) -> None:
    """As T5 v1.1 and Flan-T5 have it; transformers' configuration calls theirs tied all the same."""
    model = checkpoints.load(checkpoint)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(checkpoint.path)
