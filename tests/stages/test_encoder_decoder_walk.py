"""The walk through T5 and Whisper: Hessians of cross-attention and of real tokens, and where it ends."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages import masks
from stages.families import Batch
from stages.families.encoder_decoder import in_encoder
from stages.prune.sequential import Collector, Group
from stages.prune.walk import Walk, at_rest
from tests import tiny_encoder_decoders as tiny_models
from tests.tiny_encoder_decoders import family_of, symmetric

KINDS = ("t5", "t5_gated", "whisper")


@dataclass
class Walked:
    """A model that was pruned at random while it was walked."""

    kind: str
    model: Any
    batches: list[Batch]
    groups: dict[str, list[Group]]
    """Of each block, as it was collected."""
    expected: dict[str, Tensor]
    """Linear -> `2/n X Xᵀ` of a plain forward at that time, over the real tokens."""
    last: list[dict[str, Tensor]]
    """Of each micro-batch: stack -> the last block's output that the walk ends with."""

    def group(self, linear: str) -> Group:
        return next(group for groups in self.groups.values() for group in groups if linear in group.names)


@pytest.fixture(scope="module", params=KINDS)
def walked(request: pytest.FixtureRequest) -> Walked:
    kind: str = request.param
    model = tiny_models.build(kind)
    samples = tiny_models.rows(kind, model).take(torch.arange(4))
    zeros = tiny_models.zeros(kind, model)
    walk = Walk(model, family_of(kind), samples, "fp32", 2)
    found = Walked(kind, model, walk.batches, {}, {}, [])
    with at_rest(model):
        for block, module in walk.blocks:
            linears = {f"{block}.{name}": m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
            found.expected |= hessians(kind, model, linears, walk.batches)
            found.groups[block] = Collector(linears, family_of(kind), False).collect(walk)
            masks.apply_(model, {name: zeros[name] for name in linears})
            if block == walk.blocks[-1][0]:
                with ExitStack() as stack:
                    keep_last_outputs(kind, model, found.last, stack)
                    walk.advance()
            else:
                walk.advance()
    return found


def hessians(kind: str, model: Any, linears: dict[str, nn.Linear], batches: list[Batch]) -> dict[str, Tensor]:
    """By plain forwards: of T5 on each row alone and without padding. Whisper hears the padding of a batch, too; its
    real tokens are chosen by their numbers here."""
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}
    each = [tiny_models.rows(kind, model).take(torch.tensor([i])) for i in range(4)]
    rows = [family_of(kind).trim(row) for row in each] if kind != "whisper" else batches

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            X_BTI = args[0]
            if kind != "whisper":
                seen[name].append(X_BTI.flatten(0, 1))
                return
            reads_sound = ".encoder." in name or "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
            lengths = [f // 2 for f in now["frames"].tolist()] if reads_sound else (now["labels"] >= 0).sum(1).tolist()
            seen[name] += [X_TI[:length] for X_TI, length in zip(X_BTI, lengths, strict=True)]

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, linear in linears.items():
            stack.callback(linear.register_forward_pre_hook(keep(name)).remove)
        for now in rows:
            model(**family_of(kind).inputs(now), use_cache=False)
    joined = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: 2 / len(X_TI) * X_TI.T @ X_TI for name, X_TI in joined.items()}


def keep_last_outputs(kind: str, model: Any, into: list[dict[str, Tensor]], stack: ExitStack) -> None:
    """A new dictionary for each forward, filled by the last block of each stack."""
    adapter = family_of(kind)
    for name in adapter.stacks(model):
        block = model.get_submodule(name)[-1]

        def keep(module: Any, args: Any, output: Any, name: str = name) -> None:
            if in_encoder(name):
                into.append({})
            into[-1][name] = output[0] if isinstance(output, tuple) else output

        stack.callback(block.register_forward_hook(keep, prepend=True).remove)


def test_every_hessian_is_that_of_the_real_tokens_behind_the_pruned_blocks(walked: Walked) -> None:
    assert sum(len(group.names) for groups in walked.groups.values() for group in groups) == len(walked.expected)
    for name, expected_II in walked.expected.items():
        found_II = symmetric(walked.group(name).H_II)
        torch.testing.assert_close(found_II, expected_II, rtol=1e-4, atol=1e-5 * float(expected_II.abs().max()))


def test_cross_attention_reads_the_final_states_of_the_pruned_encoder(walked: Walked) -> None:
    kind, whisper = walked.kind, walked.kind == "whisper"
    block = "model.decoder.layers.0.encoder_attn" if whisper else "decoder.block.0.layer.1.EncDecAttention"
    q, k, v = (f"{block}.{part}{'_proj' if whisper else ''}" for part in "qkv")
    assert walked.group(k).names == [k, v]
    assert walked.group(q).names == [q]
    sources = {"t5": 7 + 3 + 5 + 2, "whisper": 35 + 15 + 25 + 10}[tiny_models.family(kind)]
    assert (walked.group(k).seen, walked.group(q).seen) == (sources, 4 + 6 + 2 + 5)

    def hessian(model: Any) -> Tensor:
        encoder = model.model.encoder if whisper else model.encoder
        parts = []
        for batch in walked.batches:
            read = {name: batch[name] for name in ("input_ids", "attention_mask", "input_features") if name in batch}
            h_BSD = encoder(**read).last_hidden_state
            lengths = batch["frames"] // 2 if whisper else batch["attention_mask"].sum(1)
            parts += [h_SD[:length] for h_SD, length in zip(h_BSD, lengths.tolist(), strict=True)]
        X_TI = torch.cat(parts)
        return 2 / len(X_TI) * X_TI.T @ X_TI

    with torch.no_grad():
        pruned_II, dense_II = hessian(walked.model), hessian(tiny_models.build(kind))
    torch.testing.assert_close(symmetric(walked.group(k).H_II), pruned_II, rtol=1e-4, atol=1e-5)
    assert (pruned_II - dense_II).norm() > 0.05 * dense_II.norm()


def test_the_walk_ends_where_the_pruned_model_does(walked: Walked) -> None:
    """T5's position bias, which its first block makes, reaches the blocks that are walked later."""
    kind, model, adapter = walked.kind, walked.model, family_of(walked.kind)

    def plain() -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        with ExitStack() as stack, torch.no_grad():
            keep_last_outputs(kind, model, found, stack)
            for batch in walked.batches:
                model(**adapter.inputs(batch), use_cache=False)
        return found

    assert len(walked.last) == len(walked.batches) == 2
    for walked_to, expected in zip(walked.last, plain(), strict=True):
        assert walked_to.keys() == expected.keys() == set(adapter.stacks(model))
        torch.testing.assert_close(walked_to, expected, rtol=1e-5, atol=1e-5)
    if kind == "whisper":
        return
    # the later blocks without a bias put out something else
    for stack in (model.encoder, model.decoder):
        for block in stack.block[1:]:
            forward = block.forward
            block.forward = lambda h, mask, bias, *rest, forward=forward, **given: forward(
                h, mask, bias.masked_fill(bias.abs() < 1e4, 0), *rest, **given
            )
    try:
        without = plain()
    finally:
        for stack in (model.encoder, model.decoder):
            for block in stack.block[1:]:
                del block.forward
    for walked_to, other in zip(walked.last, without, strict=True):
        encoder, _ = adapter.stacks(model)
        h_BSD = walked_to[encoder]
        assert (other[encoder] - h_BSD).norm() > 0.01 * h_BSD.norm()
