"""A device that is not the CPU, for machines without a GPU: its tensors are computed on the CPU, and an operation on
tensors of two devices is refused as CUDA refuses it. It proves where tensors are, not how fast or exact a GPU is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "virtual"
CROSSING = ("copy_", "_to_copy", "_copy_from", "_local_scalar_dense")
"""Operations whose operands may be on two devices."""
GENERIC = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
"""Kernels that torch has for any device: they win over a fallback, and would see empty tensors."""


class _Module(_DummyBackendModule):
    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_HOSTS: dict[int, Tensor] = {}
"""By the address of a tensor's storage, which autograd's copies of the tensor share: its values, on the CPU."""


class VirtualTensor(Tensor):
    """An empty tensor of the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> VirtualTensor:
        made = torch._C._acc.create_empty_tensor(host.shape, host.dtype)
        made.__class__ = cls
        _HOSTS[made.untyped_storage()._cdata] = host
        return made  # type: ignore[no-any-return]

    def __init__(self, host: Tensor) -> None:
        pass


def register() -> torch.device:
    """Makes the device known to torch; once a process, which has no other such device then."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        generic = any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in GENERIC)
        if space == "aten" and generic:
            packet, _, overload = rest.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            aten.impl(rest, _of(operator))
    _KEPT.extend([library, aten])
    return torch.device(NAME)


_KEPT: list[torch.library.Library] = []


def _of(operator: Any) -> Any:
    return lambda *args, **kwargs: _run(operator, *args, **kwargs)


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    name = operator.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if name not in CROSSING:
        foreign = [t for t in tensors if not _is_virtual(t) and t.dim()]
        if foreign and len(foreign) < len(tensors):
            raise RuntimeError(f"{name}: tensors on two devices, {NAME} and cpu")
    if name == "_fused_sdp_choice":
        return 0  # the fused attentions ask for the device by name
    if name == "view" or name == "_unsafe_view":
        operator = torch.ops.aten.reshape.default  # the empty tensor's strides are not those of the host's
    wanted = kwargs.get("device")
    here = wanted is None and any(map(_is_virtual, tensors))
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    host_args, host_kwargs = tree_map_only(Tensor, _host, (args, kwargs))
    if name.startswith("_fused_adam"):
        # autograd gave the gradients the strides of empty tensors, and the kernel takes them to be those of the weights
        weights, gradients, *rest = host_args
        host_args = (weights, [gradient.contiguous() for gradient in gradients], *rest)
    with torch.inference_mode(False):  # an empty inference tensor has no version that autograd could look at
        found = operator(*host_args, **host_kwargs)
        if not here and (wanted is None or torch.device(wanted).type != NAME):
            return found
        owners = {id(_host(t)): t for t in tensors if _is_virtual(t)}
        return tree_map_only(Tensor, lambda t: owners[id(t)] if id(t) in owners else VirtualTensor(t), found)


def _is_virtual(tensor: Tensor) -> bool:
    return tensor.device.type == NAME


def _host(tensor: Tensor) -> Tensor:
    return _HOSTS[tensor.untyped_storage()._cdata] if _is_virtual(tensor) else tensor
