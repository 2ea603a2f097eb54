"""Stage `calibrate`: draws the token samples on which pruners and quantizers look at a model's activations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.contracts import Artifact, Calibration, Checkpoint, Log, TextData, UserError
from pipeline.schema import Calibrate
from stages import families, tokens
from stages.checkpoints import check_length

FILE = "tokens.safetensors"


def run(config: Calibrate, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """`model` (Checkpoint) and `data` (TextData) -> Calibration. Raises UserError when there are too few samples."""
    model, data = inputs["model"], inputs["data"]
    assert isinstance(model, Checkpoint)
    assert isinstance(data, TextData)
    family = families.of(model.path)
    with torch.device("meta"):
        context = family.context(family.build(model.path))
    check_length(context, config.length, "calibrate.length")
    ids_NL, mask_NL = sample(data, family.tokenizer(model.path), config)
    save_file({"input_ids_NL": ids_NL.int(), "attention_mask_NL": mask_NL.byte()}, out / FILE)
    real = int(mask_NL.sum())
    log.facts(
        data_digest=data.digest,
        tokens_digest=digest(ids_NL, mask_NL),
        samples=config.samples,
        length=config.length,
        real_tokens=real,
    )
    return {"samples": config.samples, "real_tokens": real}


def sample(data: TextData, tokenizer: Any, config: Calibrate) -> tuple[Tensor, Tensor]:
    """`ids_NL` and `mask_NL` (1 = a real token), int64: samples drawn without replacement by `config.seed`.

    text: windows of the packed stream, no padding. qa: prompt, completion and eos of an item, cut at `length` or
    padded on the right.
    """
    if data.format == "text":
        windows_NL = tokens.stream(data, config.split, tokenizer, config.length, "calibrate.length")
        ids_NL = windows_NL[draw(len(windows_NL), config, f"windows of {config.length} tokens")]
        return ids_NL, torch.ones_like(ids_NL)
    items = tokens.texts(data, config.split)
    chosen = draw(len(items), config, "items").tolist()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids_NL = torch.full((config.samples, config.length), pad)
    mask_NL = torch.zeros_like(ids_NL)
    for n, item in enumerate(chosen):
        encoded = tokenizer(items[item], add_special_tokens=False)["input_ids"]
        cut = torch.tensor([*encoded, tokenizer.eos_token_id][: config.length])
        ids_NL[n, : len(cut)] = cut
        mask_NL[n, : len(cut)] = 1
    return ids_NL, mask_NL


def draw(have: int, config: Calibrate, what: str) -> Tensor:
    """`config.samples` different indices below `have`."""
    if have < config.samples:
        raise UserError(
            f"the split {config.split!r} has {have} {what}, fewer than the {config.samples} asked for",
            "calibrate.samples",
        )
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randperm(have, generator=generator)[: config.samples]


def load(calibration: Calibration) -> tuple[Tensor, Tensor]:
    """`ids_NL` and `mask_NL` of a calibration artifact, int64."""
    stored = load_file(calibration.tokens)
    return stored["input_ids_NL"].long(), stored["attention_mask_NL"].long()


def digest(ids_NL: Tensor, mask_NL: Tensor) -> str:
    """sha256 of the samples, in their order."""
    sha = hashlib.sha256()
    for tensor in (ids_NL, mask_NL):
        sha.update(tensor.int().numpy().tobytes())
    return sha.hexdigest()
