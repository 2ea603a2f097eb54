"""Code shared by the backends that run through torch and transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.bench.decoding import Runner, TransformersRunner
from engine.unfused import fuse_
from stages import checkpoints, families
from stages.benchmark.workloads import Sample
from stages.contracts import Checkpoint
from stages.families.encoder_decoder import Decoding, EncoderDecoder


class BeamSearch:
    """Beam search of encoder-decoders through transformers."""

    model: Any
    family: EncoderDecoder

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        """Encodes the sample and decodes the given number of tokens, whatever they are."""
        # an end of text would give models different amounts of work
        decoding = Decoding(sample.ids_1T[0].tolist(), beams, 1.0, new_tokens, min_new_tokens=new_tokens)
        [ids] = self.family.generate(self.model, dict(sample.encoder), decoding)
        assert len(ids) == new_tokens, (len(ids), new_tokens)


class EncoderDecoderRunner(TransformersRunner, BeamSearch):
    def __init__(self, model: Any, family: EncoderDecoder, note: str | None = None) -> None:
        super().__init__(model, note)
        self.family = family


def torch_runner(model: Any, checkpoint: Checkpoint, note: str | None = None) -> Runner:
    family = families.of(checkpoint.path)
    if isinstance(family, EncoderDecoder):
        return EncoderDecoderRunner(model, family, note)
    return TransformersRunner(model, note)


def as_transformers_has_it(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Returns the model with transformers' own code for experts, which users of torch run."""
    model = checkpoints.load(checkpoint, dtype)
    fuse_(model)
    return model


class CsrLinear(nn.Module):
    weight: Tensor
    """CSR, O x I, fp32, indices int32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        W_OI = linear.weight.detach().to_sparse_csr()
        # with 64-bit indices torch converts them on every call
        self.register_buffer(
            "weight",
            torch.sparse_csr_tensor(
                W_OI.crow_indices().int(), W_OI.col_indices().int(), W_OI.values(), W_OI.shape, check_invariants=True
            ),
        )
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        x_TI = x.reshape(-1, self.in_features)
        # for a single token torch's product with a vector is 3 times as fast as with a matrix of one column
        y_TO = (self.weight @ x_TI[0])[None] if len(x_TI) == 1 else (self.weight @ x_TI.t()).t()
        if self.bias is not None:
            y_TO = y_TO + self.bias
        return y_TO.reshape(*x.shape[:-1], self.out_features)
