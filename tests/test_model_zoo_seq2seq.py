"""Sequence-to-sequence models of transformers are right, or refused in one line before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from stages import families
from stages.contracts import UserError
from stages.model import run as source
from stages.model.families import family_of_type
from tests import tiny_encoder_decoders, tiny_seq2seq
from tests.model_zoo_seq2seq import RIGHT, ZOO, model_types

TESTED = {tiny_seq2seq.model_type(kind) for kind in tiny_seq2seq.KINDS} | set(tiny_encoder_decoders.KINDS)
"""By all that is tested of their kinds."""


def test_every_encoder_decoder_of_transformers_is_in_the_table() -> None:
    assert {name for name in model_types() if CONFIG_MAPPING[name].is_encoder_decoder} == set(ZOO)
    assert len(ZOO) == 35
    right = {name for name, (_, verdict) in ZOO.items() if verdict == RIGHT}
    assert right == set(family_of_type())
    assert right <= TESTED
    assert set(ZOO) - right == set(families.NOT_SUPPORTED)


@pytest.mark.parametrize("model_type", sorted(model_types()))
def test_a_model_is_taken_by_its_family_or_refused_in_one_line(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({}, tmp_path / "model.safetensors")
    asked, verdict = ZOO.get(model_type, ("whisper", "are not of the family whisper"))
    if verdict == RIGHT:
        assert source._check(tmp_path, "label", families.get(asked))["model_type"] == model_type
        return
    with pytest.raises(UserError) as caught:
        source._check(tmp_path, "label", families.get(asked))
    assert verdict in caught.value.message
    assert caught.value.option == "model.family"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model_type", "asked", "right"), [("bart", "t5", "seq2seq"), ("umt5", "t5", "seq2seq"),
                                                            ("mt5", "seq2seq", "t5"), ("whisper", "seq2seq", "whisper"),
                                                            ("marian", "causal_lm", "seq2seq")])  # fmt: skip
def test_the_right_family_is_named(model_type: str, asked: str, right: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "is_encoder_decoder": True}))
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"set model.family={right}$"):
        source._check(tmp_path, "label", families.get(asked))
