"""Stage `data`: brings in a data set as JSON Lines. Its description for the pipeline, without torch."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from stages.contracts import Corpus
from stages.data.formats import FORMATS
from stages.options import Options, Seed
from stages.stage import MetricSpec, Stage


class Speech(Options):
    """How Whisper models read a data set of format speech."""

    language: str
    """Language of the transcripts, for example `en` or `hi`. It names the language token of multilingual models."""
    task: Literal["transcribe", "translate"]
    """transcribe: the texts are transcripts. translate: they are English translations of the speech."""
    timestamps: bool
    """Whether transcripts begin and end with timestamp tokens."""
    window: Literal["full", "clip"]
    """What the encoder sees. full: always 30 seconds, as Whisper was trained. clip: the clip and one second of silence,
    which costs a fraction and needs dense fine-tuning first; raw models loop."""


class Languages(Options):
    """The languages of a data set of format translation, by the names of the model's tokenizer: en_XX and de_DE of
    mBART, eng_Latn and deu_Latn of NLLB, en and de of M2M100; of multilingual Marian models the target alone (deu).
    Both empty where the tokenizer has no such names."""

    source: str
    """The tokenizer's name of the source language; empty where it has none."""
    target: str
    """The tokenizer's name of the target language; empty where it has none."""


class Data(Options):
    """The data set. It is stored as JSON Lines, one file for each of train, validation and test."""

    path: str = Field(min_length=1)
    """A hub id, a local file or folder of JSON Lines, or an embedded package."""
    revision: str
    """For a hub id: branch, tag or commit; empty means `main`."""
    subset: str
    """For a hub id: the name of its configuration (`main` for openai/gsm8k)."""
    format: Annotated[str, FORMATS]
    """text: running text. qa: a prompt and its completion, with the loss on both; answers are scored after `####`.
    translation: pairs of a source and a target. speech: audio files and their transcripts. A file of
    `stages/data/formats/`, or a format that an installed package adds."""
    columns: dict[str, str]
    """Our column: theirs. text: `text`; qa: `question`, `answer`; translation: `source`, `target`; speech: `audio`,
    `text`. `id` is what a hash split hashes (rows of one id stay in one split). `a.b` is column b inside column a."""
    splits: dict[str, str]
    """Our split: theirs, where the source has splits; empty means those of the same names. Splits left out are cut from
    `train` by hash."""
    fractions: tuple[float, float, float]
    """Fractions of train, validation and test, where a split is cut by the hash of the id."""
    verbatim: bool = False
    """For running text: keep rows as they are, also empty ones and spaces around them, as published perplexities of
    WikiText-2 are measured. Otherwise rows are stripped and those without text are left out."""
    prompt: str
    """Template of the prompt in training and evaluation, for qa and translation. The default is that of lm-eval's
    gsm8k; T5 has its task prefix here."""
    completion: str
    """Template of what follows the prompt, for qa and translation."""
    size: int = Field(ge=0)
    """The first so many rows of each split; for generated data, the number of items to generate. 0 keeps all."""
    seed: Seed
    """Seed of generated data."""
    speech: Speech | None = None
    """Only for format=speech."""
    languages: Languages | None = None
    """Only for format=translation."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_chosen_format(cls, value: Any, handler: ModelWrapValidatorHandler[Data]) -> Data:
        """Validated, it is of the class that its format names as its `options`."""
        if cls is Data and isinstance(value, dict) and isinstance(value.get("format"), str):
            options = FORMATS.get(value["format"]).options
            if options is not Data:
                return options.model_validate(value)
        return handler(value)

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("expected three fractions of train, validation and test that sum to 1")
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> Data:
        format = FORMATS.get(self.format)
        if set(self.columns) != format.columns:
            raise ValueError(
                f"format={self.format} needs columns for {sorted(format.columns)}, got {sorted(self.columns)}"
            )
        unknown = sorted(set(self.splits) - {"train", "validation", "test"})
        if unknown:
            raise ValueError(f"splits are train, validation and test, got {unknown}")
        for name in ("verbatim", "speech", "languages"):
            if getattr(self, name) and name not in format.takes:
                raise ValueError(f"data of format {self.format} take no {name}; leave it out")
        if "speech" in format.takes and not self.speech:
            raise ValueError(f"format={self.format} needs the section `speech`")
        templates = zip(("prompt", "completion"), (self.prompt, self.completion), format.templates or (), strict=False)
        for name, template, field in templates:
            if {found for _, found, _, _ in Formatter().parse(template) if found is not None} != {field}:
                raise ValueError(f"{name} must hold {{{field}}} and nothing else in braces, got {template!r}")
        return self


ROWS = tuple(MetricSpec(f"{split}_rows", "rows", headline=True) for split in ("train", "validation", "test"))
SECONDS = tuple(MetricSpec(f"{split}_seconds", "s") for split in ("train", "validation", "test"))
STAGE = Stage("data", "2", Data, Corpus, in_cache=True, is_source=True, metrics=(*ROWS, *SECONDS))
