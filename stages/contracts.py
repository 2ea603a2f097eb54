"""The interface between the pipeline and its stages: artifact readers, the log, user errors.

Stages exchange references, never loaded objects: a stage gets the folders of its inputs and fills one of its own, so
that it can run in another process or on another machine. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

CURVES = "metrics.jsonl"
"""File of a stage's logged values, point by point, each with its time."""


class UserError(Exception):
    """An error that the user can correct. Shown as one line, without a traceback.

    `option` is the configuration key to change, dotted (`finetune.lr`), or empty.
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message, option)
        self.message = " ".join(message.split())
        self.option = option

    def __str__(self) -> str:
        return f"{self.option}: {self.message}" if self.option else self.message


class Stopped(Exception):  # noqa: N818 (no fault of the stage)
    """A stage stopped on request (`Log.should_stop`), after saving a checkpoint to resume from. Shown as one line."""


@dataclass(frozen=True)
class Artifact:
    """A published, read-only result of one stage. Subclasses know its files."""

    path: Path
    fingerprint: str

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Returns what the store wrote beside the result: config, inputs, facts, metrics, environment, files. It is
        read once: encoders ask for facts at every item."""
        found: dict[str, Any] = _read_json(self.path / "meta.json")
        return found

    def facts(self) -> dict[str, Any]:
        """Returns what the stage recorded while it ran (`Log.facts`): digests, resolved settings, counts."""
        found: dict[str, Any] = self.meta["facts"]
        return found

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = self.meta["metrics"]
        return found


@dataclass(frozen=True)
class Structure:
    """The parts of a model that stages may work on, known without loading it (structure.json)."""

    linears: dict[str, tuple[int, int]]
    """Shape (out, in) of the prunable linears, in execution order."""
    left_alone: dict[str, str]
    """Other matrices inside the blocks, and why they are left alone."""
    block_weights: int
    """Number of weights of all matrices inside the blocks."""
    prunable_weights: int
    context: int | None
    """The longest sequence in tokens; None: unlimited."""
    vocabulary: int
    refused: dict[str, str]
    """What cannot be done with this model (`training`, `squarehead`), and why."""
    zeros: float = 0.0
    """Share of zeros that the model came with, from the record of its import; not in the file."""

    @property
    def prunable_share(self) -> float:
        """Returns the prunable share of the weights inside the blocks."""
        return self.prunable_weights / self.block_weights


@dataclass(frozen=True)
class Checkpoint(Artifact):
    """A Hugging Face folder: config.json, model.safetensors, tokenizer files; and beside them, where
    the model is pruned, `masks.safetensors`. A quantized one is described in `engine.quantized_folders`."""

    @property
    def masks(self) -> Path | None:
        """Returns the file of bit-packed masks of the pruned linears (`stages.masks`), or None for a dense model."""
        return _existing(self.path / "masks.safetensors")

    def structure(self) -> Structure | None:
        """Returns None for a checkpoint whose stage wrote none."""
        path = self.path / "structure.json"
        if not path.exists():
            return None
        found = _read_json(path)
        shapes = {name: (shape[0], shape[1]) for name, shape in found["linears"].items()}
        zeros = float(self.metrics().get("sparsity", 0.0)) if (self.path / "meta.json").exists() else 0.0
        return Structure(**{**found, "linears": shapes, "zeros": zeros})

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Returns the quantization section of config.json, or None for a model in floating point."""
        config = _existing(self.path / "config.json")
        found: dict[str, Any] | None = _read_json(config).get("quantization_config") if config else None
        return found


@dataclass(frozen=True)
class DataSet(Artifact):
    """A data set as it came in (Corpus), or as a model reads it (Examples)."""

    @property
    def format(self) -> str:
        """Returns the name of the data format: text, qa, translation, speech, ..."""
        return str(self.facts()["format"])

    @property
    def digest(self) -> str:
        """Returns the sha256 over all splits: the identity of the data set in every record."""
        return str(self.facts()["digest"])


@dataclass(frozen=True)
class Corpus(DataSet):
    """A data set with one JSON Lines file for each split. Rows by `format`: text {"text", "id"}; qa {"prompt",
    "completion", "answer", "question", "id"}; prompted {"prompt", "completion", "id"} and what metrics read; messages
    {"messages", "id"}; translation {"source", "target", "id"}, the source with its prefix; speech {"audio", "seconds",
    "text", "id"}, the audio a path inside this folder (FLAC, 16 kHz, mono)."""

    @property
    def loss_on(self) -> str:
        """Returns which tokens of items are learned: `completion` or `all`. Records of older versions lack it and mean
        all."""
        return str(self.facts().get("loss_on", "all"))

    @property
    def too_long(self) -> str:
        """Returns what is done with items whose prompt fills a row: `refuse` or `leave_out`."""
        return str(self.facts().get("too_long", "refuse"))

    @property
    def answer_mark(self) -> str:
        """Returns the text before the answer of a question that exact match compares."""
        return str(self.facts().get("answer_mark", "####"))

    @property
    def template(self) -> Literal["tokenizer", "zephyr"]:
        """Returns the chat template of conversations: the `tokenizer`'s or `zephyr`'s."""
        found: Literal["tokenizer", "zephyr"] = self.facts()["template"]
        return found

    def split(self, name: str) -> Path:
        """Returns the file of a split. Raises UserError if this data has no such split."""
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            have = ", ".join(sorted(p.stem for p in self.path.glob("*.jsonl")))
            raise UserError(f"no split {name!r} in this data; it has: {have}", "data")
        return path


@dataclass(frozen=True)
class Examples(DataSet):
    """A corpus as an encoder-decoder's tokenizer and feature extractor see it: a `datasets` folder for each split.

    Facts: `format`, `digest` (of the corpus), `prompt` (token ids that the decoder begins with), of speech the settings
    `speech`, and of translations the `languages`. Columns are the family's own (`stages.families`).
    """

    def split(self, name: str) -> Path:
        """Returns the folder of a split. Raises UserError if this data has no such split."""
        path = self.path / name
        if not path.is_dir():
            have = ", ".join(sorted(p.name for p in self.path.iterdir() if p.is_dir()))
            raise UserError(f"no split {name!r} in this data; it has: {have}", "data")
        return path


@dataclass(frozen=True)
class PackedCorpus(DataSet):
    """Text for pretraining as ids of one tokenizer: each document starts as the tokenizer starts a text and ends with
    eos.

    `index.json`: {"dtype": "uint16" | "uint32", "train": [tokens of each shard], "validation": {source: tokens}}. Ids
    are in `train_00000.bin`, `train_00001.bin`, ... and `validation_SOURCE.bin`, and beside each, in `*.starts.npy`,
    where its documents start (uint64). Facts: `format` (tokens), `digest`, `sources`.
    """

    def index(self) -> dict[str, Any]:
        found: dict[str, Any] = _read_json(self.path / "index.json")
        return found


@dataclass(frozen=True)
class Calibration(Artifact):
    """`samples.safetensors`: the tensors of a batch (`stages.families.Batch`), N samples."""

    @property
    def samples(self) -> Path:
        return self.path / "samples.safetensors"


@dataclass(frozen=True)
class Metrics(Artifact):
    """`metrics.json`: {name: {"value", "stderr" | null, "protocol": {...}}}."""

    def values(self) -> dict[str, Any]:
        found: dict[str, Any] = _read_json(self.path / "metrics.json")
        return found


@dataclass(frozen=True)
class Benchmark(Artifact):
    """`benchmark.json`: {"machine": {...}, "rows": [one measured backend each, or its "n/a" reason]}."""

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = _read_json(self.path / "benchmark.json")["rows"]
        return found


class Bar(Protocol):
    """A progress bar with rate and time left."""

    def advance(self, steps: int = 1, **shown: float) -> None:
        """Advances the bar; `shown` values (a loss, say) are shown beside it."""


class Log(Protocol):
    """The log of a running stage: it reaches the terminal, the artifact's record and the tracker."""

    resume: Path
    """A folder that survives a kill and belongs to this fingerprint: checkpoints of a long stage go here.
    It is removed when the stage is published."""
    device: str
    """Device of floating-point models: `cpu` or `cuda`. Not part of a fingerprint."""

    @property
    def should_stop(self) -> bool:
        """Returns whether the process was asked to end: a long stage then saves a checkpoint and raises `Stopped`."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Logs metrics at a step (training step, layer number). Kept in `metrics.jsonl` of the artifact."""

    def rewind(self, step: int) -> None:
        """Discards the metrics logged after `step`, on resuming from a checkpoint made there."""

    def facts(self, **found: Any) -> None:
        """Records JSON values found while running (data digests, a resolved precision)."""

    def note(self, line: str) -> None:
        """Prints one line at the terminal. Not for progress."""

    def bar(self, what: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Opens a progress bar: `with log.bar("fine-tune", total=steps, unit="step") as bar: ...
        bar.advance(loss=loss)`."""


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
