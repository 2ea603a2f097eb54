"""Prunes a model block by block: each block is calibrated on the outputs of the blocks pruned before it.

Linears of a block that receive the same input tensor are found while it runs; they share one Hessian and, for
SparseGPT, one factor of it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.unfused import RoutedLinear
from stages import sealed
from stages.contracts import Bar, Log, Stopped, UserError
from stages.families import Batch, Family
from stages.masks import Masks
from stages.prune import nesting, sparsegpt
from stages.prune.cost import HESSIAN_BYTES
from stages.prune.goals import goals as allocate
from stages.prune.inputs import useful
from stages.prune.pruners import PRUNERS, Linears
from stages.prune.reconstructions import RECONSTRUCTIONS
from stages.prune.selection import Target, shape_of
from stages.prune.spec import HessianOptions, Prune
from stages.prune.walk import Reached, Walk, at_rest
from stages.skipping import skipped

BLOCK_FILE = "block.safetensors"


@dataclass(frozen=True)
class LayerReport:
    """Report of pruning one linear."""

    name: str
    sparsity: float
    error: float | None
    """`‖(W - Ŵ)X‖² / ‖WX‖²` on the calibration tokens; None where there were none."""
    damping: float | None
    """Relative damping that SparseGPT used."""
    seconds: float
    """Time to prune it, without the calibration passes; linears that share an input share the time."""
    reached: bool = True
    """False for an expert that no calibration token reached (`Group.reached`)."""
    target: Target = 0.0
    """Target of the linear."""


def note_unreached(reports: Sequence[LayerReport], log: Log) -> None:
    """Logs the experts that were pruned without knowing their inputs."""
    if unreached := [report.name for report in reports if not report.reached]:
        log.note(
            f"no calibration token reaches {len(unreached)} linears of experts, first {unreached[0]}; their smallest "
            "weights were pruned, as many as in the others"
        )
        log.facts(unreached=unreached)


def note_raised_damping(reports: Sequence[LayerReport], config: Prune, log: Log) -> None:
    """Logs the Hessians that needed more damping than configured to be positive definite."""
    if not isinstance(config, HessianOptions):
        return
    if raised := [report for report in reports if (report.damping or 0) > config.damping]:
        most = max(report.damping or 0 for report in raised)
        log.note(f"damping was raised, up to {most:g}, for {len(raised)} linears, first {raised[0].name}")


@dataclass
class Group:
    """Linears of a block that see the same input."""

    names: list[str]
    H_II: Tensor | None
    """Hessian, upper triangle; None if the pruner needs nothing of the inputs."""
    seen: int = 0
    reached: bool = True
    """False for an expert to which no calibration token is routed: the identity replaces its Hessian, so that its
    lowest weights are pruned, with the counts of the method."""


@dataclass
class Collector:
    """Gathers the Hessians of a block's linears while it runs. Padding tokens are left out."""

    linears: Mapping[str, nn.Linear]
    family: Family
    bf16: bool
    groups: dict[str, Group] = field(default_factory=dict)
    """Groups by name of their first linear."""
    batch: Batch = field(default_factory=dict)
    """The current micro-batch."""
    _leader: dict[str, str] = field(default_factory=dict)
    _now: dict[str, Tensor] = field(default_factory=dict)
    """Inputs in the current micro-batch, by first linear; held so that their memory is not reused by the next."""
    _called: list[str] = field(default_factory=list)
    _order: list[str] | None = None

    def enter(self, batch: Batch) -> None:
        """Begins a new micro-batch."""
        if self._called and self._order is None:
            self._order = self._called
        self.batch = batch
        self._now.clear()
        self._called = []

    def see(self, name: str, X: Tensor) -> None:
        """Records the input `X` (..., in) of a linear."""
        if name in self._called:
            raise UserError(f"{name} runs twice in one pass; a shared linear cannot be pruned", "prune.skip")
        self._called.append(name)
        leader = next((leader for leader, held in self._now.items() if held is X), name)
        if self._leader.setdefault(name, leader) != leader:
            raise UserError(f"{name} shares its input with other linears in some passes only", "prune.skip")
        if leader == name:
            self._now[name] = X
            self._accumulate(name, X)
        elif name not in self.groups[leader].names:
            self.groups[leader].names.append(name)
        # computation after the last linear's input is not needed; which experts run is not known beforehand
        if self._order and not self._routed and len(self._called) == len(self._order) == len(self.linears):
            raise Reached

    def _accumulate(self, name: str, X: Tensor) -> None:
        X_TI = useful(name, self.linears[name], X, self.batch, self.family)
        if name not in self.groups:
            H_II = torch.zeros(X.shape[-1], X.shape[-1], device=X.device)
            self.groups[name] = Group([name], H_II)
        group = self.groups[name]
        if not len(X_TI):
            return
        with torch.autocast(X.device.type, enabled=False):
            # under autocast the linear itself sees its input in bf16
            assert group.H_II is not None
            group.seen = sparsegpt.accumulate_(group.H_II, X_TI.bfloat16() if self.bf16 else X_TI, group.seen)

    def collect(self, walk: Walk) -> list[Group]:
        """Runs the walk's next block. Raises UserError for a linear that no token reaches."""
        handles = [
            linear.register_forward_pre_hook(lambda module, args, name=name: self.see(name, args[0]))
            for name, linear in self.linears.items()
        ]
        try:
            walk.look(self.enter)
        finally:
            for handle in handles:
                handle.remove()
        found = list(self.groups.values())
        reached = {name for group in found for name in group.names if group.seen}
        for name, linear in self.linears.items():
            if name in reached:
                continue
            if not isinstance(linear, RoutedLinear):
                raise UserError(f"no calibration token reaches {name}", "prune.skip")
            H_II = torch.eye(linear.in_features, device=linear.weight.device)
            found = [group for group in found if name not in group.names]
            found.append(Group([name], H_II, reached=False))
        return found

    @property
    def _routed(self) -> bool:
        return any(isinstance(linear, RoutedLinear) for linear in self.linears.values())


def prune_model(
    model: Any,
    family: Family,
    samples: Batch | None,
    config: Prune,
    sparsity: float,
    previous: Masks,
    log: Log,
    resume: Path | None = None,
) -> tuple[Masks, list[LayerReport]]:
    """Prunes `model` in place to `sparsity`; `previous` masks stay pruned. Works on a model in training as well.

    Linears that are left alone have a mask only if an earlier one prunes something. Calibration `samples` are read by
    pruners that need statistics of the inputs; others run no forward pass. Finished blocks are kept in the folder
    `resume`, if given, and taken from there. Raises UserError.
    """
    by_block = _by_block(model, family, config)
    blocks = list(by_block.values())
    if not sparsity:
        ones = {name: _ones(linear) for linears in blocks for name, linear in linears.items()}
        return ones | previous, [LayerReport(name, _sparsity((ones | previous)[name]), 0.0, None, 0.0) for name in ones]
    shapes = {name: shape_of(linear) for linears in blocks for name, linear in linears.items()}
    if samples is None and config.needs != "nothing":
        raise UserError(f"{config.method} needs calibration samples", "prune.method")

    def begin() -> Walk:
        assert samples is not None
        return Walk(model, family, samples, config.precision, config.micro_batch_size)

    with at_rest(model):
        goals = allocate(by_block, config, sparsity, begin)
    if line := nesting.check(shapes, goals, previous, config, sparsity):
        log.note(line)
    walk = begin() if config.needs != "nothing" else None
    masks = {name: keep_OI for name, keep_OI in previous.items() if not keep_OI.all()}
    reports: list[LayerReport] = []
    with at_rest(model), log.bar(f"prune to {sparsity:.0%}", total=len(blocks), unit="block") as bar:
        for number, linears in enumerate(blocks):
            saved = resume / f"block_{number:04d}" if resume else None
            restored = _restore(saved, linears, log) if saved else None
            kept, found = restored or _prune_block(linears, family, walk, config, goals, previous)
            if saved and not restored:
                _save(saved, linears, kept, found)
            masks |= kept
            reports += found
            if walk and number + 1 < len(blocks):
                walk.advance()
            _advance(bar, found)
            if saved and log.should_stop and number + 1 < len(blocks):
                raise Stopped(f"stopped after block {number + 1} of {len(blocks)}; the same command resumes there")
    return masks, reports


def linears_to_prune(model: Any, family: Family, config: Prune) -> dict[str, nn.Linear]:
    """Returns the linears by name, in execution order."""
    return {name: linear for linears in _by_block(model, family, config).values() for name, linear in linears.items()}


def _by_block(model: Any, family: Family, config: Prune) -> dict[str, dict[str, nn.Linear]]:
    """Returns the linears to prune, by the name of their block."""
    prunable = family.prunable(model)
    skips = skipped(config.skip, prunable, "prune.skip", family.left_alone(model))
    return {
        block: {name: linear for name, linear in prunable.items() if name.startswith(f"{block}.") and name not in skips}
        for block, _ in family.blocks(model)
    }


def _prune_block(
    linears: Mapping[str, nn.Linear],
    family: Family,
    walk: Walk | None,
    config: Prune,
    goals: Mapping[str, Target],
    previous: Masks,
) -> tuple[Masks, list[LayerReport]]:
    masks: Masks = {}
    reports: list[LayerReport] = []
    pruner = PRUNERS.get(config.method)
    reconstruction = RECONSTRUCTIONS.get(config.reconstruction.method)
    pruned: dict[str, Tensor] = {}
    for group in _groups(linears, family, walk, config):
        begin = time.perf_counter()
        weights = [linears[name].weight.detach().clone() for name in group.names]
        kept = [_on(weight.device, previous.get(name)) for weight, name in zip(weights, group.names, strict=True)]
        with _naming(group.names):
            given = Linears(group.names, weights, kept, [goals[name] for name in group.names], group.H_II)
            found = pruner.prune(given, config)
            dense = [linears[name].weight.detach() for name in group.names]
            found = reconstruction.refine(dense, given, found, config.reconstruction)
        seconds = (time.perf_counter() - begin) / len(group.names)
        for name, W_OI, keep_OI in zip(group.names, found.weights, found.keeps, strict=True):
            before_OI = linears[name].weight.detach()
            pruned[name] = W_OI.to(before_OI.dtype)
            masks[name] = keep_OI.cpu()
            error = None
            if group.H_II is not None and group.reached:
                error = sparsegpt.relative_error(before_OI, pruned[name], group.H_II)
            reports.append(
                LayerReport(name, _sparsity(keep_OI), error, found.damping, seconds, group.reached, goals[name])
            )
    # only now, since all Hessians are those of the unpruned block
    for name, W_OI in pruned.items():
        linears[name].weight.data.copy_(W_OI)
    return masks, reports


def _groups(linears: Mapping[str, nn.Linear], family: Family, walk: Walk | None, config: Prune) -> Iterator[Group]:
    """Yields linears that see the same input, with their Hessian; only as many Hessians at a time as `HESSIAN_BYTES`
    hold. Without a walk, each linear by itself."""
    if walk is None:
        yield from (Group([name], None) for name in linears)
        return
    for part in _parts(linears):
        yield from Collector(part, family, config.precision == "bf16").collect(walk)


def _parts(linears: Mapping[str, nn.Linear]) -> list[dict[str, nn.Linear]]:
    """Splits Hessians into parts that fit; one larger than the limit is alone. Linears in two parts that see the same
    input have equal Hessians in both."""
    parts: list[dict[str, nn.Linear]] = []
    room = 0
    for name, linear in linears.items():
        size = 4 * linear.in_features**2
        if not parts or size > room:
            parts.append({})
            room = HESSIAN_BYTES
        parts[-1][name] = linear
        room -= size
    return parts


@contextmanager
def _naming(names: list[str]) -> Any:
    """Puts the linears' names before the errors of the pure functions."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{', '.join(names)}: {error.message}", error.option) from None


def _ones(linear: nn.Linear) -> Tensor:
    return torch.ones_like(linear.weight, dtype=torch.bool, device="cpu")


def _on(device: torch.device, keep_OI: Tensor | None) -> Tensor | None:
    return None if keep_OI is None else keep_OI.to(device)


def _sparsity(keep_OI: Tensor) -> float:
    return 1 - int(keep_OI.sum()) / keep_OI.numel()


def _advance(bar: Bar, reports: list[LayerReport]) -> None:
    errors = [report.error for report in reports if report.error is not None]
    if errors:
        bar.advance(error=sum(errors) / len(errors))
    else:
        bar.advance()


def _save(place: Path, linears: Mapping[str, nn.Linear], masks: Masks, reports: list[LayerReport]) -> None:
    tensors = {f"{name}.weight": linear.weight.detach().contiguous() for name, linear in linears.items()}
    tensors |= {f"{name}.keep": masks[name].contiguous() for name in linears}
    writing = sealed.begin(place.parent)
    described = json.dumps([asdict(report) for report in reports])
    save_file(tensors, writing / BLOCK_FILE, metadata={"reports": described})
    sealed.finish(writing, place)


def _report(read: dict[str, Any]) -> LayerReport:
    target = read["target"]
    return LayerReport(**read | {"target": tuple(target) if isinstance(target, list) else target})


def _restore(place: Path, linears: Mapping[str, nn.Linear], log: Log) -> tuple[Masks, list[LayerReport]] | None:
    """Restores the weights of a block that was pruned before, and returns its masks and reports. None if there is
    nothing; a damaged one is reported to `log` and deleted."""
    if not place.exists():
        return None
    trouble = sealed.damage(place)
    if not trouble:
        try:
            with safe_open(place / BLOCK_FILE, framework="pt") as file:
                reports = [_report(report) for report in json.loads(file.metadata()["reports"])]
                weights = {name: file.get_tensor(f"{name}.weight") for name in linears}
                masks = {name: file.get_tensor(f"{name}.keep") for name in linears}
            if all(weights[name].shape == masks[name].shape == linear.weight.shape for name, linear in linears.items()):
                for name, linear in linears.items():
                    linear.weight.data.copy_(weights[name])
                return masks, reports
            trouble = "it is of another model"
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            trouble = f"it does not fit this run: {error}"
    log.note(f"the pruned {place.name} of an earlier attempt is unusable ({trouble}); it is pruned again")
    shutil.rmtree(place)
    return None
