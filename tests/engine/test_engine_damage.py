"""Damaged folders of the engine are refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine import files, record
from engine.errors import EngineError
from engine.weights import PackedWeight
from tests.tiny_engine import FUZZ, GATE, reseal, sparse_matrix, tensors_of


@FUZZ
@given(data=st.data())
def test_any_flipped_bit_is_refused(exported: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(exported.iterdir())))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    broken = changed(exported, tmp_path, path.name, bytes(content))
    with pytest.raises(EngineError):
        files.load(broken)


@FUZZ
@given(data=st.data())
def test_any_cut_file_is_refused(exported: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(exported.iterdir())))
    content = path.read_bytes()
    broken = changed(exported, tmp_path, path.name, content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(EngineError):
        files.load(broken)


@FUZZ
@given(data=st.data())
def test_a_changed_file_that_is_vouched_for_loads_whole_or_is_refused(
    exported: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Beyond accidents: the digests are right, and the loader has only its own checks. Anything but EngineError, or a
    model with a trustworthy form, would be a crash."""
    content = bytearray((exported / record.WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    # half of the flips hit the header, which is small
    end = data.draw(st.sampled_from([header, len(content)])) - 1
    content[data.draw(st.integers(0, end))] ^= 1 << data.draw(st.integers(0, 7))
    broken = changed(exported, tmp_path, record.WEIGHTS, bytes(content))
    reseal(broken)
    try:
        model = files.load(broken)
    except EngineError:
        return
    for name, linear in files.engine_linears(model).items():
        linear.packed.check(name)


def changed(source: Path, tmp_path: Path, name: str, content: bytes) -> Path:
    broken = tmp_path / "changed"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(source, broken)
    (broken / name).write_bytes(content)
    return broken


def _drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def _set(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def _last_bit(bitmask: Tensor) -> Tensor:
    bitmask[0, -1] ^= 0x80
    return bitmask


def _at(index: int, value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([index]), value)


TAMPERED = {
    "dropped bitmask": (_drop(f"{GATE}.bitmask"), "bitmask is missing"),
    "dropped scale": (_drop(f"{GATE}.weight_scale"), "weight_scale is missing"),
    "dropped norm": (_drop("model.norm.weight"), "model.norm.weight is missing"),
    "unexpected tensor": (lambda tensors: tensors.update(odd=torch.ones(1)), "odd is unexpected"),
    "a second weight": (lambda tensors: tensors.update({f"{GATE}.weight": torch.ones(1)}), "is unexpected"),
    "row offsets lie": (_set(f"{GATE}.row_offsets", _at(2, 1 << 40)), "row offsets are not the sums"),
    "negative row offset": (_set(f"{GATE}.row_offsets", _at(0, -8)), "row offsets are not the sums"),
    "a bit more": (_set(f"{GATE}.bitmask", _last_bit), "row offsets are not the sums"),
    "a value less": (_set(f"{GATE}.compressed", lambda values: values[:-1]), "one for each bit"),
    "values of another dtype": (_set(f"{GATE}.compressed", Tensor.float), "a scale belongs to int8"),
    "values of a strange dtype": (_set(f"{GATE}.compressed", Tensor.double), "expected one of"),
    "bitmask of another dtype": (_set(f"{GATE}.bitmask", Tensor.short), "bitmask is torch.int16"),
    "bitmask cut": (_set(f"{GATE}.bitmask", lambda bitmask: bitmask[:, :-1]), "bitmask is"),
    "scale not a number": (_set(f"{GATE}.weight_scale", _at(0, float("nan"))), "not positive and finite"),
    "scale zero": (_set(f"{GATE}.weight_scale", _at(0, 0.0)), "not positive and finite"),
    "scales cut": (_set(f"{GATE}.weight_scale", lambda scale: scale[:-1]), "scale is"),
    "shape swapped": (_set(f"{GATE}.shape", lambda shape: shape.flip(0)), GATE),
    "shape of three": (_set(f"{GATE}.shape", lambda shape: torch.cat([shape, shape[:1]])), "3 dimensions"),
    "shape huge": (_set(f"{GATE}.shape", lambda shape: shape * (1 << 40)), GATE),
    "bias nobody has": (lambda tensors: tensors.update({f"{GATE}.bias": torch.zeros(64)}), "bias"),
    "input scale cut": (lambda tensors: tensors.update({f"{GATE}.input_scale": torch.ones(3)}), "input_scale"),
    "input scale zero": (lambda tensors: tensors.update({f"{GATE}.input_scale": torch.zeros(32)}), "not positive"),
    "norm of another dtype": (_set("model.norm.weight", Tensor.half), "model.norm.weight: is torch.float16"),
    "embedding cut": (_set("model.embed_tokens.weight", lambda weight: weight[:-1]), "the architecture"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tensors_that_do_not_fit_are_refused_though_the_digests_do(case: str, folder: Path) -> None:
    change, message = TAMPERED[case]
    tensors = tensors_of(folder)
    change(tensors)
    reseal(folder, tensors)
    with pytest.raises(EngineError, match=message.replace(".", r"\.")) as caught:
        files.load(folder)
    assert "\n" not in str(caught.value)


def test_bits_behind_the_last_column_are_refused() -> None:
    packed = PackedWeight.of(sparse_matrix(8, 13, 0.7), "fp32")
    assert packed.bitmask is not None
    packed.bitmask[3, 1] |= 0x20
    with pytest.raises(EngineError, match="w: bits are set behind the last column"):
        packed.check("w")


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes engine.json and digests it anew."""

    def apply(folder: Path) -> None:
        facts = json.loads((folder / record.RECORD).read_text())
        del facts["digest"]
        change(facts)
        (folder / record.RECORD).write_text(json.dumps({**facts, "digest": record._digest(facts)}))

    return apply


def _config(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(facts | changes))
        reseal(folder)

    return apply


RECORDS = {
    "no record": (lambda folder: (folder / record.RECORD).unlink(), "there is no engine.json"),
    "not JSON": (lambda folder: (folder / record.RECORD).write_text("{"), "cannot be read"),
    "a list": (lambda folder: (folder / record.RECORD).write_text("[1]"), "cannot be read"),
    "no text": (lambda folder: (folder / record.RECORD).write_bytes(b"\xff\xfe"), "cannot be read"),
    "deep": (lambda folder: (folder / record.RECORD).write_text("[" * 100_000), "cannot be read"),
    "another version": (_edit(lambda facts: facts.update(format="squarehead-engine-2")), "squarehead-engine-2"),
    "no linears": (_edit(lambda facts: facts.pop("linears")), "linears"),
    "linears of another kind": (_edit(lambda facts: facts.update(linears=[1])), "linears"),
    "negative rows": (_edit(lambda facts: facts["linears"][GATE].update(rows=-1)), "rows"),
    "another layout": (_edit(lambda facts: facts["linears"][GATE].update(layout="csr")), "layout"),
    "another dtype": (_edit(lambda facts: facts["linears"][GATE].update(dtype="fp32")), GATE),
    "an unknown linear": (_edit(lambda facts: facts["linears"].update(x=facts["linears"].pop(GATE))), "x: stored as"),
    "the whole model": (_edit(lambda facts: facts["linears"].update({"": facts["linears"][GATE]})), "stored as"),
    "no weights listed": (_edit(lambda facts: facts["files"].pop(record.WEIGHTS)), "does not list"),
    "a file elsewhere": (
        _edit(lambda facts: facts["files"].update({"../x": facts["files"]["config.json"]})),
        "missing",
    ),
    "weights gone": (lambda folder: (folder / record.WEIGHTS).unlink(), "model.safetensors is missing"),
    "metadata of another version": (lambda folder: reseal(folder, tensors_of(folder), format="v0"), "format 'v0'"),
    "wider architecture": (_config(intermediate_size=72), "the architecture"),
    "deeper architecture": (_config(num_hidden_layers=3), "missing"),
    "biases": (_config(attention_bias=True), "bias"),
    "unknown architecture": (_config(model_type="odd"), "no language model"),
    "nonsense in the config": (_config(num_attention_heads="four"), "no language model"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_that_do_not_fit_are_refused(case: str, folder: Path) -> None:
    change, message = RECORDS[case]
    change(folder)
    with pytest.raises(EngineError, match=message) as caught:
        files.load(folder)
    assert "\n" not in str(caught.value)
