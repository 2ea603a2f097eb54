"""The pruned linears as torch CSR tensors with 32-bit indices, the rest as in torch_fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.bench.decoding import Runner
    from engine.peers.contracts import Unavailable
    from stages.contracts import Checkpoint


class TorchCsr:
    quantized = False
    exact = True
    weight_bytes = 8.0

    def prepare(self, checkpoint: Checkpoint, threads: int) -> Runner | Unavailable:
        import warnings

        import torch

        from engine.peers.contracts import Unavailable
        from stages import checkpoints, families
        from stages.benchmark.torch_backends import CsrLinear, torch_runner

        if checkpoint.masks is None:
            return Unavailable("a dense model has no zeros to skip")
        model = checkpoints.load(checkpoint, torch.float32)
        with warnings.catch_warnings():
            # "Sparse CSR tensor support is in beta state"
            warnings.simplefilter("ignore")
            for name, linear in families.of(checkpoint.path).prunable(model).items():
                model.set_submodule(name, CsrLinear(linear))
        return torch_runner(model, checkpoint)


BACKEND = TorchCsr()
