"""Encoder-decoders of text other than T5: BART, mBART, Marian, M2M100 and NLLB, Pegasus, BlenderBot, MVP, PLBART,
UMT5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from stages.families import Batch
from stages.families.decoding_head import BiasedHead, output_head
from stages.families.encoder_decoder import Decoding
from stages.families.text_to_text import TextToText


class Seq2Seq(TextToText):
    name = "seq2seq"

    def stacks(self, model: Any) -> tuple[str, str]:
        if model.config.model_type == "umt5":
            return "encoder.block", "decoder.block"
        return "model.encoder.layers", "model.decoder.layers"

    def head(self, model: Any) -> nn.Module:
        """Returns the head with the bias that BART and similar models add to the logits."""
        bias_1V = getattr(model, "final_logits_bias", None)
        head = output_head(model)
        return head if bias_1V is None else BiasedHead(head, bias_1V)

    def settings(self, own: Any, decoding: Decoding) -> Any:
        """Makes the token of the language the first generated one, as in transformers' own use of these models: it
        counts towards a beam's length."""
        settings = super().settings(own, decoding)
        if language := decoding.prompt[1:]:
            settings.forced_bos_token_id = language[0]
            settings.max_new_tokens += 1
            settings.min_new_tokens = settings.min_new_tokens and settings.min_new_tokens + 1
        return settings

    def _decode(self, model: Any, batch: Batch, decoding: Decoding) -> Tensor:
        return super()._decode(model, batch, replace(decoding, prompt=decoding.prompt[:1]))
