"""Stage `evaluate`: the quality of a model. What the rest of the house knows of it; torch-free."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from stages.contracts import Metrics
from stages.evaluate.cost import EvaluateCost
from stages.evaluate.early import check_early
from stages.evaluate.metrics import METRICS, MetricOptions
from stages.options import Bos, Options, Seed
from stages.stage import Stage


class Perplexity(Options):
    split: str
    length: int = Field(ge=2)
    windows: int = Field(ge=0)
    """The first so many windows; 0: all."""
    bos: Bos = "window"
    joined_by: str = "\n\n"
    """What stands between two rows of the split (C4, as papers cut it: one space)."""
    documents: int = Field(0, ge=0)
    """The first so many rows of the split; 0: all (C4, as papers cut it: 1100)."""


class Task(Options):
    """An lm-eval task: a stock one by name, or a local YAML."""

    name: str = Field(min_length=1)
    include: str = ""
    """Folder of the task's YAML; empty: a stock task. `packaged` names the tasks that come with squarehead."""
    shots: int | None = Field(None, ge=0)
    """Examples before each question; null: as the task's definition says."""
    limit: int = Field(0, ge=0)
    """The first so many documents; 0: all."""
    batch_size: int = Field(8, ge=1)


class Generation(Options):
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


def _of_the_named_metrics(value: Any) -> Any:
    """Validates the options of each further metric as that metric describes them; a name alone means its defaults."""
    if not isinstance(value, list | tuple):
        return value
    given = [{"name": item} if isinstance(item, str) else item for item in value]
    return [
        METRICS.get(item["name"]).options.model_validate(item) if isinstance(item, dict) and "name" in item else item
        for item in given
    ]


FurtherMetrics = Annotated[list[SerializeAsAny[MetricOptions]], BeforeValidator(_of_the_named_metrics)]


class Evaluate(Options):
    added: ClassVar[frozenset[str]] = frozenset({"metrics"})

    perplexity: Perplexity | None
    generation: Generation | None = None
    """Encoder-decoders only."""
    tasks: list[Task]
    metrics: FurtherMetrics = Field([])
    """Further metrics of causal models by name (files of `stages/evaluate/metrics/`, or what installed packages add),
    with options of their own: `[bits_per_byte]`, `[{name: bits_per_byte, windows: 64}]`."""
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
        names = [*(task.name for task in self.tasks), *(metric.name for metric in self.metrics)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]} stands there twice, and its metrics have one name; run it alone")
        return self


class EvaluateOptions(Options):
    added: ClassVar[frozenset[str]] = frozenset({"metrics"})

    perplexity: Perplexity | None
    generation: Generation | None
    tasks: list[Task]
    metrics: FurtherMetrics = Field([])
    batch_size: int
    runtime: Literal["torch", "engine"]


STAGE = Stage("evaluate", "3", EvaluateOptions, Metrics, check_early=check_early, cost=EvaluateCost())
