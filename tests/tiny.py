"""Small real models and data for the tests: random Llama, OPT and MPT folders in hub format, and texts to learn."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from stages.contracts import Checkpoint, Corpus

WORDS = (
    *("the", "a", "small", "large", "red", "blue", "river", "mountain", "city", "sings"),
    *("holds", "finds", "near", "under", "and", "of", "with", "water", "stone"),
)
CONTEXT = 320
VOCABULARY = 320


def sentences(count: int, seed: int) -> list[str]:
    """Texts with some structure: each word depends on the one before."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        at = draw.randrange(len(WORDS))
        words = []
        for _ in range(24):
            words.append(WORDS[at])
            at = (3 * at + draw.choice((1, 2))) % len(WORDS)
        texts.append(" ".join(words) + ".")
    return texts


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(sentences(50, 0), vocab_size=VOCABULARY, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(kind: str = "llama", seed: int = 0) -> torch.nn.Module:
    """A random model: 2 blocks, width 32, context 320 (a task's answers may be 256 long). kind: llama, opt, mpt."""
    torch.manual_seed(seed)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True, eos_token_id=0,
            bos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    if kind == "opt":
        config = OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=CONTEXT, word_embed_proj_dim=32, eos_token_id=0, bos_token_id=0, pad_token_id=0,
            dropout=0.0,
        )  # fmt: skip
        return OPTForCausalLM(config).eval()
    config = MptConfig(vocab_size=VOCABULARY, d_model=32, expansion_ratio=2, n_layers=2, n_heads=4, max_seq_len=CONTEXT)
    return MptForCausalLM(config).eval()


def save_model(folder: Path, kind: str = "llama", seed: int = 0) -> Path:
    """A whole checkpoint folder in hub format. Draws that follow are those that follow `build`."""
    files, drawn = _saved(kind, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.set_rng_state(drawn)
    return folder


@functools.cache
def _saved(kind: str, seed: int) -> tuple[dict[str, bytes], torch.Tensor]:
    """Its files, which are asked for many times, and the state of torch's generator."""
    model = build(kind, seed)
    drawn = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        save_tokenizer(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, drawn


def save_texts(folder: Path, train: int = 60, others: int = 20) -> Path:
    """train, validation and test .jsonl with {"id", "text"}."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((("train", train), ("validation", others), ("test", others))):
        rows = [{"id": f"{split}-{i}", "text": text} for i, text in enumerate(sentences(count, seed))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def save_questions(folder: Path, train: int = 60, others: int = 20) -> Path:
    """train and test .jsonl with {"template", "question", "answer"}, answers as GSM8K writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", others)):
        rows = [
            {
                "template": f"{split}-{i}",
                "question": f"the river holds {i} and 2?",
                "answer": f"so {i} + 2\n#### {i + 2}",
            }
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(model: Path, runs: Path, cache: Path) -> list[str]:
    """Overrides that make any experiment small: few and short steps on one thread."""
    return [
        f"model.path={model}",
        f"runs={runs}",
        f"cache.folder={cache}",
        "threads=1",
        *(f"{where}.{key}={value}" for where in ("dense.training", "finetune") for key, value in TRAINING.items()),
        "prune.precision=fp32",
        "calibrate.samples=8",
        "calibrate.length=32",
        "evaluate.perplexity.length=32",
        "evaluate.perplexity.windows=4",
        "benchmark.prompt_tokens=8",
        "benchmark.new_tokens=4",
        "benchmark.rounds=2",
    ]


TRAINING = {
    "steps": 4,
    "epochs": 0,
    "sequence_length": 32,
    "batch_size": 4,
    "micro_batch_size": 2,
    "warmup_steps": 1,
    "eval_every": 2,
    "eval_windows": 4,
    "checkpoint_every": 2,
    "precision": "fp32",
}


def text_data(folder: Path) -> Corpus:
    """The same texts as the stage `data` leaves them."""
    return described(save_texts(folder), "text")


def described(folder: Path, kind: str) -> Corpus:
    """A folder of rows with its record."""
    (folder / "meta.json").write_text(json.dumps({"facts": {"format": kind, "digest": "of the data"}, "metrics": {}}))
    return Corpus(folder, "data")


def checkpoint(folder: Path, kind: str = "llama") -> Checkpoint:
    """A random model in a folder of its kind."""
    return Checkpoint(save_model(folder / kind, kind), kind)


def change(file: Path, values: dict[str, Any]) -> None:
    """Sets keys of a JSON file; None takes one out."""
    kept = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
