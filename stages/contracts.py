"""What crosses the border between the pipeline and its stages: artifact readers, the log, user errors.

References cross, never loaded objects: a stage gets the folders of its inputs and fills one of its own,
so that it can run in another process or on another machine. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

CURVES = "metrics.jsonl"
"""What a stage logged as it ran, point by point, each with its time; beside the rest of its result."""


class UserError(Exception):
    """Something the user can put right. Shown as one line, without a traceback.

    `option` is the configuration key to change, dotted (`finetune.lr`), or empty.
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message, option)
        self.message = " ".join(message.split())
        self.option = option

    def __str__(self) -> str:
        return f"{self.option}: {self.message}" if self.option else self.message


class Stopped(Exception):  # noqa: N818 (no fault of the stage)
    """A stage ended because it was asked to (`Log.should_stop`), after it saved where to go on. Shown as one line."""


@dataclass(frozen=True)
class Artifact:
    """A published, read-only result of one stage. Subclasses know what lies inside."""

    path: Path
    fingerprint: str

    @property
    def meta(self) -> dict[str, Any]:
        """What the store wrote beside the result: config, inputs, facts, metrics, environment, files."""
        found: dict[str, Any] = _read_json(self.path / "meta.json")
        return found

    def facts(self) -> dict[str, Any]:
        """What the stage found out while it ran (`Log.facts`): digests, resolved settings, counts."""
        found: dict[str, Any] = self.meta["facts"]
        return found

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = self.meta["metrics"]
        return found


@dataclass(frozen=True)
class Structure:
    """What stages may work on in a model, known without loading it (structure.json)."""

    linears: dict[str, tuple[int, int]]
    """Prunable linears in execution order: (out, in)."""
    left_alone: dict[str, str]
    """Other matrices inside the blocks, and why they are left alone."""
    block_weights: int
    """Of all matrices inside the blocks."""
    prunable_weights: int
    context: int | None
    """The longest sequence in tokens; None: unlimited."""
    vocabulary: int
    refused: dict[str, str]
    """What cannot be done with this model (`training`, `squarehead`), and why."""
    zeros: float = 0.0
    """Share of zeros that it came with, by the record of its import; not in the file."""

    @property
    def prunable_share(self) -> float:
        """Of the weights inside the blocks."""
        return self.prunable_weights / self.block_weights


@dataclass(frozen=True)
class Checkpoint(Artifact):
    """A Hugging Face folder: config.json, model.safetensors, tokenizer files; and beside them, where
    the model is pruned, `masks.safetensors`. A quantized one is described in `engine.quantized_folders`."""

    @property
    def masks(self) -> Path | None:
        """Bit-packed masks of the pruned linears (`stages.masks`), or None for a dense model."""
        return _existing(self.path / "masks.safetensors")

    def structure(self) -> Structure | None:
        """None for a checkpoint whose stage wrote none."""
        path = self.path / "structure.json"
        if not path.exists():
            return None
        found = _read_json(path)
        shapes = {name: (shape[0], shape[1]) for name, shape in found["linears"].items()}
        zeros = float(self.metrics().get("sparsity", 0.0)) if (self.path / "meta.json").exists() else 0.0
        return Structure(**{**found, "linears": shapes, "zeros": zeros})

    @property
    def quantization(self) -> dict[str, Any] | None:
        """What config.json says of quantization, or None for a model in floating point."""
        config = _existing(self.path / "config.json")
        found: dict[str, Any] | None = _read_json(config).get("quantization_config") if config else None
        return found


@dataclass(frozen=True)
class DataSet(Artifact):
    """A data set as it came in (Corpus), or as a model reads it (Examples)."""

    @property
    def format(self) -> str:
        """text, qa, translation or speech."""
        return str(self.facts()["format"])

    @property
    def digest(self) -> str:
        """sha256 over all splits: the identity of the data set in every record."""
        return str(self.facts()["digest"])


@dataclass(frozen=True)
class Corpus(DataSet):
    """One JSON Lines file a split. Rows by `format`: text {"text", "id"}; qa {"prompt", "completion", "answer",
    "question", "id"}; prompted {"prompt", "completion", "id"} and what metrics read; messages {"messages", "id"};
    translation {"source", "target", "id"}, the source with its prefix; speech {"audio", "seconds", "text", "id"}, the
    audio a path inside this folder (FLAC, 16 kHz, mono)."""

    @property
    def loss_on(self) -> str:
        """Of items: `completion` or `all`; what records of older versions do not say, they had on all."""
        return str(self.facts().get("loss_on", "all"))

    @property
    def too_long(self) -> str:
        """What becomes of items whose prompt fills a row: `refuse` or `leave_out`."""
        return str(self.facts().get("too_long", "refuse"))

    @property
    def answer_mark(self) -> str:
        """Of questions: what stands before the answer that exact match compares."""
        return str(self.facts().get("answer_mark", "####"))

    @property
    def template(self) -> Literal["tokenizer", "zephyr"]:
        """Of conversations: whose chat template writes them, the `tokenizer`'s or `zephyr`'s."""
        found: Literal["tokenizer", "zephyr"] = self.facts()["template"]
        return found

    def split(self, name: str) -> Path:
        """The file of a split. Raises UserError if this data has no such split."""
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
        """The folder of a split. Raises UserError if this data has no such split."""
        path = self.path / name
        if not path.is_dir():
            have = ", ".join(sorted(p.name for p in self.path.iterdir() if p.is_dir()))
            raise UserError(f"no split {name!r} in this data; it has: {have}", "data")
        return path


@dataclass(frozen=True)
class PackedCorpus(DataSet):
    """Text for pretraining as one tokenizer's ids: each document as the tokenizer begins it, ended by eos.

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
        """Moves on; `shown` values (a loss, say) stand beside the bar."""


class Log(Protocol):
    """A stage's voice: what it says reaches the terminal, the artifact's record and the tracker."""

    resume: Path
    """A folder that survives a kill and belongs to this fingerprint: checkpoints of a long stage go here.
    It is removed when the stage is published."""
    device: str
    """Where models in floating point are computed: `cpu` or `cuda`. No part of a fingerprint."""

    @property
    def should_stop(self) -> bool:
        """Whether the process was asked to end: a long stage saves a checkpoint and raises `Stopped`."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics at a step (training step, layer number). Kept in `metrics.jsonl` of the artifact."""

    def rewind(self, step: int) -> None:
        """After a resume from a checkpoint made at `step`: forget metrics logged after it."""

    def facts(self, **found: Any) -> None:
        """JSON values learned while running (data digests, a resolved precision): into the record."""

    def note(self, line: str) -> None:
        """One line for the reader at the terminal. Not for progress."""

    def bar(self, what: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """`with log.bar("fine-tune", total=steps, unit="step") as bar: ... bar.advance(loss=loss)`."""


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
