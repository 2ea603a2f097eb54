"""Backends that torch itself has, and the W8A8 model of the quantize stage on torch's integer product."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from engine import cpu
from engine.linear import EngineLinear
from engine.measure import EncoderDecoderStepper, TransformersStepper, decoding_modules, likeliest
from engine.unfused import fuse_
from stages import checkpoints, families
from stages.benchmark.backends import Runner, Unavailable
from stages.benchmark.workloads import Sample
from stages.contracts import Checkpoint
from stages.families.encoder_decoder import Decoding, EncoderDecoder


class TorchRunner:
    """A Hugging Face causal LM, whatever its linears are."""

    process: int | None = None

    def __init__(self, model: Any, note: str | None = None) -> None:
        self._stepper = TransformersStepper(model)
        self.note = note
        self.weight_bytes: int | None = weight_bytes(model)

    def prefill(self, sample: Sample) -> int:
        return likeliest(self._stepper.prefill(sample.ids_1T))

    def decode(self, token: int) -> int:
        return likeliest(self._stepper.step(token))


class EncoderDecoderRunner:
    """A Hugging Face encoder-decoder, whatever its linears are."""

    process: int | None = None

    def __init__(self, model: Any, family: EncoderDecoder, note: str | None = None) -> None:
        self._model = model
        self._family = family
        self._stepper: EncoderDecoderStepper | None = None
        self.note = note
        self.weight_bytes: int | None = weight_bytes(model)

    def prefill(self, sample: Sample) -> int:
        self._stepper = EncoderDecoderStepper(self._model, sample.encoder)
        return likeliest(self._stepper.prefill(sample.ids_1T))

    def decode(self, token: int) -> int:
        assert self._stepper is not None, "decode comes after prefill"
        return likeliest(self._stepper.step(token))

    def search(self, sample: Sample, beams: int, new_tokens: int) -> None:
        # the end of a text would leave models with different work
        decoding = Decoding(sample.ids_1T[0].tolist(), beams, 1.0, new_tokens, min_new_tokens=new_tokens)
        [ids] = self._family.generate(self._model, dict(sample.encoder), decoding)
        assert len(ids) == new_tokens, (len(ids), new_tokens)


def torch_runner(model: Any, checkpoint: Checkpoint, note: str | None = None) -> Runner:
    family = families.of(checkpoint.path)
    return EncoderDecoderRunner(model, family, note) if isinstance(family, EncoderDecoder) else TorchRunner(model, note)


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


def weight_bytes(model: nn.Module) -> int:
    """Bytes that decoding one token reads: everything but the rows of embedding tables it does not look up; of an
    encoder-decoder what its decoder reads by then."""
    seen: dict[int, Tensor] = {}  # kept alive: unpacked weights are new tensors, whose ids would come again
    for module in decoding_modules(model):
        if isinstance(module, nn.Embedding):
            continue
        for tensor in _tensors(module):
            # a head tied to the embedding is read whole
            seen[id(tensor)] = tensor
    return sum(_stored_bytes(tensor) for tensor in seen.values())


def _tensors(module: nn.Module) -> list[Tensor]:
    if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
        unpacked: list[Tensor | None] = [module.weight(), module.bias()]  # type: ignore[no-untyped-call]
        return [tensor for tensor in unpacked if tensor is not None]
    if isinstance(module, EngineLinear):
        packed = module.packed
        parts = [packed.values, packed.bitmask, packed.row_offsets, packed.scale, module.bias, module.input_scale]
        return [part for part in parts if part is not None]
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _stored_bytes(tensor: Tensor) -> int:
    if tensor.layout == torch.sparse_csr:
        return sum(part.nbytes for part in (tensor.values(), tensor.crow_indices(), tensor.col_indices()))
    return tensor.numel() * tensor.element_size()
