"""Other runtimes beside the engine: their environments, their processes, and that they compute the same model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from engine.errors import EngineError
from engine.peers import environments, llama_gguf, models
from engine.peers.contracts import Unavailable
from engine.peers.decoder import Decoder
from engine.peers.environments import DEEPSPARSE, ENVIRONMENTS, LLAMACPP
from engine.peers.layers import LAYER_PEERS
from engine.peers.process import Peer
from stages import checkpoints
from stages.benchmark import peer_backends
from stages.benchmark.backends import BACKENDS
from stages.contracts import Artifact, Checkpoint
from tests import tiny
from tests.running_stages import benchmarked
from tests.stage_options import benchmarking
from tests.tiny import text_data

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 320, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=32, sliding_window=256)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
}
PROMPT = list(range(5, 17))
LATER = [7, 300, 3]

RUNTIME = """
import os, sys

class Runtime:
    def add(self, a, b):
        print("a library that prints")
        return a + b

    def fail(self):
        raise ValueError("not\\nlike this")

    def die(self):
        print("Assertion at wand.hpp:120", file=sys.stderr)
        print("Backtrace: 1 2 3", file=sys.stderr, flush=True)
        os.abort()
"""


def family(kind: str) -> tuple[Any, Decoder, dict[str, Any]]:
    """A random model whose attention and biases are not near nothing, its sizes and its weights."""
    torch.manual_seed(0)
    model = FAMILIES[kind]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
            elif "q_proj" in name or "k_proj" in name:
                weight.mul_(10)
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return model, Decoder.of(model.config.to_dict()), weights


@torch.inference_mode()
def check_logits(peer: models.PeerModel | Unavailable, model: Any, tolerance: float, later: list[int] = LATER) -> None:
    """After the prompt and after each later token, largest difference to torch over torch's largest logit."""
    assert isinstance(peer, models.PeerModel)
    try:
        ids = list(PROMPT)
        peer.prefill([9, 9])  # a prompt before it leaves nothing
        peer.prefill(ids)
        for token in [*later, None]:
            expected_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            got_V = torch.tensor(peer.logits())
            assert (got_V - expected_V).abs().max() <= tolerance * expected_V.abs().max()
            if token is not None:
                ids.append(token)
                assert peer.decode(token) == int(torch.tensor(peer.logits()).argmax())
    finally:
        peer.close()


def installed(*names: str) -> pytest.MarkDecorator:
    reasons = [found.reason for found in map(environments.python_of, names) if isinstance(found, Unavailable)]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    (tmp_path / "run_own.py").write_text(RUNTIME)
    started = Peer(Path(sys.executable), "run_own", {"PYTHONPATH": str(tmp_path)})
    yield started
    started.close()


def test_what_a_runtime_prints_is_no_answer(peer: Peer) -> None:
    assert [peer.call("add", a=a, b=2) for a in (1, 2)] == [3, 4]


def test_an_error_in_a_runtime_is_one_line_and_not_its_end(peer: Peer) -> None:
    with pytest.raises(EngineError, match="own: ValueError: not like this"):
        peer.call("fail")
    assert peer.call("add", a=1, b=1) == 2


def test_a_runtime_that_dies_leaves_its_reason(peer: Peer) -> None:
    with pytest.raises(EngineError, match=r"^own: its process ended by SIGABRT: Assertion at wand.hpp:120$"):
        peer.call("die")
    with pytest.raises(EngineError, match="SIGABRT"):
        peer.call("add", a=1, b=1)


def test_a_runtime_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match="ended with status 1: ModuleNotFoundError: No module named 'run_nothing'"):
        Peer(Path(sys.executable), "run_nothing").call("ping")


def test_a_closed_process_is_gone_and_says_so(peer: Peer) -> None:
    peer.close()
    assert not psutil.pid_exists(peer.pid)
    with pytest.raises(EngineError, match="closed"):
        peer.call("ping")


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "run_own.py").write_text(RUNTIME)
    parent = f"""
import os, pathlib, sys
from engine.peers.process import Peer
peer = Peer(pathlib.Path(sys.executable), "run_own", {{"PYTHONPATH": {str(tmp_path)!r}}})
peer.call("ping")
print(peer.pid, flush=True)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", parent], cwd=environments.PROJECT, capture_output=True, check=True)
    child = int(run.stdout)
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent by 5 s")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_missing_environment_names_the_line_that_makes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "PROJECT", tmp_path)
    for python in (ENVIRONMENTS[name].python(), _of_other_pins(tmp_path, name)):
        assert python == Unavailable(f"{name} is not installed: make bench-env-{name}")
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert f"\nbench-env-{name}:" in makefile


def _of_other_pins(project: Path, name: str) -> Path | Unavailable:
    """What is found of an environment that was made of other pins."""
    folder = project / f".venv-{name}"
    folder.mkdir()
    (folder / ".installed").write_text("of other pins")
    return ENVIRONMENTS[name].python()


@pytest.mark.parametrize("environment", [DEEPSPARSE, LLAMACPP], ids=lambda environment: environment.name)
def test_pins_are_exact(environment: environments.Environment) -> None:
    lines = [line for line in environment.requirements.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 for line in lines)


@installed("onnxruntime")
def test_layers_in_onnx_equal_the_product(tmp_path: Path) -> None:
    import onnxruntime

    from engine.peers.onnx_graph import Graph, Input

    draw = np.random.default_rng(0)
    W_OI = draw.standard_normal((24, 40)).astype(np.float32) * np.geomspace(0.01, 1, 24, dtype=np.float32)[:, None]
    W_OI[draw.random(W_OI.shape) < 0.5] = 0
    W_OI[3] = 0
    b_O, x_TI = draw.standard_normal(24).astype(np.float32), draw.standard_normal((5, 40)).astype(np.float32)
    expected_TO = x_TI @ W_OI.T + b_O
    for style, largest in (("fp32", 0.0), ("int8_dynamic", 0.0), ("int8_static", float(np.abs(x_TI).max()))):
        graph = Graph()
        graph.linear("x", "layer", W_OI, b_O, style=style, largest=largest, out="y")
        path = tmp_path / f"{style}.onnx"
        graph.save(path, [Input("x", ("rows", 40))], {"y": ("rows", 24)})
        y_TO = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x_TI})[0]
        # int8: inputs and weights are each off by half a step at most
        step_x, step_O = 2 * np.abs(x_TI).max() / 254, np.abs(W_OI).max(1) / 127
        rounding_TO = step_x / 2 * np.abs(W_OI).sum(1) + np.abs(x_TI).sum(1)[:, None] * step_O / 2
        bound_TO = 1e-4 + (style != "fp32") * 1.05 * (rounding_TO + 40 * step_x * step_O / 4)
        assert (np.abs(y_TO - expected_TO) <= bound_TO).all(), style


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=installed(name.partition("_")[0])) for name in LAYER_PEERS]
)  # fmt: skip
def test_a_layer_is_timed_where_it_runs(name: str) -> None:
    W_OI = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    layer = LAYER_PEERS[name].prepare(W_OI, tokens=3, threads=1)
    assert not isinstance(layer, Unavailable)
    try:
        assert all(0 < layer.seconds(flush_bytes) < 1 for flush_bytes in (0, 1 << 20))
    finally:
        layer.close()


@installed("onnxruntime")
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_onnx_decoder_equals_torch(kind: str) -> None:
    model, decoder, weights = family(kind)
    check_logits(models.onnxruntime(decoder, weights, "fp32", 1), model, 1e-5)


@installed("onnxruntime")
def test_the_int8_onnx_decoder_is_near_torch() -> None:
    model, decoder, weights = family("llama")
    check_logits(models.onnxruntime(decoder, weights, "int8_dynamic", 1), model, 0.05)


@installed("deepsparse")
@pytest.mark.parametrize(("style", "tolerance"), [("fp32", 1e-5), ("int8_static", 0.1)])
def test_deepsparse_equals_torch_also_beyond_its_first_graphs(style: Any, tolerance: float) -> None:
    model, decoder, weights = family("llama")
    largest = peer_backends.largest_inputs(model)
    assert set(largest) == {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    peer = models.deepsparse(decoder, lambda: weights, style, 1, largest)
    check_logits(peer, model, tolerance, later=(LATER * 40)[:120])


@installed("llamacpp")
@pytest.mark.parametrize("kind", FAMILIES)
def test_llamacpp_is_near_torch(kind: str) -> None:
    model, decoder, weights = family(kind)
    check_logits(models.llamacpp(decoder, weights, "Q8_0", 1), model, 0.05)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_gguf_file_holds_the_model(kind: str, tmp_path: Path) -> None:
    import gguf

    _, decoder, weights = family(kind)
    llama_gguf.write(decoder, weights, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    biases = 3 if kind == "qwen2" else 0
    assert len(found) == 2 * (9 + biases) + (2 if kind == "llama" else 3)
    assert (found["token_embd.weight"] == weights["model.embed_tokens.weight"]).all()
    assert (found["blk.1.ffn_down.weight"] == weights["model.layers.1.mlp.down_proj.weight"]).all()
    q_OI, head = weights["model.layers.1.self_attn.q_proj.weight"], decoder.head_dim
    # llama.cpp turns rows 2i and 2i + 1 of a Llama's head, Hugging Face i and i + head / 2
    order = range(head) if kind == "qwen2" else [i // 2 + (i % 2) * head // 2 for i in range(head)]
    assert (found["blk.1.attn_q.weight"][head : 2 * head] == q_OI[[head + i for i in order]]).all()
    architecture = "qwen2" if kind == "qwen2" else "llama"
    assert reader.fields["general.architecture"].contents() == architecture
    assert reader.fields[f"{architecture}.attention.head_count_kv"].contents() == decoder.kv_heads
    types, read = llama_gguf.tensor_types(tmp_path / "model.gguf")
    assert types == {"F32": 2 * 7 + (1 if kind == "llama" else 2)}
    tables = {"token_embd.weight"} if kind != "llama" else set()
    assert read == sum(value.nbytes for name, value in found.items() if name not in tables)


def test_a_model_that_peers_do_not_run_is_refused() -> None:
    with pytest.raises(EngineError, match="model type 'opt'"):
        Decoder.of(tiny.build("opt").config.to_dict())
    scaled = LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(EngineError, match="rope_type 'linear'"):
        Decoder.of(scaled.to_dict())


def test_full_attention_ends_at_the_sliding_window() -> None:
    _, decoder, _ = family("mistral")
    decoder.check_length(256)
    with pytest.raises(EngineError, match="257 tokens"):
        decoder.check_length(257)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("inputs")
    return {"dense": Checkpoint(tiny.save_model(folder / "dense"), "dense"), "data": text_data(folder / "texts")}


@installed("onnxruntime")
def test_a_benchmark_row_tells_of_the_peer(dense: dict[str, Artifact], tmp_path: Path) -> None:
    chosen = ["torch_fp32", "onnxruntime_fp32", "onnxruntime_int8"]
    _, result, _ = benchmarked(tmp_path, dense, benchmarking(backends=chosen))
    torch_row, fp32, int8 = result.rows()
    assert fp32["same_tokens"] == 1.0
    assert "us a call go to the pipe" in fp32["note"]
    weights = checkpoints.load(dense["dense"]).state_dict()  # type: ignore[arg-type]
    assert 0 < fp32["weight_bytes"] - torch_row["weight_bytes"] < 0.01 * sum(w.nbytes for w in weights.values())
    assert int8["weight_bytes"] < 0.3 * fp32["weight_bytes"]
    assert fp32["memory_bytes"] > 10e6, "the runtime's own process"


@installed("onnxruntime")
def test_a_model_that_a_peer_does_not_run_is_a_row_with_the_reason(dense: dict[str, Artifact], tmp_path: Path) -> None:
    opt = Checkpoint(tiny.save_model(tmp_path / "opt", "opt"), "opt")
    _, result, _ = benchmarked(tmp_path, dense | {"dense": opt}, benchmarking(backends=["onnxruntime_fp32"]))
    [row] = result.rows()
    assert row["status"] == "n/a"
    assert "model type 'opt'" in row["reason"]


def test_a_backend_without_its_environment_is_unavailable(
    dense: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "PROJECT", tmp_path)
    assert isinstance(dense["dense"], Checkpoint)
    found = BACKENDS.get("llamacpp_q4_k").prepare(dense["dense"], 1)
    assert found == Unavailable("llamacpp is not installed: make bench-env-llamacpp")
