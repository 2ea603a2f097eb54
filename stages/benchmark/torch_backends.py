"""Backends that torch itself has, and the W8A8 model of the quantize stage on torch's integer product."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from engine import cpu
from engine.bench.decoding import Runner, TransformersRunner
from engine.peers.contracts import Unavailable
from engine.unfused import fuse_
from stages import checkpoints, families
from stages.benchmark.workloads import Sample
from stages.contracts import Checkpoint
from stages.families.encoder_decoder import Decoding, EncoderDecoder


class BeamSearch:
    """Searches with several beams, of encoder-decoders, through transformers."""

    model: Any
    family: EncoderDecoder

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        """Encodes the sample and writes so many tokens, whatever they are."""
        # the end of a text would leave models with different work
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
    """The model with transformers' own code for experts, which is what users of torch have."""
    model = checkpoints.load(checkpoint, dtype)
    fuse_(model)
    return model


class TorchFp32:
    name = "torch_fp32"
    quantized = False

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        return torch_runner(as_transformers_has_it(checkpoint, torch.float32), checkpoint)


class TorchBf16:
    name = "torch_bf16"
    quantized = False

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        if not cpu.has_bf16():
            return Unavailable("this CPU has no bf16 instructions")
        return torch_runner(as_transformers_has_it(checkpoint, torch.bfloat16), checkpoint)


class TorchInt8:
    """torch.ao's dynamic quantization of every linear, the head too: int8 per tensor, activations uint8 per tensor."""

    name = "torch_int8"
    quantized = False

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        quantization = getattr(torch.ao, "quantization", None)
        if quantization is None or torch.backends.quantized.engine == "none":
            return Unavailable("this torch has no dynamic quantization for this CPU")
        with warnings.catch_warnings():
            # deprecated in favour of torchao, and still what torch alone offers
            warnings.simplefilter("ignore")
            model = checkpoints.load(checkpoint, torch.float32)
            quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
        return torch_runner(model, checkpoint)


class TorchCsr:
    """The pruned linears as torch CSR tensors with 32-bit indices, the rest as in torch_fp32."""

    name = "torch_csr"
    quantized = False

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        if checkpoint.masks is None:
            return Unavailable("a dense model has no zeros to skip")
        model = checkpoints.load(checkpoint, torch.float32)
        with warnings.catch_warnings():
            # "Sparse CSR tensor support is in beta state"
            warnings.simplefilter("ignore")
            for name, linear in families.of(checkpoint.path).prunable(model).items():
                model.set_submodule(name, CsrLinear(linear))
        return torch_runner(model, checkpoint)


class SquareheadW8A8:
    """`stages.quantize.quantized.Int8Linear` in the blocks, fp32 elsewhere."""

    name = "squarehead_w8a8"
    quantized = True

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        return torch_runner(checkpoints.load(checkpoint, torch.float32), checkpoint)


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
