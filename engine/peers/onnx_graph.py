"""Builds ONNX graphs, node by node, and linear layers in the three forms that the peers run.

Graphs are of opset 13 and IR version 8, the newest that DeepSparse 1.8 reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Style = Literal["fp32", "int8_dynamic", "int8_static"]
"""fp32: MatMul. int8_dynamic: activations uint8 by the range of each call's tensor. int8_static: by a range given
beforehand (QuantizeLinear -> MatMulInteger -> Cast -> Mul), the only form that DeepSparse runs fast in int8. Weights
are int8, symmetric per output channel, in both."""

Dimension = int | str
OPSET = 13
IR_VERSION = 8
LARGEST_FILE = 1 << 30
"""Size beyond which the weights go into a file beside the graph: protobuf ends at 2 GB."""


@dataclass(frozen=True)
class Input:
    name: str
    shape: tuple[Dimension, ...]
    integer: bool = False


class Graph:
    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._quantized: dict[tuple[str, Style, float], tuple[str, ...]] = {}

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node with one output; returns that output's name."""
        return self.add_all(op, *inputs, names=(name or f"{op}_{len(self._nodes)}",), **attributes)[0]

    def add_all(self, op: str, *inputs: str, names: tuple[str, ...], **attributes: Any) -> tuple[str, ...]:
        """Adds a node with the named outputs; returns them."""
        node = helper.make_node(op, list(inputs), list(names), name=f"node_{len(self._nodes)}", **attributes)
        self._nodes.append(node)
        return names

    def constant(self, value: Any, name: str = "") -> str:
        """Adds an initializer; a value given again under the same name is stored once."""
        name = name or f"constant_{len(self._weights)}"
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def linear(
        self, x: str, name: str, W_OI: Any, bias_O: Any = None, *, style: Style, largest: float = 0.0, out: str = ""
    ) -> str:
        """Adds `x W_OIᵀ + bias_O`. `largest` is, for int8_static, the largest magnitude expected in x."""
        product = "" if bias_O is not None else out
        if style == "fp32":
            y = self.add("MatMul", x, self.constant(W_OI.T, f"{name}.weight"), name=product)
        else:
            y = self._integer_linear(x, name, W_OI, style, largest, product)
        return y if bias_O is None else self.add("Add", y, self.constant(bias_O, f"{name}.bias"), name=out)

    def _integer_linear(self, x: str, name: str, W_OI: Any, style: Style, largest: float, out: str) -> str:
        q_OI, scale_O = quantize(W_OI)
        weight = self.constant(q_OI.T, f"{name}.weight")
        zero = self.constant(np.int8(0), "weight_zero_point")
        q, scale, zero_x = self._quantize_input(x, style, largest)
        product = self.add("Cast", self.add("MatMulInteger", q, weight, zero_x, zero), to=TensorProto.FLOAT)
        if style == "int8_static":
            folded = self.constant(np.float32(static_scale(largest)) * scale_O, f"{name}.scale")
        else:
            folded = self.add("Mul", scale, self.constant(scale_O, f"{name}.scale"))
        return self.add("Mul", product, folded, name=out)

    def _quantize_input(self, x: str, style: Style, largest: float) -> tuple[str, ...]:
        """Returns the names of x quantized, its scale and its zero point; layers that share an input share them."""
        key = (x, style, largest)
        if key not in self._quantized:
            if style == "int8_dynamic":
                self._quantized[key] = self.add_all(
                    "DynamicQuantizeLinear", x, names=(f"{x}.q", f"{x}.scale", f"{x}.zero_point")
                )
            else:
                scale = self.constant(np.float32(static_scale(largest)))
                zero = self.constant(np.uint8(128), "input_zero_point")
                self._quantized[key] = (self.add("QuantizeLinear", x, scale, zero), scale, zero)
        return self._quantized[key]

    def weight_bytes(self) -> dict[str, int]:
        """Returns the bytes of each constant, by its name."""
        return {name: len(weight.raw_data) for name, weight in self._weights.items()}

    def save(self, path: Path, inputs: list[Input], outputs: dict[str, tuple[Dimension, ...]]) -> None:
        """Writes the graph; outputs are fp32."""
        graph = helper.make_graph(
            self._nodes,
            "peer",
            [_tensor(i.name, TensorProto.INT64 if i.integer else TensorProto.FLOAT, i.shape) for i in inputs],
            [_tensor(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            list(self._weights.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        large = sum(weight.ByteSize() for weight in self._weights.values()) > LARGEST_FILE
        onnx.save_model(model, str(path), save_as_external_data=large, location=f"{path.name}.weights")


def quantize(W_OI: Any) -> tuple[Any, Any]:
    """Returns `(q_OI int8, scale_O fp32)`: symmetric, each row by its largest magnitude; a row of zeros gets scale
    1."""
    largest_O = np.abs(W_OI).max(axis=1)
    scale_O = np.where(largest_O > 0, largest_O / 127, 1).astype(np.float32)
    return np.rint(W_OI / scale_O[:, None]).astype(np.int8), scale_O


def static_scale(largest: float) -> float:
    """Returns the step of uint8 around 128 that reaches `largest`; 1 if only zeros are expected."""
    return largest / 127 if largest > 0 else 1.0


def _tensor(name: str, kind: int, shape: tuple[Dimension, ...]) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))
