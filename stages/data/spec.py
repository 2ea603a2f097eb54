"""Stage `data`: brings in a data set as JSON Lines. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from string import Formatter
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stages.contracts import Corpus
from stages.options import DataFormat, Family, Options, Seed
from stages.stage import Stage

FIELDS: dict[DataFormat, set[str]] = {
    "text": {"text", "id"},
    "qa": {"question", "answer", "id"},
    "translation": {"source", "target", "id"},
    "speech": {"audio", "text", "id"},
}
"""What a row of each format must have (`data.columns`)."""

READS: dict[Family, tuple[DataFormat, ...]] = {
    "causal_lm": ("text", "qa"),
    "t5": ("translation",),
    "seq2seq": ("translation",),
    "whisper": ("speech",),
}
"""Formats that a family can be trained and judged on."""


class Speech(Options):
    """How a data set of format speech is put to a Whisper model."""

    language: str
    """Of the transcripts, as in `en` or `hi`; names the language token of multilingual models."""
    task: Literal["transcribe", "translate"]
    """translate: the texts are English translations of what is spoken."""
    timestamps: bool
    """Transcripts begin and end with timestamp tokens."""
    window: Literal["full", "clip"]
    """What the encoder sees: 30 seconds always, as Whisper was trained, or the clip and one second of silence, which
    costs a fraction, and which a model has to be fine-tuned for (`dense`): raw ones loop."""


class Languages(Options):
    """The languages of a data set of format translation, by the names of the model's tokenizer: en_XX and de_DE of
    mBART, eng_Latn and deu_Latn of NLLB, en and de of M2M100; of multilingual Marian models the target alone (deu).
    Both empty where the tokenizer has no such names."""

    source: str
    target: str


class Data(Options):
    """A data set, brought into JSON Lines: one file for each of train, validation, test."""

    path: str = Field(min_length=1)
    """A hub id, a local file or folder of JSON Lines, or an embedded package."""
    revision: str
    subset: str
    """Hub only: the configuration name (`main` for openai/gsm8k)."""
    format: DataFormat
    """text: running text. qa: a prompt and its completion, loss on both, answers scored after `####`. translation:
    pairs of a source and a target. speech: audio files and their transcripts."""
    columns: dict[str, str]
    """Our field -> theirs. text: `text`; qa: `question`, `answer`; translation: `source`, `target`; speech: `audio`,
    `text`. And `id`: what a hash split hashes (rows of one id stay in one split). `a.b` is column b inside column a."""
    splits: dict[str, str]
    """Our split -> theirs, where the source has splits; empty: those of the same names. Splits left out are cut by
    hash from `train`."""
    fractions: tuple[float, float, float]
    """Train, validation, test, where a split has to be cut by a hash of the id."""
    verbatim: bool = False
    """format=text: rows as they are, empty ones and spaces around them kept, as published perplexities of WikiText-2
    are measured. Else rows are stripped, and those without text left out."""
    prompt: str
    completion: str
    """qa and translation: the one prompt format of training and evaluation (of lm-eval's gsm8k; T5's prefix)."""
    size: int = Field(ge=0)
    """Items to generate (generated data), or the first so many rows of each split to keep; 0 keeps all."""
    seed: Seed
    """Of generated data."""
    speech: Speech | None = None
    """format=speech only."""
    languages: Languages | None = None
    """format=translation only."""

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("expected three fractions of train, validation and test that sum to 1")
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> Data:
        fields = FIELDS[self.format]
        if set(self.columns) != fields:
            raise ValueError(f"format={self.format} needs columns for {sorted(fields)}, got {sorted(self.columns)}")
        unknown = sorted(set(self.splits) - {"train", "validation", "test"})
        if unknown:
            raise ValueError(f"splits are train, validation and test, got {unknown}")
        if self.verbatim and self.format != "text":
            raise ValueError(f"verbatim rows are of format text, got {self.format}")
        if (self.format == "speech") != (self.speech is not None):
            raise ValueError("format=speech and the section `speech` need each other")
        if self.languages and self.format != "translation":
            raise ValueError(f"languages are of format translation, got {self.format}")
        asked, answered = ("source", "target") if self.format == "translation" else ("question", "answer")
        for name, template, field in (("prompt", self.prompt, asked), ("completion", self.completion, answered)):
            if {found for _, found, _, _ in Formatter().parse(template) if found is not None} != {field}:
                raise ValueError(f"{name} must hold {{{field}}} and nothing else in braces, got {template!r}")
        return self


STAGE = Stage("data", "2", Data, Corpus, in_cache=True, is_source=True)
