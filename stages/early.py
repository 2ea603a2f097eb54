"""What the record of a model and of its data tells of a stage's options, without torch: skips, N:M, lengths, counts.

The stages check the same once more on the model itself. Counts of tokens are not known here: a token has at least one
byte, so what asks for more tokens than a split has bytes is refused, and the rest is left to the stages' `check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from stages.benchmark.spec import BenchmarkOptions
from stages.calibrate.spec import Calibrate
from stages.contracts import Checkpoint, Corpus, DataSet, Examples, Structure, UserError
from stages.dense.spec import DenseOptions
from stages.evaluate.spec import EvaluateOptions
from stages.finetune.spec import FinetuneOptions, Training
from stages.prune.spec import Prune, PruneOptions, parse_pattern
from stages.quantize.spec import Quantize
from stages.skipping import skipped


def check(stage: str, config: BaseModel, model: Checkpoint, data: DataSet | None) -> None:
    """Raises UserError for options of a stage that cannot go well with this model and these data."""
    structure = model.structure()
    if structure is not None:
        check_structure(stage, config, structure, data)


def check_structure(stage: str, config: BaseModel, model: Structure, data: DataSet | None) -> None:
    """The same, of a model of this structure."""
    _CHECKS[stage](config, model, data)


SPARE = 0.01
"""Zeros beyond a level that may stay (`stages.prune`)."""


def check_start(config: BaseModel, zeros: float) -> None:
    """Raises UserError for a level below the share of `zeros` with which the model came."""
    for level, option in (
        (config.sparsity, "sparsity") if isinstance(config, PruneOptions) else (0.0, ""),
        (config.cubic.initial, "schedule.initial")
        if isinstance(config, FinetuneOptions) and config.cubic
        else (0.0, ""),
    ):
        if level and level < zeros - SPARE:
            raise UserError(
                f"the model comes with {zeros:.1%} zeros, which pruning to {level:.1%} would have to undo; choose a "
                "level above that, or model.masks=none to forget its zeros",
                option,
            )


def _prune(config: PruneOptions, model: Structure, data: DataSet | None) -> None:
    if config.sparsity:
        check_pruner(config.prune, model)


def check_pruner(config: Prune, model: Structure) -> None:
    left_alone = skipped(config.skip, model.linears, "prune.skip", model.left_alone)
    if config.pattern == "unstructured":
        return
    _, group = parse_pattern(config.pattern)
    for name, (_, num_inputs) in model.linears.items():
        if name not in left_alone and num_inputs % group:
            raise UserError(
                f"groups of {group} do not divide the {num_inputs} inputs of {name}; choose another N:M, or leave it "
                "out with prune.skip",
                "prune.pattern",
            )


def _calibrate(config: Calibrate, model: Structure, data: DataSet | None) -> None:
    check_length(model, config.length, "calibrate.length")
    _check_split(data, config.split, "calibrate.split")
    _check_tokens(data, config.split, config.samples * config.length, "calibrate.samples")


def _dense(config: DenseOptions, model: Structure, data: DataSet | None) -> None:
    _train(config.training, "dense.training", model)


def _finetune(config: FinetuneOptions, model: Structure, data: DataSet | None) -> None:
    _train(config.training, "finetune", model)
    if config.distill.squarehead and "squarehead" in model.refused:
        raise UserError(model.refused["squarehead"], "distill.squarehead")
    if config.cubic:
        check_pruner(config.cubic.prune, model)


def _train(config: Training, option: str, model: Structure) -> None:
    check_length(model, config.sequence_length, f"{option}.sequence_length")
    if "training" in model.refused:
        raise UserError(model.refused["training"], "model.path")


def _quantize(config: Quantize, model: Structure, data: DataSet | None) -> None:
    left = len(model.linears) - len(skipped(config.skip, model.linears, "quantize.skip", model.left_alone))
    if config.skip_sensitive >= left:
        raise UserError(f"would leave none of {left} linears to quantize", "quantize.skip_sensitive")


def _evaluate(config: EvaluateOptions, model: Structure, data: DataSet | None) -> None:
    if asked := config.perplexity:
        check_length(model, asked.length, "evaluate.perplexity.length")
        _check_split(data, asked.split, "evaluate.perplexity.split")
        tokens = max(asked.windows, 1) * asked.length
        _check_tokens(data, asked.split, tokens, "evaluate.perplexity.windows")
    if config.generation:
        _check_split(data, config.generation.split, "evaluate.generation.split")


def _benchmark(config: BenchmarkOptions, model: Structure, data: DataSet | None) -> None:
    if isinstance(data, Corpus):  # encoder-decoders read whole examples
        length = config.prompt_tokens + config.new_tokens
        check_length(model, length, "benchmark.prompt_tokens")


def check_length(model: Structure, length: int, option: str) -> None:
    if model.context is not None and length > model.context:
        raise UserError(f"{length} tokens do not fit the model's context of {model.context}", option)


def _check_split(data: DataSet | None, split: str, option: str) -> None:
    if data is None:
        return
    assert isinstance(data, Corpus | Examples)
    try:
        data.split(split)
    except UserError as error:
        raise UserError(error.message, option) from None


def _check_tokens(data: DataSet | None, split: str, tokens: int, option: str) -> None:
    if not isinstance(data, Corpus) or data.format != "text":
        return
    num_bytes = data.split(split).stat().st_size
    if tokens > num_bytes:
        raise UserError(f"asks for {tokens:,} tokens, the split {split!r} has {num_bytes:,} bytes of text", option)


_CHECKS: dict[str, Callable[[Any, Structure, DataSet | None], None]] = {
    "calibrate": _calibrate,
    "dense": _dense,
    "prune": _prune,
    "finetune": _finetune,
    "quantize": _quantize,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
}
