"""Sparse students, and what to train and to prune them by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages import families, masks
from stages.calibrate import run as calibrate
from stages.contracts import Calibration, Checkpoint, Corpus
from stages.families import Batch
from stages.prune import sequential, sparsegpt
from stages.prune.spec import Prune
from stages.tokens import IGNORED
from tests import tiny
from tests.stage_options import pruning
from tests.tiny import described

FAMILY = families.get("causal_lm")


def sparse(folder: Path, kind: str = "llama", seed: int = 0) -> Checkpoint:
    """A tiny model with random masks of about 60 %."""
    tiny.save_model(folder, kind, seed)
    model = FAMILY.load(folder)
    generator = torch.Generator().manual_seed(1)
    pruned = {n: torch.rand(m.weight.shape, generator=generator) > 0.6 for n, m in FAMILY.prunable(model).items()}
    masks.apply_(model, pruned)
    model.save_pretrained(folder)
    masks.save(pruned, folder / "masks.safetensors")
    return Checkpoint(folder, "sparse")


def qa_data(folder: Path) -> Corpus:
    folder.mkdir(parents=True)
    items = [tiny.sentences(1, seed)[0].split() for seed in range(24)]
    rows = [
        {"prompt": " ".join(words[: 2 + i % 3]), "completion": " " + " ".join(words[5 : 7 + i % 5]), "answer": "x"}
        for i, words in enumerate(items)
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return described(folder, "qa")


def prune_config(method: str) -> Prune:
    return pruning(method=method, micro_batch_size=4)


def calibration(folder: Path) -> Calibration:
    folder.mkdir()
    ids_NL = torch.randint(0, tiny.VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(0)).int()
    save_file({"input_ids": ids_NL, "labels": ids_NL.clone(), "use": torch.ones_like(ids_NL)}, folder / calibrate.FILE)
    return Calibration(folder, "calibration")


def padded_samples() -> Batch:
    """Samples of many lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids_NL = torch.randint(1, tiny.VOCABULARY, (7, 24), generator=generator)
    lengths_N1 = torch.tensor([24, 5, 17, 9, 24, 1, 12])[:, None]
    mask_NL = (torch.arange(24) < lengths_N1).long()
    labels_NL = ids_NL.masked_fill(mask_NL == 0, IGNORED)
    ids_NL = ids_NL.masked_fill(mask_NL == 0, 0)
    return {"input_ids": ids_NL, "labels": labels_NL, "use": mask_NL, "attention_mask": mask_NL}


def whole_samples() -> Batch:
    """Samples without padding."""
    ids_NL = padded_samples()["input_ids"]
    return {"input_ids": ids_NL, "labels": ids_NL, "use": torch.ones_like(ids_NL)}


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The Hessians that are factored, in order; the factor itself is the real one."""
    seen: list[Tensor] = []

    def factor(H_II: Tensor, *rest: float) -> sparsegpt.Factor:
        seen.append(H_II.triu() + H_II.triu(1).T)
        return original(H_II, *rest)

    original = sparsegpt.factor
    with monkeypatch.context() as patch:
        patch.setattr(sequential.sparsegpt, "factor", factor)
        yield seen


def sparse_checkpoint(folder: Path, kind: str = "llama", seed: int = 0) -> Checkpoint:
    """A tiny model whose prunable linears have random masks of 50 %."""
    model = tiny.build(kind, seed)
    torch.manual_seed(1)
    # trained models have outlying channels and biases that are not zero
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn_like(parameter).abs())
            elif "wte" not in name and "embed" not in name:
                parameter.mul_(8)
    pruned = {
        name: torch.rand(linear.weight.shape) < 0.5
        for name, linear in families.get("causal_lm").prunable(model).items()
    }
    masks.apply_(model, pruned)
    model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    masks.save(pruned, folder / "masks.safetensors")
    return Checkpoint(folder, kind)
