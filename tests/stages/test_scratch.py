"""A T5 from random weights is what its settings say, or is refused."""

import pytest
import torch

from stages.contracts import UserError
from stages.scratch.spec import Scratch
from stages.scratch.t5 import random_t5

SIZES = {"d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 1}


def scratch(seed: int = 0, **settings: object) -> Scratch:
    return Scratch(label="T5 trained from scratch", vocabulary=40, seed=seed, settings=SIZES | settings)


def test_settings_and_seed_make_the_model() -> None:
    model = random_t5(scratch(), 40)
    assert (len(model.encoder.block), len(model.decoder.block), model.config.vocab_size) == (2, 1, 40)
    assert (model.config.decoder_start_token_id, model.config.pad_token_id, model.config.eos_token_id) == (0, 0, 1)
    before = torch.get_rng_state()
    assert torch.equal(model.shared.weight, random_t5(scratch(), 40).shared.weight)
    assert torch.equal(torch.get_rng_state(), before), "others draw as if it had not been made"
    assert not torch.equal(model.shared.weight, random_t5(scratch(seed=1), 40).shared.weight)
    assert model.get_output_embeddings().weight is model.shared.weight


def test_settings_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(UserError, match="has no 'width'"):
        random_t5(scratch(width=3), 40)
    with pytest.raises(UserError, match="ties the embeddings of every new T5"):
        random_t5(scratch(tie_word_embeddings=False), 40)
