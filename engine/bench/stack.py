"""Decodes a random Llama of a few layers of a large one's shape, token by token in torch, the engine and llama.cpp."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine.bench import roofline
from engine.bench.bandwidth import ReadBandwidth
from engine.bench.decoding import EngineRunner, PeerRunner, Prompt, Runner, TransformersRunner, greedy
from engine.bench.rounds import Contender, median_seconds, speedup
from engine.conversion import convert
from engine.decoder import Decoder, EncoderDecoder
from engine.errors import EngineError
from engine.peers import decoder as peer_decoder
from engine.peers import models
from engine.peers.contracts import Unavailable
from engine.weights import DType

Row = dict[str, Any]
BASELINE = "torch_fp32"
WARMUP = 1
"""Rounds that are not counted."""
FIRST = Prompt(torch.tensor([[1]]))
"""Token that every round starts from, with an empty cache."""


@dataclass(frozen=True)
class Shape:
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def layer_linears(self) -> list[tuple[int, int]]:
        """Returns the outputs and inputs of a layer's linears."""
        kv = self.width // self.heads * self.kv_heads
        attention = [(self.width, self.width), (kv, self.width), (kv, self.width), (self.width, self.width)]
        return [*attention, *[(self.mlp_width, self.width)] * 2, (self.width, self.mlp_width)]

    def check(self) -> None:
        """Raises EngineError for sizes that are not valid for a Llama."""
        if self.width % self.heads or self.heads % self.kv_heads or self.width // self.heads % 2:
            raise EngineError(
                f"width {self.width}, {self.heads} heads and {self.kv_heads} key heads do not divide one another, or "
                "a head's size is odd; change --width, --heads or --kv-heads"
            )


@dataclass(frozen=True)
class EngineForm:
    dtype: DType
    head: DType
    dense: bool


_FORMS: tuple[tuple[str, DType, DType], ...] = (
    ("engine_fp32", "fp32", "fp32"),
    ("engine_bf16", "bf16", "fp32"),
    ("engine_int8", "int8", "fp32"),
    ("engine_int8_head", "int8", "int8"),
)
ENGINE_FORMS = {
    name + "_dense" * dense: EngineForm(dtype, head, dense) for name, dtype, head in _FORMS for dense in (True, False)
}
TORCH_DTYPES = {"torch_fp32": torch.float32, "torch_bf16": torch.bfloat16}
LLAMACPP_TYPES = {"llamacpp_q8_0": "Q8_0", "llamacpp_q4_k": "Q4_K_M"}
LLAMACPP_BYTES = {"llamacpp_q8_0": 1.06, "llamacpp_q4_k": 0.62}
"""Approximate bytes of a weight."""


class StepRunner(EngineRunner):
    """Runs prompts in the engine's step too, since the model around it has no layers left."""

    def prefill(self, prompt: Prompt) -> int:
        self.decoder.position = 0
        return self.decode(int(prompt.ids_1T))


@dataclass(kw_only=True)
class StackContender(Contender[float]):
    """A form of the model; its rounds are seconds of one step, the mean of each round."""

    note: str | None = None
    decoder: Decoder | EncoderDecoder | None = None
    """Decoder of the engine."""


@torch.no_grad()
def one_layer(shape: Shape, sparsity: float, context: int) -> Any:
    """Returns the model of one layer, fp32, random, with zeros at random places in its linears except the head."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=1,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
    )
    model.float().requires_grad_(False).eval()
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight[torch.rand(module.weight.shape) < sparsity] = 0
    return model


def repeated(model: Any, layers: int) -> Any:
    """Repeats the one layer in place, by copies with memory of their own."""
    first = model.model.layers[0]
    for number in range(1, layers):
        layer = copy.deepcopy(first)
        layer.self_attn.layer_idx = number
        model.model.layers.append(layer)
    model.config.num_hidden_layers = layers
    return model


def without_copies(model: nn.Module) -> Any:
    """Returns new modules around the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def prepare(name: str, model: Any, layers: int, context: int, threads: int, new_tokens: int) -> StackContender:
    """Prepares the contenders. `model` has one layer and is left unchanged."""
    contender = StackContender(name=name)
    try:
        runner = runner_of(name, model, layers, context, threads)
    except EngineError as error:
        contender.reason = str(error)
        return contender
    if isinstance(runner, Unavailable):
        contender.reason = runner.reason
        return contender
    contender.measure, contender.end = partial(_seconds_per_step, runner, new_tokens), runner.close
    contender.weight_bytes, contender.note = runner.weight_bytes, runner.note
    contender.decoder = runner.decoder if isinstance(runner, EngineRunner) else None
    return contender


def runner_of(name: str, model: Any, layers: int, context: int, threads: int) -> Runner | Unavailable:
    if name in TORCH_DTYPES:
        own = without_copies(model) if name == BASELINE else copy.deepcopy(model).to(TORCH_DTYPES[name])
        return TransformersRunner(repeated(own, layers))
    if name in ENGINE_FORMS:
        return StepRunner(_engine(ENGINE_FORMS[name], model, layers, context))
    peer = _llamacpp(LLAMACPP_TYPES[name], model, layers, threads)
    return peer if isinstance(peer, Unavailable) else PeerRunner(peer)


def _engine(form: EngineForm, model: Any, layers: int, context: int) -> Decoder:
    own = convert(without_copies(model), dtype=form.dtype, head=form.head, keep_dense=form.dense)
    decoder = Decoder(repeated(own, layers), context)
    # a step reads the kernels' forms; their sources would take as much memory again
    own.model.layers = nn.ModuleList()
    return decoder


def _llamacpp(file_type: str, model: Any, layers: int, threads: int) -> models.PeerModel | Unavailable:
    decoder = peer_decoder.Decoder.of(model.config.to_dict() | {"num_hidden_layers": layers})
    weights: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        copies = range(layers) if name.startswith("model.layers.0.") else [0]
        weights |= {name.replace(".0.", f".{number}.", 1): weight.numpy() for number in copies}
    return models.llamacpp(decoder, weights, file_type, threads)


def _seconds_per_step(runner: Runner, new_tokens: int) -> float:
    times, _ = greedy(runner, FIRST, new_tokens)
    return (times[-1] - times[1]) / new_tokens


def rows_of(contenders: Sequence[StackContender], bandwidth: ReadBandwidth) -> list[Row]:
    """Returns the rows. Ratios are quotients of median rounds. `memory_limit_tokens_per_second`: the speed if a step
    only read the weights, at the measured bandwidth. `step_us`: the engine's mean step by phase, since the warm-up; to
    be read once."""
    medians = median_seconds(contenders)
    rows: list[Row] = []
    for contender in contenders:
        row: Row = {"contender": contender.name}
        if contender.name not in medians:
            rows.append(row | {"status": "n/a", "reason": contender.reason or "ended before its first round"})
            continue
        median, read = medians[contender.name], contender.weight_bytes
        rate = None if read is None else roofline.gigabytes_per_second(read, median)
        profile = contender.decoder.profile() if contender.decoder else None
        rows.append(
            row
            | {
                "status": "ok",
                "tokens_per_second": 1 / median,
                "tokens_per_second_min": 1 / max(contender.rounds),
                "tokens_per_second_max": 1 / min(contender.rounds),
                "step_us_rounds": [1e6 * seconds for seconds in contender.rounds],
                **{f"over_{name}": speedup(medians, contender.name, name) for name in (BASELINE, "llamacpp_q4_k")},
                "bytes_per_token": read,
                "gigabytes_per_second": rate,
                "share_of_bandwidth": None if rate is None else rate / bandwidth.gigabytes_per_second,
                "memory_limit_tokens_per_second": (
                    None if read is None else 1e9 * bandwidth.gigabytes_per_second / read
                ),
                "step_us": (
                    {phase: 1e6 * s / profile.steps for phase, s in profile.seconds.items()} if profile else None
                ),
                "note": contender.note,
            }
        )
    return rows


def memory_bytes(shape: Shape, layers: int, sparsity: float, names: Sequence[str]) -> float:
    """Returns approximately the peak memory while `names` are prepared in this order."""
    linears = shape.layer_linears
    layer = sum(roofline.dense_bytes(*linear, "fp32") for linear in linears)
    table = roofline.dense_bytes(shape.vocabulary, shape.width, "fp32")
    kept = most = float(layer + 2 * table)  # the model of one layer, which the others are made from
    for name in names:
        passing = 0.0
        if name == BASELINE:
            kept += (layers - 1) * layer
        elif name in TORCH_DTYPES:
            kept += layers * layer / 2 + table
            passing = layer + 2 * table
        elif name in ENGINE_FORMS:
            form = ENGINE_FORMS[name]
            stored = layers * sum(_stored_bytes(form, *linear, sparsity) for linear in linears)
            kept += stored + (table / 4 if form.head == "int8" else 0)
            passing = 2 * stored  # linears apart, and those that share their input stacked
        else:
            kept += LLAMACPP_BYTES[name] * (layers * layer + 2 * table) / 4
        most = max(most, kept + passing)
    return most


def _stored_bytes(form: EngineForm, rows: int, columns: int, sparsity: float) -> float:
    if form.dense:
        return roofline.dense_bytes(rows, columns, form.dtype)
    return roofline.bitmask_bytes(rows, columns, sparsity, form.dtype)
