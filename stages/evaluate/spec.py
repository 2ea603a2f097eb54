"""Stage `evaluate`: measures the quality of a model. Torch-free description."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from stages.contracts import Metrics, UserError
from stages.evaluate.cost import EvaluateCost
from stages.evaluate.early import check_early
from stages.evaluate.metrics import METRICS, MetricOptions
from stages.options import Bos, Options, Seed
from stages.sources.identity import digest, local
from stages.stage import MetricSpec, Stage


class Perplexity(Options):
    """Token perplexity over windows of a fixed length."""

    split: str
    """Split that is evaluated."""
    length: int = Field(ge=2)
    """Tokens of a window. Windows do not overlap."""
    windows: int = Field(ge=0)
    """Evaluate the first so many windows; 0: all."""
    bos: Bos = "window"
    joined_by: str = "\n\n"
    """Text between two rows of the split (papers join C4 by one space)."""
    documents: int = Field(0, ge=0)
    """Use the first so many rows of the split; 0: all (papers take 1100 of C4)."""


class Task(Options):
    """An lm-eval task: one of its own by name, or a local YAML."""

    name: str = Field(min_length=1)
    """Name of the task in lm-eval, or in the folder `include`."""
    include: str = ""
    """Folder of the task's YAML; empty: one of lm-eval's own. `packaged` means the tasks that come with squarehead."""
    shots: int | None = Field(None, ge=0)
    """Examples before each question; null: as the task's definition says."""
    limit: int = Field(0, ge=0)
    """Evaluate the first so many documents; 0: all."""
    batch_size: int = Field(8, ge=1)
    """Requests of one forward pass."""


class Generation(Options):
    """Scores of the texts that an encoder-decoder generates: BLEU and chrF of translations, WER of transcripts."""

    split: str
    """Split that is evaluated."""
    limit: int = Field(ge=0)
    """Evaluate the first so many items; 0: all."""
    beams: int = Field(ge=1)
    """Beams of the search; 1: greedy decoding."""
    length_penalty: float
    """Beam search divides scores by length ** length_penalty."""
    max_new_tokens: int = Field(ge=1)
    """Most tokens of one output. A model that loops writes this many, so its insertions depend on it."""
    tokenize: Literal["auto", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"] = "auto"
    """sacreBLEU's tokenizer. auto: zh for Chinese, char for other scripts that write without spaces (Japanese, Thai,
    Lao, Khmer, Burmese), otherwise 13a."""
    normalizer: Literal["none", "basic", "english", "unicode"]
    """How references and hypotheses are normalised before WER. none: not at all. basic: Whisper's basic normaliser
    (case, punctuation). english: Whisper's English one (contractions, numbers, British spelling as well). unicode: for
    all scripts; case and punctuation, vowel signs kept."""
    full_window: bool
    """For speech with window=clip: also evaluate with 30-second windows, as metrics `*_full_window`."""
    bootstrap: int = Field(ge=100)
    """Resamples of the items for confidence intervals."""
    seed: Seed
    """Seed of the bootstrap."""


def _of_the_named_metrics(value: Any) -> Any:
    """Validates the options of each further metric by that metric's own options; a name alone means its defaults."""
    if not isinstance(value, list | tuple):
        return value
    given = [{"name": item} if isinstance(item, str) else item for item in value]
    return [
        METRICS.get(item["name"]).options.model_validate(item) if isinstance(item, dict) and "name" in item else item
        for item in given
    ]


def _by_name(value: Any) -> Any:
    """Converts a name alone to the task with its defaults."""
    return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


Tasks = Annotated[list[Task], BeforeValidator(_by_name)]
FurtherMetrics = Annotated[list[SerializeAsAny[MetricOptions]], BeforeValidator(_of_the_named_metrics)]


class Evaluate(Options):
    """How the quality of models is measured."""

    added: ClassVar[frozenset[str]] = frozenset({"metrics", "run_code"})

    perplexity: Perplexity | None
    generation: Generation | None = None
    """Only for encoder-decoders."""
    tasks: Tasks
    """Tasks of lm-eval, or groups of them, by name: `[arc_easy, hellaswag]`, `[{name: hellaswag, shots: 10}]`."""
    metrics: FurtherMetrics = Field([])
    """Further metrics of causal models by name (files of `stages/evaluate/metrics/`, or what installed packages add),
    with options of their own: `[bits_per_byte]`, `[{name: bits_per_byte, windows: 64}]`."""
    run_code: bool = False
    """Lets metrics run programs that the model wrote (pass_at_k), in child processes with limits of time, memory and
    processes, and without network and files if the system allows that."""
    one_shot: bool
    """Also evaluate the model that was pruned in one step and not fine-tuned, the baseline of recovery."""
    every_rung: bool
    """Evaluate after each rung of a ladder, not only after the last."""
    batch_size: int = Field(ge=1)
    """Windows or items of one forward pass."""
    runtime: Literal["torch", "engine"]
    """Runtime of floating-point models: torch, or the sparse engine in fp32."""
    int8_runtime: Literal["auto", "torch", "engine"]
    """Runtime of quantized models: torch's integer product or the sparse engine; both compute the same numbers. auto:
    the engine if its kernels are built."""

    @model_validator(mode="after")
    def _tasks_by_name(self) -> Evaluate:
        names = [*(task.name for task in self.tasks), *(metric.name for metric in self.metrics)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]} is listed twice, and its metrics would have the same name; list it once")
        return self


class EvaluateOptions(Options):
    added: ClassVar[frozenset[str]] = frozenset({"metrics", "run_code"})

    perplexity: Perplexity | None
    generation: Generation | None
    tasks: Tasks
    metrics: FurtherMetrics = Field([])
    run_code: bool = False
    batch_size: int
    runtime: Literal["torch", "engine"]

    def identify(self, described: dict[str, Any], option: str) -> None:
        for task in described["tasks"]:
            if task["include"] not in ("", "packaged"):
                folder = local(task["include"])
                if not folder.is_dir():
                    raise UserError(
                        f"there is no folder {task['include']!r} with the task {task['name']}", f"{option}.tasks"
                    )
                task["include"] = digest(folder, f"{option}.tasks")


QUALITIES = tuple(
    MetricSpec(f"{name}{window}", unit, higher)
    for name, unit, higher in (
        ("perplexity", "", False),
        ("wer", "%", False),
        ("cer", "%", False),
        ("bleu", "", True),
        ("chrf", "", True),
    )
    for window in ("", "_full_window")
)
LM_EVAL = tuple(MetricSpec(name, "fraction", True) for name in ("exact_match", "acc", "acc_norm", "f1"))
"""Metrics of lm-eval that are shares of the items."""
IRRELEVANT = ("run_code",)
"""The option only permits something."""
STAGE = Stage(
    "evaluate",
    "3",
    EvaluateOptions,
    Metrics,
    irrelevant=IRRELEVANT,
    check_early=check_early,
    cost=EvaluateCost(),
    metrics=(*QUALITIES, *LM_EVAL),
)
