"""Stage `data`: converts a data set to JSON Lines. Torch-free description."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from stages.contracts import Corpus
from stages.data.columns import value
from stages.data.formats import FORMATS
from stages.data.generators import AnyGenerator, check_path
from stages.data.rows import Row
from stages.data.unfold import UNFOLDS
from stages.options import Located, Options, Seed
from stages.stage import MetricSpec, Stage

LossOn = Literal["completion", "all"]


class Speech(Options):
    """Input of Whisper models for a data set of format speech."""

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


class Data(Located):
    """The data set. It is stored as JSON Lines, one file for each of train, validation and test."""

    added: ClassVar[frozenset[str]] = frozenset({"unfold", "generator"})

    path: str = Field(min_length=1)
    """A hub id, a local file or folder of JSON Lines, an embedded package, or `generated`."""
    revision: str
    """For a hub id: branch, tag or commit; empty means `main`."""
    subset: str
    """For a hub id: the name of its configuration (`main` for openai/gsm8k)."""
    format: Annotated[str, FORMATS]
    """text: running text. qa: a prompt and its completion, from templates. prompted: items that a prompt format makes
    (instructions, summaries, functions). messages: conversations. translation: pairs of a source and a target. speech:
    audio files and their transcripts. A file of `stages/data/formats/`, or a format that an installed package adds."""
    columns: dict[str, str]
    """Maps our columns to those of the source. text: `text`; qa: `question`, `answer`; translation: `source`, `target`;
    speech: `audio`, `text`; messages: `messages`; prompted: those of its prompt format. `id` is what a hash split
    hashes (rows of one id stay in one split). `a.b` is column b inside column a."""
    splits: dict[str, str]
    """Maps our splits to those of the source, if it has splits; empty means those of the same names. Splits left out
    are cut from `train` by hash."""
    fractions: tuple[float, float, float]
    """Fractions of train, validation and test, where a split is cut by the hash of the id."""
    verbatim: bool = False
    """For running text: keep rows as they are, also empty ones and spaces around them, as published perplexities of
    WikiText-2 are measured. Otherwise rows are stripped and those without text are left out."""
    prompt: str
    """Template of the prompt in training and evaluation, for qa and translation. The default is that of lm-eval's
    gsm8k; T5 has its task prefix here."""
    completion: str
    """Template of the text after the prompt, for qa and translation."""
    unfold: Annotated[str, UNFOLDS] | None = None
    """Converts rows of another form (self_instruct, oasst_threads) to rows of this format: a file of
    `stages/data/unfold/`, or one that an installed package adds. null: the source's rows are used unchanged."""
    generator: AnyGenerator | None = None
    """For path=generated: a file of `stages/data/generators/`, or one that an installed package adds, with its
    options."""
    size: int = Field(ge=0)
    """Keep this many rows of each split, the first ones; for generated data, the number of items to generate. 0 keeps
    all."""
    seed: Seed
    """Seed of generated data."""
    speech: Speech | None = None
    """Only for format=speech."""
    languages: Languages | None = None
    """Only for format=translation."""

    def item_facts(self) -> dict[str, Any]:
        """Returns how items are presented to a model, for the record."""
        return {}

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_chosen_format(cls, value: Any, handler: ModelWrapValidatorHandler[Data]) -> Data:
        """Returns an instance of the class that the format names as its `options`."""
        return FORMATS.validated(Data, cls, value, handler, "format")

    @field_validator("fractions")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("expected three fractions of train, validation and test that sum to 1")
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> Data:
        format = FORMATS.get(self.format)
        if format.columns is not None and set(self.columns) != format.columns:
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
        check_path(self.path, self.generator)
        templates = zip(("prompt", "completion"), (self.prompt, self.completion), format.templates or (), strict=False)
        for name, template, field in templates:
            if {found for _, found, _, _ in Formatter().parse(template) if found is not None} != {field}:
                raise ValueError(f"{name} must hold {{{field}}} and nothing else in braces, got {template!r}")
        return self


class ItemData(Data):
    """Options shared by formats of items and conversations, which are learned and evaluated."""

    added: ClassVar[frozenset[str]] = Data.added | {"loss_on", "too_long", "keep"}

    loss_on: LossOn = "completion"
    """Tokens that cross entropy and kd see: those of the completion (of the assistant's turns), or all of an item.
    SquareHead compares all tokens either way."""
    too_long: Literal["refuse", "leave_out"] = "refuse"
    """What is done with an item whose prompt alone fills a row."""
    keep: list[str] = Field([])
    """Columns of the source that stay with an item, for metrics that read them or report by them."""

    def item_facts(self) -> dict[str, Any]:
        return {"loss_on": self.loss_on, "too_long": self.too_long}

    def kept(self, row: Row) -> dict[str, Any]:
        return {name: value(row, name, name) for name in self.keep}


ROWS = tuple(MetricSpec(f"{split}_rows", "rows", headline=True) for split in ("train", "validation", "test"))
SECONDS = tuple(MetricSpec(f"{split}_seconds", "s") for split in ("train", "validation", "test"))
STAGE = Stage("data", "2", Data, Corpus, in_cache=True, is_source=True, metrics=(*ROWS, *SECONDS))
