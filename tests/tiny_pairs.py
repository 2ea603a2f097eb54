"""Small sets of pairs and clips under every column name that the experiments ask for, and a T5 to read pairs."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile

from stages.scratch import t5
from stages.scratch.spec import Scratch
from tests import tiny, tiny_whisper

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
