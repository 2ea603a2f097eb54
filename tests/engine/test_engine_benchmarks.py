"""bench-layers and bench-stack: rooflines in closed form, ratios that are quotients of what stands beside them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.__main__ import main
from engine.bench import layers, machine, roofline, stack
from engine.bench.bandwidth import ReadBandwidth
from engine.bench.decoding import greedy
from engine.bench.layers import Case, LayerContender
from engine.bench.rounds import Contender, Spread, interleave
from engine.conversion import convert
from engine.errors import EngineError
from engine.peers import layers as peer_layers
from engine.peers.contracts import Unavailable
from tests.tiny_engine import PHASES, needs_kernels

pytestmark = needs_kernels

SHAPE = stack.Shape(width=48, mlp_width=80, heads=6, kv_heads=2, vocabulary=130)
STACK = ["--width", "48", "--mlp-width", "80", "--heads", "6", "--kv-heads", "2", "--vocabulary", "130",
         "--layers", "2", "--new-tokens", "3", "--rounds", "2", "--sparsity", "0.6"]  # fmt: skip
LAYERS = ["--shapes", "64x32,24x128", "--tokens", "1,9", "--sparsities", "0,0.5", "--rounds", "3", "--flush", "1"]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "default_flush_bytes", lambda: 1 << 20)


@pytest.mark.parametrize(
    ("sparsity", "fp32", "bf16", "int8"),
    [(0.5, 32 / 17, 32 / 9, 32 / 5), (0.75, 32 / 9, 32 / 5, 32 / 3), (0.875, 32 / 5, 32 / 3, 16)],
)
def test_the_storage_roofline_is_a_bit_and_the_non_zeros(
    sparsity: float, fp32: float, bf16: float, int8: float
) -> None:
    for dtype, expected in (("fp32", fp32), ("bf16", bf16), ("int8", int8)):
        name: Any = dtype
        stored = roofline.bitmask_bytes(64, 96, sparsity, name)
        assert roofline.storage_ratio(64, 96, stored) == pytest.approx(expected)
    assert roofline.storage_ratio(64, 96, roofline.dense_bytes(64, 96, "bf16")) == 2


def test_the_other_limits_in_closed_form() -> None:
    assert roofline.flop_ratio(0.75) == 4
    assert roofline.flop_ratio(0) == 1
    assert roofline.gigabytes_per_second(3e9, 0.5) == 6
    assert roofline.gigaflops(8, 500, 1000, 1e-3) == 8


def test_the_last_level_cache_is_the_one_of_the_highest_level(tmp_path: Path) -> None:
    for number, (level, size) in enumerate(((1, "48K"), (1, "32K"), (2, "2048K"), (3, "96M"))):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "level").write_text(f"{level}\n")
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert machine.last_level_cache_bytes(tmp_path) == 96 << 20
    assert machine.last_level_cache_bytes(tmp_path / "nowhere") is None


def contender(name: str, dense: bool, microseconds: list[int], stored_bytes: int | None = None) -> LayerContender:
    seconds = [1e-6 * each for each in microseconds]
    return LayerContender(name=name, dtype=name.split("_")[1], dense=dense, weight_bytes=stored_bytes, rounds=seconds)


def test_ratios_are_over_torch_the_same_dtype_and_the_fastest_dense() -> None:
    contenders = [
        contender("torch_fp32", True, [900, 1000, 5000], 4_000_000),
        contender("engine_int8_dense", True, [250, 250, 250], 1_000_000),
        contender("engine_int8", False, [100, 50, 200], 500_000),
        contender("engine_bf16", False, [400, 400, 400], 1_000_000),
        contender("deepsparse_int8", False, [125, 125, 125]),
    ]
    rows = {
        row["contender"]: row for row in layers.rows_of(Case(1000, 1000, 1, 0.75), contenders, ReadBandwidth(10, ""))
    }
    sparse = rows["engine_int8"]
    assert (sparse["median_us"], sparse["min_us"], sparse["max_us"]) == pytest.approx((100, 50, 200))
    assert sparse["over_torch_fp32_dense"] == pytest.approx(10)
    assert sparse["over_same_dtype_dense"] == sparse["over_fastest_dense"] == pytest.approx(2.5)
    assert sparse["fastest_dense"] == "engine_int8_dense"
    assert sparse["gigabytes_per_second"] == pytest.approx(5)
    assert sparse["share_of_bandwidth"] == pytest.approx(0.5)
    assert sparse["storage_roofline"] == pytest.approx(8)
    assert (sparse["flop_roofline"], rows["torch_fp32"]["flop_roofline"]) == (4, 1)
    assert rows["engine_bf16"]["over_same_dtype_dense"] is None, "the engine's dense bf16 did not run"
    assert rows["engine_bf16"]["over_fastest_dense"] == pytest.approx(0.625)
    assert rows["deepsparse_int8"]["over_same_dtype_dense"] == pytest.approx(2)
    assert rows["deepsparse_int8"]["share_of_bandwidth"] is None


def test_beyond_a_few_tokens_torch_is_the_dense_fp32_of_the_engine_and_memory_no_limit() -> None:
    contenders = [contender("torch_fp32", True, [600], 40), contender("engine_fp32", False, [200], 20)]
    row = layers.rows_of(Case(1000, 1000, 9, 0.5), contenders, ReadBandwidth(10, ""))[1]
    assert row["over_same_dtype_dense"] == pytest.approx(3)
    assert row["share_of_bandwidth"] is None


def test_random_layers_have_the_sparsity_and_nested_masks() -> None:
    W_OI, x_TI = layers.random_layer(Case(300, 400, 3, 0.5))
    sparser_OI, _ = layers.random_layer(Case(300, 400, 3, 0.8))
    assert x_TI.shape == (3, 400)
    assert float((W_OI == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((sparser_OI == 0).float().mean()) == pytest.approx(0.8, abs=0.01)
    kept_OI = sparser_OI != 0
    assert torch.equal(sparser_OI[kept_OI], W_OI[kept_OI])


def test_layers_are_measured_in_every_case_and_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "layers.json"
    assert main(["bench-layers", *LAYERS, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["complete"]
    assert record["machine"]["threads"] == 1
    assert record["protocol"]["flush_bytes"] == 1_000_000
    names = ["torch_fp32", "torch_bf16"]
    names += [f"engine_{dtype}{dense}" for dtype in ("fp32", "bf16", "int8") for dense in ("_dense", "")]
    found = [(r["rows"], r["columns"], r["tokens"], r["sparsity"], r["contender"]) for r in record["rows"]]
    shapes = [(64, 32), (24, 128)]
    assert found == [(*shape, *rest) for shape, *rest in product(shapes, (1, 9), (0, 0.5), names)]
    for row in record["rows"]:
        case = [r for r in record["rows"] if all(r[k] == row[k] for k in ("rows", "columns", "tokens", "sparsity"))]
        if row["status"] != "ok":
            continue
        assert len(row["rounds_us"]) == 3
        medians = {r["contender"]: r["median_us"] for r in case if r["status"] == "ok"}
        dense = {name: us for name, us in medians.items() if name.startswith("torch") or name.endswith("dense")}
        assert row["over_torch_fp32_dense"] == pytest.approx(medians["torch_fp32"] / row["median_us"])
        assert row["over_fastest_dense"] == pytest.approx(min(dense.values()) / row["median_us"])
    missing = {(r["contender"], r["tokens"], r["sparsity"]) for r in record["rows"] if r["status"] != "ok"}
    assert missing == {
        *product(["engine_fp32", "engine_bf16", "engine_int8"], (1, 9), (0,)),
        *product(["engine_fp32_dense"], (9,), (0, 0.5)),
    }
    shown = capsys.readouterr().out
    assert "64 x 32, 1 token, 1 thread (after reading 1 MB of other memory)" in shown
    assert "24 x 128, 9 tokens, 1 thread (hot: weights may stay in the cache)" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_a_peer_that_is_not_there_is_a_row_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer_layers, "python_of", lambda runtime: Unavailable(f"no {runtime}"))
    out = tmp_path / "layers.json"
    assert main(["bench-layers", *LAYERS, "--peers", "deepsparse_int8", "--dtypes", "int8", "--json", str(out)]) == 0
    rows = [row for row in json.loads(out.read_text())["rows"] if row["contender"] == "deepsparse_int8"]
    assert [(row["status"], row["reason"]) for row in rows] == 8 * [("n/a", "no deepsparse")]
    assert "n/a (no deepsparse): deepsparse_int8 at 0 0.5" in capsys.readouterr().out


def test_contenders_take_turns_and_the_warm_up_is_not_kept() -> None:
    clock = iter(range(100))
    contenders = [Contender(name=name, measure=lambda: next(clock)) for name in "ABC"]
    turns = [(number, contender.name) for number, contender in interleave(contenders, 1, 2)]
    assert turns == [(number, name) for number in (-1, 0, 1) for name in "ABC"]
    assert [contender.rounds for contender in contenders] == [[3, 6], [4, 7], [5, 8]]
    assert str(Spread([3.0, 6.0, 30.0])) == "6 (3–30)"
    assert str(Spread([999.6, 1390.4, 24500.0])) == "1390 (1000–24500)"


def test_a_runtime_that_dies_is_out_and_the_others_go_on() -> None:
    ended, answers = [], iter([1.0, 2.0])

    def dying() -> float:
        for answer in answers:
            return answer
        raise EngineError("its process ended")

    lost = Contender(name="deepsparse_int8", measure=dying, end=lambda: ended.append("once"))
    other = Contender(name="torch_fp32", measure=lambda: 3.0)
    for _ in interleave([lost, other], 0, 4):
        pass
    assert (lost.reason, lost.rounds, ended) == ("its process ended", [], ["once"])
    assert other.rounds == [3.0] * 4


def test_ctrl_c_shows_and_keeps_the_cases_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = layers.measure

    def interrupted(case: Case, *args: Any, **options: Any) -> Any:
        if case.sparsity:
            raise KeyboardInterrupt
        return measure(case, *args, **options)

    monkeypatch.setattr(layers, "measure", interrupted)
    out = tmp_path / "layers.json"
    assert main(["bench-layers", *LAYERS, "--json", str(out)]) == 130
    record = json.loads(out.read_text())
    assert not record["complete"]
    assert {(row["tokens"], row["sparsity"]) for row in record["rows"]} == {(1, 0)}
    assert "64 x 32, 1 token" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["engine_fp32", "engine_fp32_dense"])
def test_the_engine_decodes_the_stack_as_torch_does(name: str) -> None:
    model = stack.one_layer(SHAPE, 0.6, 16)
    model.lm_head.weight *= 50  # clear winners
    tokens = []
    for contender in ("torch_fp32", name):
        runner = stack.runner_of(contender, model, 3, 16, 1)
        assert not isinstance(runner, Unavailable)
        for _ in range(2):  # the second sequence starts from an empty cache
            tokens.append(greedy(runner, stack.FIRST, 8)[1])
    assert tokens.count(tokens[0]) == 4
    assert len(set(tokens[0])) > 1
    assert len(model.model.layers) == 1, "the model is left as it is"


@pytest.mark.parametrize("dense", [False, True])
def test_layers_of_a_stack_share_no_memory(dense: bool) -> None:
    model = stack.one_layer(SHAPE, 0.6, 16)
    repeated = stack.repeated(copy.deepcopy(model), 3)
    pointers = [parameter.data_ptr() for parameter in repeated.parameters()]
    assert len(set(pointers)) == len(pointers) == 3 + 3 * 9
    converted = stack.repeated(convert(copy.deepcopy(model), dtype="fp32", keep_dense=dense), 3)
    linears = [layer.mlp.down_proj for layer in converted.model.layers]
    assert len({linear.matrix().handle for linear in linears}) == 3
    assert len({linear.packed.values.data_ptr() for linear in linears}) == 3


def test_a_stack_is_measured_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "stack.json"
    names = [*stack.TORCH_DTYPES, *stack.ENGINE_FORMS]
    assert main(["bench-stack", *STACK, "--backends", ",".join(names), "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    rows = {row["contender"]: row for row in record["rows"]}
    assert list(rows) == names
    linears = sum(a * b for a, b in SHAPE.layer_linears)
    head = SHAPE.vocabulary * SHAPE.width
    assert rows["engine_fp32_dense"]["bytes_per_token"] == 4 * (2 * linears + head)
    assert rows["engine_int8"]["bytes_per_token"] < rows["engine_int8_dense"]["bytes_per_token"]
    for name, row in rows.items():
        assert len(row["step_us_rounds"]) == 2
        ratio = row["tokens_per_second"] / rows["torch_fp32"]["tokens_per_second"]
        assert row["over_torch_fp32"] == pytest.approx(ratio)
        assert row["gigabytes_per_second"] == pytest.approx(row["bytes_per_token"] * row["tokens_per_second"] / 1e9)
        assert (row["step_us"] is not None) == name.startswith("engine")
    assert list(rows["engine_bf16"]["step_us"]) == list(PHASES)
    assert all(time > 0 for time in rows["engine_bf16"]["step_us"].values())
    shown = capsys.readouterr().out
    assert "random Llama: 2 layers of width 48" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_a_stack_says_what_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stack.models, "python_of", lambda runtime: Unavailable(f"no {runtime}"))
    out = tmp_path / "stack.json"
    assert main(["bench-stack", *STACK, "--backends", "torch_fp32,llamacpp_q4_k", "--json", str(out)]) == 0
    ran, missing = json.loads(out.read_text())["rows"]
    assert ran["over_llamacpp_q4_k"] is None
    assert missing == {"contender": "llamacpp_q4_k", "status": "n/a", "reason": "no llamacpp"}
    assert "llamacpp_q4_k: n/a (no llamacpp)" in capsys.readouterr().out


def test_memory_of_a_stack_in_closed_form() -> None:
    layer, table = 4 * sum(a * b for a, b in SHAPE.layer_linears), 4 * 130 * 48
    assert stack.memory_bytes(SHAPE, 3, 0.5, []) == layer + 2 * table
    assert stack.memory_bytes(SHAPE, 3, 0.5, ["torch_fp32"]) == 3 * layer + 2 * table
    sparse = 3 * layer * (1 / 2 + 1 / 32)
    expected = 3 * layer + 2 * table + sparse + 2 * sparse
    assert stack.memory_bytes(SHAPE, 3, 0.5, ["torch_fp32", "engine_fp32"]) == pytest.approx(expected)


def test_help_needs_no_torch() -> None:
    for command in ("bench-layers", "bench-stack"):
        code = f"import sys; from engine.__main__ import main\ntry: main(['{command}', '--help'])\n"
        code += "except SystemExit: pass\nsys.exit('torch' in sys.modules)"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
        assert "--rounds" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench-layers", "--shapes", "4096"], "--shapes has '4096', expected sizes such as 4096x4096"),
        (["bench-layers", "--shapes", "0x8"], "--shapes has '0x8'"),
        (["bench-layers", "--sparsities", "0.5,1"], "--sparsities has '1', expected numbers from 0 to below 1"),
        (["bench-layers", "--tokens", "one"], "--tokens has 'one'"),
        (["bench-layers", "--dtypes", "fp16"], "--dtypes has 'fp16', expected all or some of: fp32, bf16, int8"),
        (["bench-layers", "--peers", "openvino"], "--peers has 'openvino', expected all or some of: onnxruntime_fp32"),
        (["bench-layers", "--rounds", "0"], "--rounds is 0, expected at least 1"),
        (["bench-layers", "--flush", "-1"], "--flush is -1, expected at least 0"),
        (["bench-layers", "--json", "nowhere/at/all.json"], "--json is nowhere/at/all.json, expected a file"),
        (["bench-stack", "--sparsity", "1"], "--sparsity is 1.0, expected from 0 to below 1"),
        (["bench-stack", "--backends", "vllm"], "--backends has 'vllm', expected all or some of: torch_fp32"),
        (["bench-stack", "--heads", "5"], "change --width, --heads or --kv-heads"),
        (["bench-stack", "--kv-heads", "0"], "--kv-heads is 0, expected at least 1"),
        (["bench-stack", "--layers", "100000"], "ask for fewer --layers or --backends"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
