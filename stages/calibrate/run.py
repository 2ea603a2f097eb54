"""Stage `calibrate`: draws the samples on which pruners and quantizers measure a model's activations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages import counts, families, tokens
from stages.calibrate.spec import Calibrate
from stages.checkpoints import check_length
from stages.contracts import Artifact, Checkpoint, Corpus, DataSet, Log, UserError
from stages.data.formats import rows_of
from stages.families import Batch, Family

FILE = "samples.safetensors"


def check(config: Calibrate, model: Checkpoint, data: DataSet) -> None:
    """Raises UserError if the split is too small to draw from."""
    if config.draw == "documents":
        _stretches(config.model_copy(update={"samples": 1}), families.of(model.path), model, data)
        return
    draw(counts.num_rows(model, data, config.split, config.length, "calibrate.length"), config)


def run(config: Calibrate, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Draws rows of the split without replacement by `config.seed`, one item each, or stretches of documents.

    Inputs: `model` (Checkpoint) and `data` (DataSet). Output: Calibration. Raises UserError if there are too few rows.
    """
    source, data = inputs["model"], inputs["data"]
    assert isinstance(source, Checkpoint)
    assert isinstance(data, DataSet)
    family = families.of(source.path)
    with torch.device("meta"):
        model = family.build(source.path)
    check_length(family.context(model), config.length, "calibrate.length")
    if config.draw == "documents":
        batch = _stretches(config, family, source, data)
    else:
        rows = family.rows(model, source.path, data, config.split, config.length, "calibrate.length", packed=False)
        batch = rows.take(draw(len(rows), config))
    save_file({name: _small(tensor) for name, tensor in batch.items()}, out / FILE)
    real = int(batch["use"].sum())
    log.facts(
        data_digest=data.digest,
        samples_digest=digest(batch),
        samples=config.samples,
        length=config.length,
        real_tokens=real,
    )
    return {"samples": config.samples, "real_tokens": real}


def _stretches(config: Calibrate, family: Family, source: Checkpoint, data: DataSet) -> Batch:
    """Draws stretches of random documents. Raises UserError for data that are not running text."""
    if not isinstance(data, Corpus) or rows_of(data) != "texts":
        raise UserError(
            f"documents are drawn from running text, not from data of format {data.format}", "calibrate.draw"
        )
    ids_NL = tokens.document_windows(
        data, config.split, family.tokenizer(source.path), config.length, config.samples, config.seed,
        "calibrate.length",
    )  # fmt: skip
    return {"input_ids": ids_NL, "labels": ids_NL.clone(), "use": torch.ones_like(ids_NL)}


def draw(have: int, config: Calibrate) -> Tensor:
    """Returns `config.samples` different indices below `have`."""
    if have < config.samples:
        raise UserError(
            f"the split {config.split!r} has {have} samples of at most {config.length} tokens, fewer than the "
            f"{config.samples} asked for",
            "calibrate.samples",
        )
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randperm(have, generator=generator)[: config.samples]


def digest(batch: Batch) -> str:
    """Returns the sha256 of the samples, in their order."""
    sha = hashlib.sha256()
    for name in sorted(batch):
        sha.update(f"{name}{list(batch[name].shape)}".encode())
        sha.update(batch[name].contiguous().numpy().tobytes())
    return sha.hexdigest()


def _small(tensor: Tensor) -> Tensor:
    return (tensor if tensor.is_floating_point() else tensor.int()).contiguous()
