"""The whole configuration. Hydra composes a dictionary; `parse` checks it and returns these frozen models.

Unknown keys and impossible values are refused with the option's name. The options of a stage are defined in its package
(`stages/<name>/spec.py`); its fingerprint covers the options that its `Stage` names, in canonical JSON. So `1e-4` and
`0.0001`, or a default and the same value written out, are one configuration.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from pipeline import references
from stages.benchmark.spec import Benchmark
from stages.calibrate.spec import Calibrate
from stages.contracts import UserError
from stages.corpus.spec import CorpusOptions
from stages.data.formats import FORMATS, names_of
from stages.data.spec import Data
from stages.dense.spec import Dense
from stages.evaluate.spec import Evaluate
from stages.finetune.spec import Distill, Training
from stages.model.families import FAMILIES
from stages.model.spec import Model
from stages.options import Options, Seed, Sparsity
from stages.prune.pattern import parse_pattern
from stages.prune.spec import Prune
from stages.quantize.spec import Quantize


class Schedule(Options):
    """The steps on the way to the final sparsity."""

    kind: Literal["one_shot", "ladder", "cubic"]
    """one_shot: prune once, at `sparsity`. ladder: prune and fine-tune level by level. cubic: prune gradually during
    one fine-tuning."""
    levels: list[Sparsity] = Field([])
    """ladder: prune and fine-tune at each of these levels below `sparsity`, then at `sparsity`."""
    initial: Sparsity = 0.0
    """cubic: sparsity at begin_step, reached in one pruning step."""
    begin_step: int = Field(0, ge=0)
    """cubic: fine-tuning step at which the schedule begins."""
    end_step: int = Field(0, ge=0)
    """cubic: fine-tuning step at which `sparsity` is reached; 0 means after 80 % of the steps."""
    update_every: int = Field(1, ge=1)
    """cubic: fine-tuning steps between two mask updates."""

    @model_validator(mode="after")
    def _only_its_own(self) -> Schedule:
        if self.kind != "ladder" and self.levels:
            raise ValueError(f"levels belong to kind=ladder, not to {self.kind}")
        if self.kind != "cubic" and (self.initial or self.begin_step or self.end_step or self.update_every != 1):
            raise ValueError(f"initial, begin_step, end_step and update_every belong to kind=cubic, not to {self.kind}")
        if self.end_step and self.end_step <= self.begin_step:
            raise ValueError(f"end_step={self.end_step} must lie after begin_step={self.begin_step}")
        return self


class FoundationStep(Options):
    """A level of a foundation, and its pretraining."""

    sparsity: Sparsity
    """Prune to it, unless the model is as sparse already; 0 trains the dense model on."""
    tokens: int = Field(ge=0)
    """Tokens of the corpus to train on after pruning."""
    marks: list[int] = Field([])
    """Smaller budgets for a curve, each trained to its own end from one common trunk; needs training.decay=wsd."""

    @model_validator(mode="after")
    def _marks_rise(self) -> FoundationStep:
        if self.marks and not 0 < self.marks[0] <= self.marks[-1] < self.tokens:
            raise ValueError(f"marks lie between 0 and tokens={self.tokens}, got {self.marks}")
        if self.marks != sorted(set(self.marks)):
            raise ValueError(f"marks must rise, got {self.marks}")
        return self


class Foundation(Options):
    """Sparse pretraining, before the model meets a task (arXiv 2405.03594)."""

    start: Literal["base", "random"]
    """Weights that pretraining begins with. base: those of the base model, pruned. random: new random ones, under the
    same masks."""
    steps: list[FoundationStep] = Field(min_length=1)
    """Steps in order, none less sparse than the one before."""
    training: Training
    """Training of each step, whose budget is the step's own `tokens`. Step k uses seed + k."""
    distill: Distill
    """Loss of pretraining; its teacher is the dense base."""
    prune: SerializeAsAny[Prune] | None = None
    """Pruner of the steps; null: the section `prune`."""

    @model_validator(mode="after")
    def _rises(self) -> Foundation:
        levels = [step.sparsity for step in self.steps]
        if levels != sorted(levels):
            raise ValueError(f"steps must not become less sparse, got the levels {levels}")
        if not self.training.is_none:
            raise ValueError("the budget is in steps.tokens; set training.steps, epochs and tokens to 0")
        if self.training.release:
            raise ValueError("training.release is for fine-tuning (finetune.release)")
        if any(step.marks for step in self.steps) and (self.training.decay != "wsd" or self.training.group_by_length):
            raise ValueError("budgets share a trunk only with training.decay=wsd, and without group_by_length")
        if self.start == "random" and not self.sparsity:
            raise ValueError("start=random takes the masks of a pruned model; expected a step with a sparsity above 0")
        return self

    @property
    def sparsity(self) -> float:
        """Returns the sparsity at the end."""
        return self.steps[-1].sparsity


class Tracking(Options):
    """Recording of jobs and results in MLflow."""

    enabled: bool
    """Whether MLflow records jobs and results."""
    uri: str
    """MLflow's tracking URI; empty: a SQLite database in the folder `runs`."""
    experiment: str = Field(min_length=1, max_length=250)
    """Name of the MLflow experiment."""
    artifacts: Literal["all", "small", "none"]
    """Which files of a result MLflow gets: all, those under 1 MB, or none."""
    system_metrics: bool = False
    """Record the machine's load (processor, memory, disk, network, GPU) every 10 seconds while a job runs."""


class CacheRules(Options):
    """The cache of downloads, and what counts as a stored result."""

    folder: str = Field(min_length=1)
    """Folder of downloaded models and data, shared by all projects of a user."""
    code: Literal["warn", "strict"]
    """Status of stored results that were made by other code. warn: a hit, with a warning. strict: a miss."""


MISSING = "???"
"""Value that Hydra writes for an option that must be given."""
NORMALIZER, FULL_WINDOW = "evaluate.generation.normalizer", "evaluate.generation.full_window"


class Config(Options):
    """The whole configuration of a job."""

    recipe: str = "task_pruning"
    """The graph of stages to run: a file of `pipeline/recipes/`, or a recipe that an installed package adds."""
    model: Model
    data: SerializeAsAny[Data]
    test_data: SerializeAsAny[Data] | None = None
    """Another data set for metrics to evaluate on instead of the data's own split: HumanEval, IFEval. null: none."""
    dense: Dense
    calibrate: Calibrate
    corpus: CorpusOptions | None = None
    """Text that `pretrain` and `foundation` train on; null: none."""
    pretrain: Training | None = None
    """Training of the model on the corpus before everything else, for a model from scratch; null: none."""
    foundation: Foundation | None = None
    """Only for recipe=foundation."""
    prune: SerializeAsAny[Prune]
    schedule: Schedule
    distill: Distill
    finetune: Training
    quantize: SerializeAsAny[Quantize]
    evaluate: Evaluate
    benchmark: Benchmark
    tracking: Tracking
    cache: CacheRules
    sparsity: Sparsity
    """Fraction of zeros among the prunable weights, at the end of the schedule."""
    seed: Seed
    """Seed of everything random, unless a section sets its own."""
    threads: int = Field(ge=0)
    """Threads of torch; 0: all cores, divided by the parallel jobs of a sweep."""
    device: Literal["auto", "cpu", "cuda"]
    """Where floating-point models are trained, pruned and evaluated; auto: a GPU if the system lists one. Int8 models,
    the engine and benchmarks always use the CPU."""
    runs: str = Field(min_length=1)
    """Folder of the store, the sweeps and the MLflow database."""
    dry_run: bool
    """Print what would run, why, and what it is expected to take; then stop."""
    until: str
    """Run only this node and what it needs; empty: all."""
    force: list[str]
    """Nodes to run again, with all that depends on them, even if their results are stored: `force=[benchmark]`."""
    reference: str
    """Table of published figures (conf/references.yaml) that reports show beside the results; empty: none."""

    @field_validator("reference")
    @classmethod
    def _published(cls, value: str) -> str:
        if value:
            references.of_table(value)
        return value

    @model_validator(mode="after")
    def _family_reads(self) -> Config:
        reads = FAMILIES.get(self.model.family).reads
        if FORMATS.get(self.data.format).rows not in reads:
            raise UserError(
                f"the family {self.model.family} reads data of format {' or '.join(names_of(reads))}, "
                f"got {self.data.format}",
                "data.format",
            )
        return self

    @model_validator(mode="after")
    def _trainings_fit(self) -> Config:
        if self.pretrain and self.pretrain.is_none:
            raise UserError("nothing to train; give tokens, steps or epochs", "pretrain.tokens")
        for option, training in self.trainings:
            if training.tokens and self.model.family != "causal_lm":
                raise UserError(
                    f"models of the family {self.model.family} count no tokens; give steps", f"{option}.tokens"
                )
            if training.warmup_steps > training.steps > 0:
                raise UserError(
                    f"a warm-up of {training.warmup_steps} steps would not end in {option}.steps={training.steps}; "
                    f"expected at most {training.steps}",
                    f"{option}.warmup_steps",
                )
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

    @property
    def trainings(self) -> list[tuple[str, Training]]:
        """Returns all sections of training, with the option that names each."""
        found = {
            "pretrain": self.pretrain,
            "foundation.training": self.foundation.training if self.foundation else None,
            "dense.training": self.dense.training,
            "finetune": self.finetune,
        }
        return [(option, training) for option, training in found.items() if training]

    @model_validator(mode="after")
    def _corpus_fits(self) -> Config:
        asks = "pretrain" if self.pretrain else "foundation" if self.foundation else ""
        if asks and not self.corpus:
            raise UserError(f"{asks} trains on a corpus; choose one, for example corpus=general_and_python", "corpus")
        if self.corpus and not asks:
            raise UserError("nothing here trains on a corpus: ~corpus, or set pretrain or foundation", "corpus")
        if (self.foundation is not None) != (self.recipe == "foundation"):
            raise UserError(
                f"the section foundation and recipe=foundation need each other, got recipe={self.recipe}", "foundation"
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> Config:
        if self.finetune.teacher_cache_gb and self.data.speech and self.data.speech.window == "clip":
            raise UserError(
                "in windows as long as the clips, states depend on the rest of the batch and cannot be cached; "
                "expected 0, or data.speech.window=full",
                "finetune.teacher_cache_gb",
            )
        return self

    @model_validator(mode="after")
    def _scores_fit(self) -> Config:
        asked, speech = self.evaluate.generation, self.data.speech
        if asked is None:
            return self
        if speech is None and FORMATS.get(self.data.format).rows != "pairs":
            return self  # the stage refuses it, by the family
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
                    raise UserError(f"level {level:g} is not a multiple of 1/{group} as N:M needs", "schedule.levels")
        return self


def parse(composed: dict[str, Any]) -> Config:
    """Checks a composed configuration. Raises UserError that names the first wrong option."""
    for section, option in (("model", "path"), ("data", "path")):
        if composed.get(section, {}).get(option) == MISSING:
            raise UserError("it has no default; give a file, a folder or OWNER/NAME", f"{section}.{option}")
    try:
        return Config.model_validate(composed)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # a wrong value that others interpolate is wrong in each place; the user gave the one with the shortest name
        same = [other for other in found if (other["type"], other["msg"]) == (found[0]["type"], found[0]["msg"])]
        first = min(same, key=lambda other: len(other["loc"]))
        option = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        given = first["input"]
        if first["type"] == "extra_forbidden":
            reason = "unknown option"
        elif first["type"] == "missing":
            reason = "it cannot be left out; give it a value"
        elif first["type"] == "list_type" and isinstance(given, str):
            reason = f"expected a list: {option}=[{given}]"
        elif not isinstance(given, dict | BaseModel) and repr(given) not in reason:
            reason = f"{reason[0].lower()}{reason[1:]}, got {given!r}"
            if option == "sparsity" and first["type"] == "less_than":
                reason += "; a fraction is meant: 0.5 for 50 %"
        raise UserError(reason, option) from None
