"""The engine's folder: a Hugging Face folder whose linears are stored packed, and engine.json, which records its files.

For each engine linear NAME, model.safetensors holds `NAME.bitmask`, `.compressed`, `.row_offsets` and `.shape` (or
`NAME.weight`, dense), and where they exist `NAME.weight_scale`, `.bias` and `.input_scale`; everything else is there in
fp32 under its usual name, tied parameters once.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine import generation, record, skeleton
from engine.errors import EngineError
from engine.linear import EngineLinear, fuse
from engine.record import EngineRecord, LinearRecord
from engine.weights import DTYPES, PackedWeight

Tensors = dict[str, Tensor]


def save(model: Any, out: Path | str, tokenizer: Any = None, feature_extractor: Any = None) -> None:
    """Writes the whole of `out` or nothing. Raises EngineError if it holds anything already, if it cannot be written,
    or if nothing in the model is an engine linear."""
    out = Path(out)
    check_out(out)
    linears = engine_linears(model)
    if not linears:
        raise EngineError(f"{type(model).__name__} has no engine linear to save; `engine.convert` makes them")
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        partial.mkdir(parents=True)
        _write(model, linears, [tokenizer, feature_extractor], partial)
        partial.rename(out)
        record.fsync(out.parent)
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{out} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_out(out: Path) -> None:
    """Raises EngineError if `save` would refuse to write."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EngineError(f"{out} exists already, expected nothing or an empty folder; choose another or delete it")


def load(folder: Path | str, *, threads: int = 0, compiled_steps: bool = True) -> Any:
    """Returns the model in eval mode, without gradients, ready for `generate`. Its weights are mapped from the file.

    `threads` is set for torch and the kernels in this whole process; 0 leaves torch's setting. `compiled_steps`: if the
    architecture allows it, steps of one token at batch 1 run in the engine's own decoding step.

    Raises EngineError unless every file is the recorded one and every tensor fits the architecture.
    """
    if threads < 0:
        raise EngineError(f"threads is {threads}, expected a number of threads, or 0 for torch's own")
    folder = Path(folder)
    facts = record.read(folder)
    record.verify(folder, facts)
    model = skeleton.build(folder)
    tensors = _map(folder / record.WEIGHTS)
    for name, expected in facts.linears.items():
        model.set_submodule(name, _linear(model, name, expected, tensors))
    inside = [f"{name}.{part}" for name in facts.linears for part in model.get_submodule(name).state_dict()]
    skeleton.assign(model, tensors, inside)
    fuse(model)
    if threads:
        torch.set_num_threads(threads)
    return generation.attach(model) if compiled_steps else model


def engine_linears(model: nn.Module) -> dict[str, EngineLinear]:
    """Returns the engine's linears by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, EngineLinear)}


# ---- writing ----


def _write(model: Any, linears: dict[str, EngineLinear], readers: list[Any], folder: Path) -> None:
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    for reader in readers:
        if reader is not None:
            reader.save_pretrained(folder)
    tensors = _rest(model, linears)
    for name, linear in linears.items():
        linear.packed.check(name)
        tensors |= _stored(name, linear)
    facts = _facts(model, linears)
    # a single entry: safetensors writes several in any order, and the same model shall give the same file
    metadata: dict[str, str] = {"format": record.FORMAT}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / record.WEIGHTS, metadata)
    record.write(folder, facts)


def _facts(model: Any, linears: dict[str, EngineLinear]) -> EngineRecord:
    head = model.get_output_embeddings()
    dtypes = {linear.packed.dtype for linear in linears.values() if linear is not head}
    return EngineRecord(
        dtype="+".join(sorted(dtypes)),
        head=head.packed.dtype if isinstance(head, EngineLinear) else "fp32",
        linears={
            name: LinearRecord(
                rows=linear.packed.shape[0],
                columns=linear.packed.shape[1],
                dtype=linear.packed.dtype,
                layout="dense" if linear.packed.bitmask is None else "bitmask",
                nnz=linear.packed.nnz,
                bytes=linear.packed.nbytes,
            )
            for name, linear in linears.items()
        },
    )


def _stored(name: str, linear: EngineLinear) -> Tensors:
    packed = linear.packed
    parts: dict[str, Tensor | None] = {
        "weight_scale": packed.scale,
        "bias": linear.bias,
        "input_scale": linear.input_scale,
    }
    if packed.bitmask is None:
        parts["weight"] = packed.values.reshape(packed.shape)
    else:
        parts |= {"bitmask": packed.bitmask, "compressed": packed.values, "row_offsets": packed.row_offsets}
        parts["shape"] = torch.tensor(packed.shape)
    return {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}


def _rest(model: nn.Module, linears: dict[str, EngineLinear]) -> Tensors:
    """Returns the tensors outside of the engine linears, tied parameters by their first name only."""
    inside = tuple(f"{name}." for name in linears)
    second = skeleton.second_names(model)
    state = model.state_dict()
    rest = {name: state[name] for name in state if not name.startswith(inside) and name not in second}
    for name, tensor in rest.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise EngineError(
                f"{name} is {tensor.dtype}, expected float32; load the model in it before `engine.convert`"
            )
    return rest


# ---- reading ----


def _map(path: Path) -> Tensors:
    try:
        with safe_open(path, "pt") as file:
            if (found := (file.metadata() or {}).get("format")) != record.FORMAT:
                raise EngineError(f"{path} has the format {found!r}, expected {record.FORMAT!r}; export it again")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path} cannot be read: {error}; export it again") from None


def _linear(model: nn.Module, name: str, expected: LinearRecord, tensors: Tensors) -> EngineLinear:
    """Builds a linear from its tensors, which it removes from `tensors`."""
    shape = (expected.rows, expected.columns)
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear) or (module.out_features, module.in_features) != shape:
        raise EngineError(f"{name}: stored as a linear of {list(shape)}, the architecture in config.json has no such")
    packed = _packed(name, expected, tensors)
    packed.check(name)
    if packed.shape != shape or packed.values.dtype != DTYPES[expected.dtype]:
        raise EngineError(f"{name}: is {packed.dtype} {list(packed.shape)}, expected {expected.dtype} {list(shape)}")
    bias = tensors.pop(f"{name}.bias", None)
    if (bias is None) != (module.bias is None):
        raise EngineError(f"{name}: {'no' if bias is None else 'a'} bias, the architecture in config.json differs")
    input_scale = tensors.pop(f"{name}.input_scale", None)
    for part, vector, size in (("bias", bias, expected.rows), ("input_scale", input_scale, expected.columns)):
        if vector is not None and (vector.dtype != torch.float32 or vector.shape != (size,)):
            raise EngineError(f"{name}.{part}: is {vector.dtype} {list(vector.shape)}, expected float32 [{size}]")
        if vector is not None and not torch.isfinite(vector).all():
            raise EngineError(f"{name}.{part}: has values that are not finite")
    if input_scale is not None and not (input_scale > 0).all():
        raise EngineError(f"{name}.input_scale: has values that are not positive")
    return EngineLinear(packed, bias, input_scale)


def _packed(name: str, expected: LinearRecord, tensors: Tensors) -> PackedWeight:
    def take(part: str) -> Tensor:
        if f"{name}.{part}" not in tensors:
            raise EngineError(f"{name}.{part} is missing in {record.WEIGHTS}; export it again")
        return tensors.pop(f"{name}.{part}")

    scale = take("weight_scale") if expected.dtype == "int8" else None
    if expected.layout == "dense":
        W_OI = take("weight")
        return PackedWeight(_shape(name, list(W_OI.shape)), W_OI.reshape(-1), None, None, scale)
    shape = take("shape")
    if shape.dtype != torch.int64 or shape.dim() != 1:
        raise EngineError(f"{name}.shape: is {shape.dtype} of {shape.dim()} dimensions, expected int64 [2]")
    return PackedWeight(_shape(name, shape.tolist()), take("compressed"), take("bitmask"), take("row_offsets"), scale)


def _shape(name: str, sizes: list[int]) -> tuple[int, int]:
    if len(sizes) != 2:
        raise EngineError(f"{name}: has {len(sizes)} dimensions, expected 2")
    return sizes[0], sizes[1]
