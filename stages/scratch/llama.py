"""Makes a Llama with random weights, and a byte-level BPE tokenizer that writes numbers digit by digit."""

from __future__ import annotations

from typing import Any

import torch

from stages.contracts import UserError
from stages.scratch.spec import Scratch

EOS, PAD = 0, 1
SPECIAL = ("<eos>", "<pad>")
NUM_BYTES = 256


def make(config: Scratch, texts: list[str]) -> tuple[Any, Any]:
    """Returns the model. Raises UserError for settings that Llama does not have."""
    tokenizer = train_tokenizer(texts, config.vocabulary)
    return random_llama(config, len(tokenizer)), tokenizer


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Trains the tokenizer. Documents end with <eos>, and nothing stands before them; padding has a token of its own,
    so that <eos> is always learned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < (least := NUM_BYTES + len(SPECIAL)):
        raise UserError(
            f"expected at least {least}: a token for each byte, {' and '.join(SPECIAL)}", "model.scratch.vocabulary"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() < vocabulary:
        raise UserError(
            f"these texts give {bpe.get_vocab_size()} pieces, not {vocabulary}; expected at most that many",
            "model.scratch.vocabulary",
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=SPECIAL[EOS], pad_token=SPECIAL[PAD])


def random_llama(config: Scratch, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    known = LlamaConfig().to_dict()
    if odd := sorted(config.settings.keys() - known.keys()):
        raise UserError(f"Llama's configuration has no {odd[0]!r}", "model.scratch.settings")
    settings = LlamaConfig(
        **config.settings, vocab_size=vocabulary, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=EOS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(settings).eval()
