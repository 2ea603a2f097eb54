"""The parts of recipes: each adds nodes to a graph and returns the name of the node it adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pipeline.graph import BASELINE, Graph, add
from pipeline.schema import Config
from stages.benchmark.spec import BenchmarkOptions
from stages.contracts import UserError
from stages.corpus_perplexity.spec import CorpusPerplexityOptions
from stages.data.formats import FORMATS
from stages.dense.spec import DenseOptions
from stages.evaluate.early import check_options as check_evaluation
from stages.evaluate.spec import EvaluateOptions
from stages.finetune.spec import DECAY_FRACTION, CubicOptions, Distill, FinetuneOptions, stable_steps
from stages.model.families import FAMILIES
from stages.model.spec import ModelOptions
from stages.options import Options
from stages.prepare.spec import PrepareOptions
from stages.prune.pattern import parse_pattern
from stages.prune.spec import Prune, PruneOptions
from stages.reinitialize.spec import ReinitializeOptions
from stages.scratch.spec import ScratchOptions

T = TypeVar("T", bound=Options)
TASK_LOSS = Distill(ce=1.0, kd=0.0, squarehead=0.0, temperature=1.0, eps=0.0, normalize="layer", skip_first=0)
PREPARED = ("pairs", "clips")
"""Kinds of rows that models do not read directly."""


TEST_DATA = "test_data"


def sources(graph: Graph, config: Config) -> str:
    """Adds `model`, `data` and, if configured, `corpus`. A model from scratch takes its tokenizer, and so its node,
    from the corpus's sources, or else from the data. Returns the node of the data as the model reads them."""
    if config.model.scratch and not config.corpus:
        add(graph, "data", "data", config.data)
        add(graph, "model", "scratch", _part(ScratchOptions, config.model), data="data")
    elif config.model.scratch:
        add(graph, "model", "scratch", _part(ScratchOptions, config.model, corpus=config.corpus))
    else:
        add(graph, "model", "model", _part(ModelOptions, config.model))
    add(graph, "data", "data", config.data)
    if config.test_data:
        add(graph, TEST_DATA, "data", config.test_data)
    if config.corpus:  # after the sources, with which everything is checked before any stage works
        add(graph, "corpus", "corpus", config.corpus, model="model")
    if FORMATS.get(config.data.format).rows in PREPARED:
        return add(graph, "prepare", "prepare", PrepareOptions(), model="model", data="data")
    return "data"


def base(graph: Graph, config: Config) -> str:
    """Adds the model before it meets a task: as it came, or pretrained on the corpus first."""
    if not config.pretrain:
        return "model"
    options = DenseOptions(training=config.pretrain, distill=TASK_LOSS, option="pretrain")
    return add(graph, "base", "dense", options, model="model", data="corpus")


def foundation(graph: Graph, config: Config, base: str) -> str:
    """Adds sparse pretraining of the base: prune, then train on the corpus with fixed masks, for each step. Returns the
    last model."""
    found = config.foundation
    assert found
    config = config.model_copy(update={"prune": found.prune or config.prune})
    calibration = None
    if found.sparsity and reads_inputs(config):
        if config.calibrate.draw == "documents":
            raise UserError("samples of a packed corpus are windows; expected windows", "calibrate.draw")
        calibration = add(graph, "calibrate_corpus", "calibrate", config.calibrate, model="model", data="corpus")
    model, level = base, 0.0
    for number, step in enumerate(found.steps, start=1):
        name = f"f{level_name(config, step.sparsity)}"
        if step.sparsity > level:
            model = prune(graph, config, f"prune_{name}", model, step.sparsity, calibration)
            if found.start == "random" and not level:
                model = add(graph, f"random_{name}", "reinitialize", ReinitializeOptions(seed=config.seed), model=model)
        level = step.sparsity
        if not step.tokens:
            continue
        training = found.training.model_copy(
            update={"tokens": step.tokens, "seed": (found.training.seed + number) % 2**32}
        )
        pretraining = FinetuneOptions(training=training, distill=found.distill, option="foundation.training")
        free = name if f"pretrain_{name}" not in graph else f"{name}_{number}"
        model = _pretrain(graph, free, pretraining, step.marks, model, base if found.distill.needs_teacher else None)
    judge = CorpusPerplexityOptions(
        length=found.training.sequence_length, windows=found.training.eval_windows,
        batch_size=found.training.micro_batch_size,
    )  # fmt: skip
    add(graph, "base_eval", "corpus_perplexity", judge, model=base, data="corpus")
    add(graph, "foundation_eval", "corpus_perplexity", judge, model=model, data="corpus", baseline="base_eval")
    return model


def _pretrain(
    graph: Graph, name: str, options: FinetuneOptions, marks: Sequence[int], model: str, teacher: str | None
) -> str:
    """Adds training on the corpus. With `marks`, smaller budgets, training is cut into a trunk of constant learning
    rate, in pieces, and an ending for each budget that continues from the trunk where its decay begins."""
    trunk, done = model, 0
    for budget in (*marks, options.training.tokens):
        training = options.training.model_copy(update={"tokens": budget})
        stable = stable_steps(training) if marks else 0
        if stable > done:
            constant = training.model_copy(
                update={"tokens": 0, "steps": stable, "decay": "constant", "final_lr_fraction": 0.0,
                        "decay_fraction": DECAY_FRACTION}
            )  # fmt: skip
            piece = options.model_copy(update={"training": constant, "keeps_state": True, "continues": done > 0})
            trunk = add(graph, f"trunk_{name}_{stable}", "finetune", piece, model=trunk, data="corpus", teacher=teacher)
            done = stable
        is_last = budget == options.training.tokens
        end = options.model_copy(update={"training": training, "continues": done > 0})
        node = f"pretrain_{name}" if is_last else f"pretrain_{name}_at_{budget}"
        model = add(graph, node, "finetune", end, model=trunk, data="corpus", teacher=teacher)
    return model


def dense(graph: Graph, config: Config, data: str) -> str:
    """Adds the dense model, which is teacher, start and baseline: the base, fine-tuned unless `dense.skip`; and its
    evaluation."""
    model = base(graph, config)
    if not config.dense.skip:
        options = DenseOptions(training=config.dense.training, distill=TASK_LOSS)
        model = add(graph, "dense", "dense", options, model=model, data=data)
    add(graph, BASELINE, "evaluate", judge(config), model=model, data=data, test_data=_tests(graph, config))
    return model


def judge(config: Config, runtime: str = "") -> EvaluateOptions:
    """Returns the options of evaluations, in the given runtime instead of that of floating-point models. Raises
    UserError for what this family of models, or these data, cannot be evaluated on."""
    options = _part(EvaluateOptions, config.evaluate)
    check_evaluation(options, config.model.family, config.data.format)
    return options.model_copy(update={"runtime": runtime}) if runtime else options


def evaluate(graph: Graph, config: Config, name: str, model: str, data: str, runtime: str = "") -> None:
    """Adds an evaluation that is compared with the dense model's."""
    options, tests = judge(config, runtime), _tests(graph, config)
    add(graph, name, "evaluate", options, model=model, data=data, test_data=tests, baseline=BASELINE)


def _tests(graph: Graph, config: Config) -> str | None:
    """Returns the node of the items that metrics evaluate on; None if those are the data's own."""
    return (TEST_DATA if TEST_DATA in graph else "data") if config.test_data else None


def calibrate(graph: Graph, config: Config, data: str) -> str | None:
    """Adds the calibration samples. Returns None if neither the pruner nor the quantizer reads activations."""
    prunes = config.sparsity > 0 and reads_inputs(config)
    if not prunes and not config.quantize.reads_inputs:
        return None
    if config.calibrate.draw == "documents" and FORMATS.get(config.data.format).rows != "texts":
        raise UserError(
            f"documents are drawn from running text, not from data of format {config.data.format}", "calibrate.draw"
        )
    return add(graph, "calibrate", "calibrate", config.calibrate, model="model", data=data)


def prune(graph: Graph, config: Config, name: str, model: str, sparsity: float, calibration: str | None) -> str:
    options = PruneOptions(prune=pattern_at(config, sparsity), sparsity=sparsity)
    return add(graph, name, "prune", options, model=model, calibration=calibration if reads_inputs(config) else None)


def finetune(
    graph: Graph, config: Config, level: str, rung: int, model: str, data: str, teacher: str,
    cubic: CubicOptions | None = None, calibration: str | None = None,
) -> str:  # fmt: skip
    """Adds sparse fine-tuning after the `rung`-th pruning, or with a cubic schedule inside. Returns `model` if nothing
    is to be trained."""
    if config.finetune.is_none:
        return model
    # another order of the data than the dense model and the rungs below saw
    training = config.finetune.model_copy(update={"seed": config.finetune.seed + rung})
    options = FinetuneOptions(training=training, distill=config.distill, cubic=cubic)
    return add(
        graph, f"finetune_{level}", "finetune", options, model=model, data=data,
        teacher=teacher if config.distill.needs_teacher else None,
        calibration=calibration if cubic and reads_inputs(config) else None,
    )  # fmt: skip


def ladder(
    graph: Graph, config: Config, levels: Sequence[float], model: str, data: str, teacher: str,
    calibration: str | None, start: float = 0.0,
) -> str:  # fmt: skip
    """Adds a pruning and a fine-tuning for each level, and, if configured, the evaluation of each but the last. A model
    that is at the level already, `start`, is only fine-tuned. Returns the last model."""
    for rung, level in enumerate(levels, start=1):
        name = level_name(config, level)
        if level > start:
            model = prune(graph, config, f"prune_{name}", model, level, calibration)
        model = finetune(graph, config, name, rung, model, data, teacher)
        if config.evaluate.every_rung and level != levels[-1]:
            evaluate(graph, config, f"evaluate_{name}", model, data)
    return model


def finish(graph: Graph, config: Config, data: str, dense: str, sparse: str, calibration: str | None) -> None:
    """Adds the one-shot baseline, if configured, the evaluation of the sparse model, and what `deploy` adds."""
    if config.evaluate.one_shot and config.sparsity > 0:
        one_shot = prune(graph, config, "one_shot", dense, config.sparsity, calibration)
        evaluate(graph, config, "one_shot_eval", one_shot, data)
    if sparse != dense:
        evaluate(graph, config, "evaluate", sparse, data)
    deploy(graph, config, data, dense, sparse, calibration)


def deploy(graph: Graph, config: Config, data: str, dense: str, sparse: str, calibration: str | None) -> None:
    """Adds quantization of the sparse model, and of the dense one if configured or if they are the same, their
    evaluations, and the benchmark of all."""
    quantized = quantized_dense = None
    if config.quantize.scheme != "none":
        runtime = config.evaluate.int8_runtime
        scales_from = calibration if config.quantize.reads_inputs else None
        if config.quantize.dense or sparse == dense:
            quantized_dense = add(
                graph, "quantize_dense", "quantize", config.quantize, model=dense, calibration=scales_from
            )
            evaluate(graph, config, "dense_eval_q", quantized_dense, data, runtime)
        quantized = add(graph, "quantize", "quantize", config.quantize, model=sparse, calibration=scales_from)
        evaluate(graph, config, "evaluate_q", quantized, data, runtime)
    if config.benchmark.enabled:
        if config.benchmark.beams > 1 and not FAMILIES.get(config.model.family).is_encoder_decoder:
            raise UserError("beams are measured for encoder-decoders only; expected 0", "benchmark.beams")
        add(
            graph, "benchmark", "benchmark", _part(BenchmarkOptions, config.benchmark), data=data, dense=dense,
            sparse=sparse if sparse != dense else None, quantized=quantized, quantized_dense=quantized_dense,
        )  # fmt: skip


def _part(kind: type[T], section: Options, **more: Options | None) -> T:
    """Builds a stage's options from a section of the configuration, and `more`."""
    own = {name: getattr(section, name) for name in kind.model_fields if name in type(section).model_fields}
    return kind(**own, **more)


def reads_inputs(config: Config) -> bool:
    """Returns whether the pruner needs statistics of the linears' inputs."""
    return config.prune.needs != "nothing"


def level_name(config: Config, sparsity: float) -> str:
    """Returns the name of a rung: `50`, `62.5`, or `2of4`."""
    if config.prune.pattern == "unstructured":
        return f"{100 * sparsity:g}"
    _, group = parse_pattern(config.prune.pattern)
    return f"{group - round(sparsity * group)}of{group}"


def pattern_at(config: Config, sparsity: float) -> Prune:
    """Returns the pruning options of a rung: an N:M ladder keeps its M and lowers its N."""
    if config.prune.pattern == "unstructured":
        return config.prune
    return config.prune.model_copy(update={"pattern": level_name(config, sparsity).replace("of", ":")})


def cubic(config: Config) -> CubicOptions:
    schedule, training = config.schedule, config.finetune
    for unit in ("epochs", "tokens"):
        if getattr(training, unit):
            raise UserError(
                f"a cubic schedule counts steps; give finetune.steps and set {unit} to 0", f"finetune.{unit}"
            )
    end = schedule.end_step or round(0.8 * training.steps)
    if not schedule.begin_step < end <= training.steps:
        raise UserError(
            f"the schedule ends at step {end}; expected between begin_step={schedule.begin_step} and "
            f"finetune.steps={training.steps}", "schedule.end_step",
        )  # fmt: skip
    if schedule.update_every > end - schedule.begin_step:
        raise UserError(
            f"{schedule.update_every} steps are more than the schedule's {end - schedule.begin_step}, so that only its "
            "end would prune", "schedule.update_every",
        )  # fmt: skip
    if schedule.initial >= config.sparsity:
        raise UserError(f"starts at {schedule.initial:g}, not below sparsity={config.sparsity:g}", "schedule.initial")
    return CubicOptions(
        prune=config.prune,
        initial=schedule.initial,
        final=config.sparsity,
        begin_step=schedule.begin_step,
        end_step=end,
        update_every=schedule.update_every,
    )
