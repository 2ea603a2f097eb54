"""The training loop, dense and sparse: from a model and rows of tokens to a trained model and its masks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from stages import masks
from stages.contracts import Log, Stopped, UserError
from stages.families import Family, Rows
from stages.finetune import batches, objective, resume
from stages.finetune.gradual import Gradual
from stages.finetune.objective import Distiller, Objective
from stages.finetune.optim import MaskedOptimizer, learning_rate
from stages.finetune.randomness import seeded
from stages.finetune.resume import Progress
from stages.finetune.spec import Distill, Training
from stages.masks import Masks
from stages.precision import held, holding

RECENT = 10
"""Steps whose mean loss is reported as `train_loss`, and compared with the initial loss."""
SMALL_RISE = 2.0
"""Smallest rise of the mean loss, in its units (nats for CE and KD), that counts as divergence: a loss that begins near
0 may triple in good health, and one batch may be easier than the next."""


@dataclass(frozen=True)
class Plan:
    """Everything a training run needs besides the model."""

    family: Family
    training: Training
    weights: Distill
    rows: Rows
    """All rows of an epoch."""
    validation: Rows
    """Validation rows, of which the first `training.eval_windows` count."""
    option: str
    """Configuration section that errors name: `finetune` or `dense.training`."""
    gradual: Gradual | None = None
    state: Path | None = None
    """Folder for what another training needs to continue after the last step; None: nothing is kept."""
    validation_parts: Mapping[str, Rows] = field(default_factory=dict)
    """For a packed corpus, the validation rows of each source, whose losses are measured at the end."""

    @cached_property
    def steps(self) -> int:
        if self.training.tokens:
            return batches.steps_of_tokens(self.training, self.rows.sizes)
        return batches.count_steps(self.training, len(self.rows))

    def order(self) -> Tensor:
        """Returns the row numbers of all steps, batch_size each."""
        config = self.training
        order_N = batches.order(len(self.rows), self.steps * config.batch_size, config.seed)
        if not config.group_by_length:
            return order_N
        return batches.grouped(order_N, self.rows.sizes, config.batch_size, config.seed)


def train(model: Any, plan: Plan, teacher: Distiller | None, pruned: Masks, log: Log) -> tuple[Masks, dict[str, float]]:
    """Trains `model` in place; returns its masks and the summary metrics. 0 steps: only the validation loss.

    With precision=fp32, weights stored in 16 bits are fp32 while they train and are rounded at the end; the last
    validation loss is that of the rounded ones.

    Resumes from the last good checkpoint in `log.resume`. Raises UserError when training diverges, and Stopped, after
    saving a checkpoint, when `log.should_stop`.
    """
    dtype = held(plan.training)
    with holding(model, dtype):
        run = _Run(model, plan, teacher, pruned, log)
        run.take_steps()
        if plan.state:
            resume.save(plan.state, run.optimizer, run.pruned, run.done)
    model.eval()
    masks.check(model, run.pruned)
    with holding(model, dtype):
        validation_loss = run.validate()
        parts = {f"validation_loss_{name}": run.loss_on(rows) for name, rows in plan.validation_parts.items()}
    metrics = {
        "validation_loss": validation_loss,
        **parts,
        "steps": float(plan.steps),
        "tokens": float(run.done.tokens),
    }
    if plan.steps:
        losses, rate = run.done.losses, run.done.tokens / run.done.seconds
        metrics |= {"train_loss": sum(losses) / len(losses), "tokens_per_second": rate}
    return run.pruned, metrics


class _Run:
    """The state of a training run between two steps."""

    def __init__(self, model: Any, plan: Plan, teacher: Distiller | None, pruned: Masks, log: Log) -> None:
        self.model, self.plan, self.pruned, self.log = model, plan, pruned, log
        self.order = plan.order()
        self.head = plan.family.head(model)
        self.objective = Objective(plan.family, plan.weights, plan.training.precision, teacher)
        self.optimizer = MaskedOptimizer(model, plan.training, pruned)
        self.done = Progress()
        model.train()
        if plan.training.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if found := resume.restore(log.resume, self.optimizer, pruned, plan.steps, log):
            self.pruned, self.done = found
            log.rewind(self.done.step)
            log.note(f"resumes after step {self.done.step} of {plan.steps}")
        if (warmup := plan.training.warmup_steps) >= plan.steps > 0:
            log.note(f"{plan.option}.warmup_steps={warmup} of {plan.steps} steps: the full lr is never reached")

    def take_steps(self) -> None:
        """Takes all remaining steps, with validations and checkpoints on the way."""
        plan, config, log = self.plan, self.plan.training, self.log
        with log.bar(plan.option.split(".")[0], total=plan.steps, unit="step") as bar:
            bar.advance(self.done.step)
            while self.done.step < plan.steps:
                found = self.step()
                log.metrics(found, step=self.done.step)
                bar.advance(loss=found["loss"])
                if self.done.step == plan.steps:
                    return
                if config.eval_every and self.done.step % config.eval_every == 0:
                    self.validate()
                stops = log.should_stop
                if stops or (config.checkpoint_every and self.done.step % config.checkpoint_every == 0):
                    self.save()
                if stops:
                    raise Stopped(
                        f"stopped after step {self.done.step} of {plan.steps}; the same command resumes there"
                    )

    def step(self) -> dict[str, float]:
        """Takes one optimizer step, and the mask update that follows it. Returns the values to log."""
        begin, config, plan, done = time.perf_counter(), self.plan.training, self.plan, self.done
        chosen_B = self.order[done.step * config.batch_size :][: config.batch_size]
        micro = list(batches.micro_batches(plan.rows, chosen_B, config.micro_batch_size, self.model.device))
        lr = learning_rate(done.step, plan.steps, config)
        with seeded(config.seed, done.step):
            found = {name: float(term) for name, term in self.objective.backward(self.model, self.head, micro).items()}
            loss = found["loss"]
            if not math.isfinite(loss):
                raise self._not_finite(found)
            recent = [*done.losses, loss][-RECENT:]
            # pruning raises the loss; that is no divergence
            reference = max(done.reference, loss) if done.remasked or not done.step else done.reference
            self._check_rise(sum(recent) / len(recent), reference)
            grad_norm = float(self.optimizer.step(lr))
            if not math.isfinite(grad_norm):
                raise self._not_finite(found | {"gradient norm": grad_norm})
        tokens = sum(int(batch["use"].sum()) for _, batch in micro)
        seconds = time.perf_counter() - begin
        self.done = Progress(done.step + 1, done.tokens + tokens, done.seconds + seconds, reference, False, recent)
        if plan.gradual and plan.gradual.due(self.done.step):
            self.pruned = plan.gradual.update(self.model, self.pruned, self.done.step, self.log)
            self.optimizer.set_masks(self.pruned)
            self.done.remasked = True
        logged = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens_per_second": tokens / seconds}
        logged |= {f"loss_{name}": found[name] for name in found if name != "loss"}
        return logged | ({"sparsity": masks.sparsity(self.pruned)} if plan.gradual else {})

    def validate(self) -> float:
        """Logs and returns the validation loss."""
        loss = self.loss_on(self.plan.validation)
        self.log.metrics({"validation_loss": loss}, step=self.done.step)
        return loss

    def loss_on(self, rows: Rows) -> float:
        plan, config = self.plan, self.plan.training
        return objective.validation_loss(
            self.model, self.head, plan.family, rows, config.eval_windows, config.micro_batch_size, config.precision
        )

    def save(self) -> None:
        resume.save(self.log.resume, self.optimizer, self.pruned, self.done)

    def _check_rise(self, mean: float, began: float) -> None:
        """Raises UserError when the mean of the recent losses is a multiple of the initial loss."""
        factor, section = self.plan.training.divergence, self.plan.option
        if mean <= factor * began:
            return
        weights = self.plan.weights
        if mean - began > SMALL_RISE * sum(term.weight for term in weights.terms):
            raise self._diverged(
                f"loss {mean:.4g}, the mean of the last steps, is over {factor:g} times the initial {began:.4g}",
                f"lower {section}.lr, or raise {section}.divergence to train on",
                f"{section}.divergence",
            )

    def _not_finite(self, found: dict[str, float]) -> UserError:
        """Returns the error. It blames the learning rate only after the first step, which does not depend on it."""
        what = next(f"{name} {value}" for name, value in found.items() if not math.isfinite(value))
        heaviest = max(self.plan.weights.terms, key=lambda term: term.weight)
        weighted = f"{heaviest.option}={heaviest.weight:g}"
        lr, is_heavy = f"{self.plan.option}.lr", heaviest.weight > 1
        if self.done.step:
            return self._diverged(what, f"lower {lr}{f', or {weighted}' if is_heavy else ''}", lr)
        if is_heavy:
            return self._diverged(what, f"lower {weighted}", heaviest.option)
        return self._diverged(what, "the model is at fault, or its precision", "model.path")

    def _diverged(self, what: str, way_out: str, option: str) -> UserError:
        kept = resume.last(self.log.resume)
        good = f"the last good checkpoint, from which the same run would resume, is kept in {kept}"
        checkpoint = good if kept else "no checkpoint was made yet"
        return UserError(f"diverged at step {self.done.step + 1}: {what}; {checkpoint}; {way_out}", option)
