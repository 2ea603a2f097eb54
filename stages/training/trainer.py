"""One training loop, dense and sparse: from a model and rows of tokens to a trained model and its masks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.contracts import Log, UserError
from pipeline.schema import Distill, Training
from stages import masks
from stages.families import Family, Rows
from stages.masks import Masks
from stages.training import batches, objective, resume
from stages.training.gradual import Gradual
from stages.training.objective import Distiller, Objective
from stages.training.optim import MaskedOptimizer, learning_rate
from stages.training.resume import Progress

RECENT = 10
"""Steps whose mean loss is reported as `train_loss`."""


@dataclass(frozen=True)
class Plan:
    """Everything a training run needs besides the model."""

    family: Family
    training: Training
    weights: Distill
    rows: Rows
    """All rows of an epoch."""
    validation: Rows
    """Of which the first `training.eval_windows` count."""
    option: str
    """The configuration section that errors name: `finetune` or `dense.training`."""
    gradual: Gradual | None = None

    @property
    def steps(self) -> int:
        return batches.count_steps(self.training, len(self.rows))

    def order(self) -> Tensor:
        """Row numbers of all steps, batch_size each."""
        config = self.training
        order_N = batches.order(len(self.rows), self.steps * config.batch_size, config.seed)
        if not config.group_by_length:
            return order_N
        return batches.grouped(order_N, self.rows.sizes, config.batch_size, config.seed)


def train(model: Any, plan: Plan, teacher: Distiller | None, pruned: Masks, log: Log) -> tuple[Masks, dict[str, float]]:
    """Trains `model` in place; returns its masks and the summary metrics. 0 steps: only the validation loss.

    Goes on from the last checkpoint in `log.resume`. Raises UserError when training diverges.
    """
    run = _Run(model, plan, teacher, pruned, log)
    every = plan.training
    with log.bar(plan.option.split(".")[0], total=plan.steps, unit="step") as bar:
        bar.advance(run.done.step)
        while run.done.step < plan.steps:
            found = run.step()
            log.metrics(found, step=run.done.step)
            bar.advance(loss=found["loss"])
            if run.done.step < plan.steps:
                if every.eval_every and run.done.step % every.eval_every == 0:
                    run.validate()
                if every.checkpoint_every and run.done.step % every.checkpoint_every == 0:
                    run.save()
    model.eval()
    masks.check(model, run.pruned)
    metrics = {"validation_loss": run.validate(), "steps": float(plan.steps), "tokens": float(run.done.tokens)}
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
        if checkpoint := resume.last(log.resume):
            self.pruned, self.done = resume.restore(checkpoint, model, self.optimizer.inner)
            self.optimizer.set_masks(self.pruned)
            log.rewind(self.done.step)
            log.note(f"resumes after step {self.done.step} of {plan.steps}")
        if (warmup := plan.training.warmup_steps) >= plan.steps > 0:
            log.note(f"{plan.option}.warmup_steps={warmup} of {plan.steps} steps: the full lr is never reached")

    def step(self) -> dict[str, float]:
        """One optimizer step, and the mask update that follows it. Returns what is logged."""
        begin, config, plan, done = time.perf_counter(), self.plan.training, self.plan, self.done
        chosen_B = self.order[done.step * config.batch_size :][: config.batch_size]
        micro = list(batches.micro_batches(plan.rows, chosen_B, config.micro_batch_size, self.model.device))
        with torch.random.fork_rng(devices=[]):
            # dropout draws what it would draw in a run that was never interrupted
            torch.manual_seed(config.seed * batches.EPOCHS + done.step)
            found = {name: float(term) for name, term in self.objective.backward(self.model, self.head, micro).items()}
        loss, reference = found["loss"], done.reference
        if not reference or done.remasked:
            # pruning raises the loss; that is no divergence
            reference = max(reference, loss)
        if not math.isfinite(loss):
            raise self._diverged(f"loss {loss}")
        if loss > config.divergence * reference:
            raise self._diverged(f"loss {loss:.4g} is over {config.divergence:g} times {reference:.4g}, where it began")
        lr = learning_rate(done.step, plan.steps, config)
        grad_norm = float(self.optimizer.step(lr))
        if not math.isfinite(grad_norm):
            raise self._diverged(f"gradient norm {grad_norm}")
        tokens = sum(int(batch["use"].sum()) for _, batch in micro)
        seconds = time.perf_counter() - begin
        recent = [*done.losses, loss][-RECENT:]
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
        plan, config = self.plan, self.plan.training
        loss = objective.validation_loss(
            self.model, self.head, plan.family, plan.validation, config.eval_windows, config.micro_batch_size,
            config.precision,
        )  # fmt: skip
        self.log.metrics({"validation_loss": loss}, step=self.done.step)
        return loss

    def save(self) -> None:
        resume.save(self.log.resume, self.model, self.optimizer.inner, self.pruned, self.done)

    def _diverged(self, what: str) -> UserError:
        kept = resume.last(self.log.resume)
        good = f"the last good checkpoint, where the same run would go on, is kept in {kept}"
        return UserError(
            f"diverged at step {self.done.step + 1}: {what}; {good if kept else 'no checkpoint was made yet'}; "
            "lower the learning rate",
            f"{self.plan.option}.lr",
        )
