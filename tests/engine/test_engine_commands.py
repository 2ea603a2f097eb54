"""The engine's command line: export, info, generate, bench, and errors of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import checkpoints, files, record
from engine.__main__ import main
from engine.weights import DTYPES
from stages.families import get
from stages.quantize import quantized
from tests import tiny
from tests.tiny_engine import packed_model, quantized_checkpoint


def test_help_is_shown_without_importing_torch() -> None:
    code = "import sys; from engine.__main__ import main\ntry: main(['bench', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "--prompt-tokens" in shown.stdout


def test_export_of_a_quantized_checkpoint_takes_its_int8_linears_and_no_others(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    original = quantized_checkpoint(source)
    assert main(["export", str(source), str(out), "--dtype", "int8"]) == 0
    model = files.load(out)
    assert files.engine_linears(model).keys() == quantized.linears(original).keys()
    for name, linear in quantized.linears(original).items():
        packed = files.engine_linears(model)[name].packed
        assert torch.equal(packed.dense(), linear.weight.float() * linear.weight_scale[:, None])
    ids_1T = torch.arange(1, 12)[None]
    assert torch.allclose(model(ids_1T).logits, original(ids_1T).logits, rtol=1e-3, atol=1e-4)
    assert checkpoints.read_tokenizer(out) is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_export_of_a_checkpoint_in_floating_point_takes_all_linears_but_the_head(dtype: str, tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "source")
    assert main(["export", str(tmp_path / "source"), str(tmp_path / "out"), "--dtype", dtype, "--head", dtype]) == 0
    facts = record.read(tmp_path / "out")
    assert (facts.dtype, facts.head) == (dtype, dtype)
    model = tiny.build()
    head = set() if dtype == "fp32" else {"lm_head"}
    assert facts.linears.keys() == get("causal_lm").prunable(model).keys() | head
    files.load(tmp_path / "out")


def test_info_tells_sparsity_and_size(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(exported)]) == 0
    facts = record.read(exported)
    weights = sum(linear.rows * linear.columns for linear in facts.linears.values())
    shown = capsys.readouterr().out
    assert f"{1 - sum(linear.nnz for linear in facts.linears.values()) / weights:.4f}" in shown
    assert f"{sum(linear.bytes for linear in facts.linears.values()) / (4 * weights):.1%}" in shown


def test_generate_streams_what_the_model_says(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(exported), "--prompt", "the river", "--max-new-tokens", "5", "--threads", "1"]
    assert main(arguments) == 0
    tokenizer = checkpoints.read_tokenizer(exported)
    ids_1T = tokenizer("the river", return_tensors="pt")["input_ids"]
    expected = files.load(exported).generate(ids_1T, max_new_tokens=5, do_sample=False)
    assert capsys.readouterr().out.strip() == tokenizer.decode(expected[0], skip_special_tokens=True).strip()


def test_bench_prints_a_row_for_each_way_to_decode(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--prompt-tokens", "4", "--new-tokens", "2", "--rounds", "2", "--threads", "1"]
    assert main(["bench", str(exported), *sizes]) == 0
    shown = capsys.readouterr().out
    assert "prompt of 4 tokens, 2 interleaved rounds" in shown
    rows = [line.split()[0] for line in shown.splitlines() if line.startswith(("transformers", "engine"))]
    assert rows == ["transformers", "engine"]
    files.save(packed_model("opt"), tmp_path / "opt")
    assert main(["bench", str(tmp_path / "opt"), *sizes]) == 0
    assert "engine: n/a (opt is not among" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "{}/nowhere"], "there is no engine.json"),
        (["generate", "{}", "--prompt", ""], "--prompt has no tokens"),
        (["generate", "{}", "--prompt", "the", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["generate", "{}", "--prompt", "the", "--max-new-tokens", "9999"], "do not fit the model's context"),
        (["generate", "{}", "--prompt", "the", "--threads", "-1"], "threads is -1"),
        (["bench", "{}", "--rounds", "0"], "--rounds is 0"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(
    arguments: list[str], message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(exported) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
