"""The losses: closed forms, which tokens count, gradients, and sums over micro-batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from stages import families
from stages.families import Batch
from stages.families.causal_lm import TensorRows
from stages.finetune import distill, objective
from stages.finetune.batches import micro_batches
from stages.finetune.objective import Objective
from stages.finetune.spec import Distill
from tests import tiny
from tests.stage_options import distilling

FAMILY = families.get("causal_lm")


def test_squarehead_is_a_ratio_of_two_sums() -> None:
    teacher_ND = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    student_ND = torch.tensor([[1.5, 2.0], [3.0, 2.0]])
    # (0.25 + 4) / (1 + 4 + 9 + 16)
    found = distill.squarehead(student_ND, teacher_ND, distill.energy(teacher_ND), eps=0.0)
    assert found.item() == pytest.approx(4.25 / 30)


def test_eps_stands_in_the_denominator() -> None:
    teacher_ND, student_ND = torch.zeros(1, 2), torch.tensor([[0.3, 0.4]])
    assert distill.squarehead(student_ND, teacher_ND, distill.energy(teacher_ND), eps=0.5).item() == pytest.approx(0.5)
    assert distill.squarehead_by_token(student_ND, teacher_ND, 1, eps=0.5).item() == pytest.approx(0.5)


def test_a_layer_without_a_token_to_compare_has_no_loss() -> None:
    none_ND = torch.zeros(0, 2)
    assert distill.squarehead(none_ND, none_ND, distill.energy(none_ND), eps=0.0).item() == 0
    assert distill.squarehead_by_token(none_ND, none_ND, 0, eps=0.0).item() == 0


def test_squarehead_by_token_averages_ratios() -> None:
    teacher_ND = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    student_ND = torch.tensor([[9.0, 0.0], [0.0, 0.5]])
    assert distill.squarehead_by_token(student_ND, teacher_ND, 2, eps=0.0).item() == pytest.approx((0.01 + 0.25) / 2)


def test_squarehead_of_bf16_states_is_computed_in_fp32() -> None:
    torch.manual_seed(0)
    teacher_ND, student_ND = torch.randn(64, 32).bfloat16(), torch.randn(64, 32).bfloat16()
    found = distill.squarehead(student_ND, teacher_ND, distill.energy(teacher_ND), eps=0.0)
    exact = (student_ND.double() - teacher_ND.double()).square().sum() / teacher_ND.double().square().sum()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)


def test_squarehead_gradient_is_twice_the_difference_over_the_energy() -> None:
    torch.manual_seed(0)
    teacher_ND, student_ND = torch.randn(5, 3), torch.randn(5, 3, requires_grad=True)
    distill.squarehead(student_ND, teacher_ND, distill.energy(teacher_ND), eps=1e-8).backward()
    expected_ND = 2 * (student_ND.detach() - teacher_ND) / teacher_ND.square().sum()
    torch.testing.assert_close(student_ND.grad, expected_ND)
    student_ND.grad = None
    distill.squarehead_by_token(student_ND, teacher_ND, 5, eps=1e-8).backward()
    expected_ND = 2 * (student_ND.detach() - teacher_ND) / teacher_ND.square().sum(-1, keepdim=True) / 5
    torch.testing.assert_close(student_ND.grad, expected_ND)


def test_cross_entropy_closed_form() -> None:
    logits_NV = torch.tensor([[math.log(1.0), math.log(3.0)], [math.log(2.0), math.log(2.0)]])
    found = distill.ce(logits_NV, torch.tensor([1, 0]), tokens=2)
    assert found.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_kd_closed_form_and_direction() -> None:
    teacher_NV = torch.tensor([[math.log(3.0), 0.0]])  # 3/4, 1/4
    student_NV = torch.zeros(1, 2)  # 1/2, 1/2
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distill.kd(student_NV, teacher_NV, 1.0, tokens=1).item() == pytest.approx(expected)
    # softened by T=2 the teacher has odds of sqrt(3); the loss is multiplied by 4
    p = math.sqrt(3) / (1 + math.sqrt(3))
    softened = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert distill.kd(student_NV, teacher_NV, 2.0, tokens=1).item() == pytest.approx(softened, rel=1e-5)


def test_kd_of_equal_logits_is_zero() -> None:
    logits_NV = torch.randn(4, 7)
    assert distill.kd(logits_NV, logits_NV.clone(), 3.0, 4).item() == pytest.approx(0, abs=1e-6)


def test_total_weighs_the_terms() -> None:
    terms = {"ce": torch.tensor(2.0), "squarehead": torch.tensor(3.0)}
    assert distill.total({"ce": 0.5, "squarehead": 2.0}, terms).item() == pytest.approx(7.0)


def test_feature_tokens_leave_out_padding_and_the_first_of_each_packed_item() -> None:
    use_BT = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    packed = {"use": use_BT, "position_ids": torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2]])}
    model = tiny.build()
    for batch, skip, expected in (
        (packed, 0, [0, 1, 2, 3, 4, 6, 7, 8]),
        (packed, 1, [1, 3, 4, 7, 8]),
        ({"use": use_BT}, 1, [1, 2, 3, 4, 7, 8]),
    ):
        found = distill.feature_tokens(FAMILY, model, batch, skip)
        assert [tokens_N.tolist() for tokens_N in found if tokens_N is not None] == [expected] * 2, "of both layers"
        assert len(found) == 2


def test_labels_are_shifted_and_ignored_ones_left_out() -> None:
    h_BTD = torch.arange(4.0).reshape(1, 4, 1)
    h_ND, labels_N = distill.label_tokens(FAMILY, h_BTD, torch.tensor([[5, 6, -100, 7]]))
    assert h_ND.flatten().tolist() == [0, 2]
    assert labels_N.tolist() == [6, 7]


class Fixed:
    """A teacher whose states are known."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.head = model.get_output_embeddings()

    @torch.no_grad()
    def states(self, rows_B: Tensor, batch: Batch) -> list[Tensor]:
        return FAMILY.states(self.model, batch)


def uneven_rows() -> Batch:
    """Rows of 16 tokens with 16, 9, 12 and 4 real ones, some of them no labels."""
    generator = torch.Generator().manual_seed(0)
    ids_NL = torch.randint(1, tiny.VOCABULARY, (4, 16), generator=generator)
    use_NL = (torch.arange(16) < torch.tensor([[16], [9], [12], [4]])).long()
    labels_NL = torch.where(use_NL.bool(), ids_NL, -100)
    labels_NL[0, :5] = -100
    positions_NL = torch.arange(16).expand(4, 16)
    return {"input_ids": ids_NL, "labels": labels_NL, "use": use_NL, "position_ids": positions_NL}


def gradient(
    config: Distill, size: int, logits_at_once: int = 1 << 24, precision: str = "fp32"
) -> tuple[dict[str, float], list[Tensor]]:
    """Loss terms and gradients of a step over `uneven_rows` in micro-batches of `size` rows."""
    micro = list(micro_batches(TensorRows(uneven_rows(), FAMILY), torch.arange(4), size))
    return gradient_of(config, micro, logits_at_once, precision)


def gradient_of(
    config: Distill, micro: list[tuple[Tensor, Batch]], logits_at_once: int = 1 << 24, precision: str = "fp32"
) -> tuple[dict[str, float], list[Tensor]]:
    student, teacher = tiny.build(seed=0), tiny.build(seed=1)
    before = objective.LOGITS_AT_ONCE
    objective.LOGITS_AT_ONCE = logits_at_once
    try:
        target = Objective(FAMILY, config, precision, Fixed(teacher))
        found = target.backward(student, FAMILY.head(student), micro)
    finally:
        objective.LOGITS_AT_ONCE = before
    return {name: float(term) for name, term in found.items()}, [p.grad for p in student.parameters()]


MIX = {"ce": 0.7, "kd": 0.5, "squarehead": 2.0, "temperature": 2.0, "eps": 1e-8}


@pytest.mark.parametrize("variant", [{}, {"normalize": "token"}, {"skip_first": 2}])
def test_micro_batches_sorted_by_size_add_up_to_the_full_batch(variant: dict[str, object]) -> None:
    """The full batch stands in its own order and keeps all of its padding."""
    config, rows = distilling(**MIX, **variant), uneven_rows()
    chosen_B = torch.tensor([3, 0, 2, 1])
    full = {name: tensor[chosen_B] for name, tensor in rows.items()}
    whole, whole_gradients = gradient_of(config, [(chosen_B, full)])
    assert set(whole) == {"loss", "ce", "kd", "squarehead"}
    for size, numbers, lengths in (
        (1, [[0], [2], [1], [3]], [16, 12, 9, 4]),
        (2, [[0, 2], [1], [3]], [16, 9, 4]),
        (4, [[0, 2, 1], [3]], [16, 4]),
    ):
        micro = list(micro_batches(TensorRows(rows, FAMILY), chosen_B, size))
        assert [rows_B.tolist() for rows_B, _ in micro] == numbers, "the longest first, at most twice the shortest"
        assert [batch["input_ids"].shape[1] for _, batch in micro] == lengths, "no longer than needed"
        parts, part_gradients = gradient_of(config, micro)
        assert parts == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(part_gradients, whole_gradients, rtol=1e-4, atol=1e-6)


def test_bf16_accumulates_the_gradients_of_fp32() -> None:
    exact, exact_gradients = gradient(distilling(**MIX), size=4)
    found, gradients = gradient(distilling(**MIX), size=1, precision="bf16")
    assert found == pytest.approx(exact, rel=1e-2)
    for gradient_, exact_ in zip(gradients, exact_gradients, strict=True):
        assert gradient_.dtype == torch.float32
        assert functional.cosine_similarity(gradient_.flatten(), exact_.flatten(), dim=0) > 0.999


def test_chunks_of_the_head_equal_whole_logits() -> None:
    config = distilling(**MIX)
    whole, whole_gradients = gradient(config, size=4)
    parts, part_gradients = gradient(config, size=4, logits_at_once=3 * tiny.VOCABULARY)
    assert parts == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(part_gradients, whole_gradients, rtol=1e-4, atol=1e-6)


def test_the_step_is_the_loss_written_out() -> None:
    """Against the definition, by plain autograd over whole logits and all hidden states."""
    found, gradients = gradient(distilling(**MIX), size=2)
    student, teacher, rows = tiny.build(seed=0), tiny.build(seed=1), uneven_rows()
    inputs = {"input_ids": rows["input_ids"], "position_ids": rows["position_ids"], "output_hidden_states": True}
    s, use = student(**inputs), rows["use"].bool()
    with torch.no_grad():
        t = teacher(**inputs)
    labels = rows["labels"][:, 1:]
    learned = labels != -100
    ce = functional.cross_entropy(s.logits[:, :-1][learned], labels[learned])
    p_s = (s.logits[:, :-1][learned] / 2).log_softmax(-1)
    p_t = (t.logits[:, :-1][learned] / 2).log_softmax(-1)
    kd = 4 * (p_t.exp() * (p_t - p_s)).sum() / learned.sum()
    layers = list(zip(s.hidden_states[1:], t.hidden_states[1:], strict=True))
    assert len(layers) == student.config.num_hidden_layers
    feature = torch.stack([(a - b)[use].square().sum() / (b[use].square().sum() + 1e-8) for a, b in layers]).sum()
    loss = 0.7 * ce + 0.5 * kd + 2 * feature
    loss.backward()
    expected = {"loss": loss, "ce": ce, "kd": kd, "squarehead": feature}
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)
    torch.testing.assert_close(gradients, [p.grad for p in student.parameters()], rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing() -> None:
    config = distilling(**MIX)
    rows = uneven_rows()
    results = []
    for filler in (1, 7):
        ids_NL = torch.where(rows["use"].bool(), rows["input_ids"], filler)
        batch = TensorRows(rows | {"input_ids": ids_NL}, FAMILY)
        results.append(gradient_of(config, list(micro_batches(batch, torch.arange(4), 4)))[0])
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
def test_head_and_states_give_the_models_logits(kind: str) -> None:
    model = tiny.build(kind)
    ids_BT = torch.randint(0, tiny.VOCABULARY, (2, 7))
    states = FAMILY.states(model, {"input_ids": ids_BT})
    assert len(states) == 2
    torch.testing.assert_close(FAMILY.head(model)(states[-1]), model(input_ids=ids_BT).logits)


SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
CHANGED_LOGITS = {
    "capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.01)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.1)),
}


@pytest.mark.parametrize("kind", CHANGED_LOGITS)
def test_a_model_that_changes_its_logits_is_trained_on_the_ones_it_puts_out(kind: str) -> None:
    torch.manual_seed(0)
    model = CHANGED_LOGITS[kind]().eval()
    ids_BT = torch.randint(2, 60, (3, 12))
    batch = {"input_ids": ids_BT, "labels": ids_BT, "use": torch.ones_like(ids_BT)}
    theirs = model(input_ids=ids_BT, labels=ids_BT)
    theirs.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    weights = Distill(ce=1, kd=0, squarehead=0, temperature=1, eps=0, normalize="layer", skip_first=0)
    head = FAMILY.head(model)
    found = Objective(FAMILY, weights, "fp32", None).backward(model, head, [(torch.arange(3), batch)])
    torch.testing.assert_close(found["loss"], theirs.loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_a_cap_that_only_large_logits_feel_is_found() -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=30.0)).eval()
    head = FAMILY.head(model)
    h_ND = 1000 * torch.randn(4, SIZES["hidden_size"])
    assert float(head(h_ND).abs().max()) <= 30
