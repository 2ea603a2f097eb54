"""Some of the architectures of `tests.model_zoo`, each of a kind of its own."""

from __future__ import annotations

import pytest

from tests import model_zoo

RIGHT = ["qwen2", "mistral", "phi3", "gpt_neox", "opt", "gemma2", "gemma3_text", "olmo2", "mamba", "gpt2",
         "deepseek_v2", "granite", "cohere", "hy_v4", "mimo_v2_flash", "git"]  # fmt: skip


@pytest.mark.parametrize("model_type", RIGHT)
def test_a_class_goes_through_every_stage(model_type: str) -> None:
    found = model_zoo.inspect_model(model_type)
    assert (found.outcome, found.told) == ("right", "")


def test_the_table_counts_outcomes() -> None:
    found = [
        model_zoo.Found("a", "right", "", 1.0),
        model_zoo.Found("b", "refused", "model.path: no", None),
        model_zoo.Found("c", "not built", "ValueError"),
    ]
    table = model_zoo.table(found)
    assert "1 right, 1 refused, 0 wrong; 1 not built small" in table
    assert "| a | 100.0% | right |  |" in table
    assert "| c | ValueError |" in table
