"""Where a decoding step's time goes: the parts are the whole, and `bench` prints and writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import engine
from engine.__main__ import main
from engine.bench.bandwidth import ReadBandwidth
from engine.bench.breakdown import OUTSIDE, breakdown
from engine.bench.weight_bytes import bytes_per_token
from engine.decoder import Decoder
from engine.step import Profile
from tests import tiny
from tests.tiny_engine import PHASES, needs_kernels

pytestmark = needs_kernels


def test_a_breakdown_divides_the_step_into_its_phases_and_what_is_outside() -> None:
    profile = Profile(10, {"qkv": 20e-3, "attention": 10e-3}, {"qkv": 4_000_000})
    found = breakdown(profile, step_s=4e-3, transformers_step_s=9e-3, memory=ReadBandwidth(8.0, "a sum"))
    assert [phase.name for phase in found.phases] == ["qkv", "attention", OUTSIDE]
    assert [phase.microseconds for phase in found.phases] == pytest.approx([2000, 1000, 1000])
    assert [phase.percent for phase in found.phases] == pytest.approx([50, 25, 25])
    assert [phase.weight_bytes for phase in found.phases] == [4_000_000, None, None]
    assert found.phases[0].gigabytes_per_second == pytest.approx(2)
    assert found.microseconds == pytest.approx(4000)
    assert found.transformers_microseconds == pytest.approx(9000)
    assert found.limit_microseconds == pytest.approx(500)


def test_the_products_of_a_step_read_all_weights_but_norms() -> None:
    model = engine.convert(tiny.build(), dtype="fp32")
    decoder = Decoder(model, context=8)
    read = decoder.profile().weight_bytes
    assert read.keys() == {"qkv", "out", "up", "down", "head"}
    assert read["head"] == 4 * tiny.VOCABULARY * 32
    assert read["up"] == 2 * read["down"] == 2 * 2 * 4 * 64 * 32
    assert decoder.weight_bytes == sum(read.values())
    norms = sum(norm.nbytes for name, norm in model.named_parameters() if "norm" in name)
    assert 0 <= bytes_per_token(model) - decoder.weight_bytes - norms <= 64  # and the rotary frequencies


def test_bench_prints_the_step_and_writes_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, record = tmp_path / "out", tmp_path / "bench.json"
    engine.save(engine.convert(tiny.build(), dtype="fp32"), out)
    sizes = ["--prompt-tokens", "4", "--new-tokens", "3", "--rounds", "2", "--threads", "1"]
    assert main(["bench", str(out), *sizes, "--json", str(record)]) == 0
    shown = capsys.readouterr().out
    assert "mean of 6" in shown  # not of the warm-up
    assert "MB from memory at" in shown
    rows = [line.split()[0] for line in shown.splitlines() if line]
    first = rows.index("qkv")
    assert rows[first : first + len(PHASES) + 2] == [*PHASES, OUTSIDE, "all"]
    found = json.loads(record.read_text())
    for key in ("prefill_ms", "step_microseconds"):
        assert {name: len(values) for name, values in found[key].items()} == {"transformers": 2, "engine": 2}
    step = found["engine_step"]
    assert step["steps"] == 6
    assert sum(phase["microseconds"] for phase in step["phases"]) == pytest.approx(step["microseconds"])
    assert sum(phase["percent"] for phase in step["phases"]) == pytest.approx(100)
    mean = sum(found["step_microseconds"]["engine"]) / 2
    assert step["microseconds"] == pytest.approx(mean)
    assert all(phase["microseconds"] > 0 for phase in step["phases"])


def test_a_record_that_could_not_be_written_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tmp_path), "--json", str(tmp_path / "nowhere" / "bench.json")]) == 2
    assert "--json" in capsys.readouterr().err
