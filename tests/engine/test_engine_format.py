"""The engine's folder: what is packed comes back, what is damaged is refused in one line, nothing is half published."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine import checkpoints, files, record
from engine.__main__ import main
from engine.errors import EngineError
from engine.linear import EngineLinear
from engine.weights import DTYPES, DType, PackedWeight, Quantized
from stages.families import get
from stages.quantize import quantized, writing
from tests import tiny

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GATE = "model.layers.0.mlp.gate_proj"


def sparse(rows: int, columns: int, sparsity: float, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    W_OI = torch.randn(rows, columns, generator=draw)
    return W_OI.masked_fill(torch.rand(rows, columns, generator=draw) < sparsity, 0)


def packed_model(kind: str = "llama", dtype: DType = "int8", sparsity: float = 0.6, head: DType | None = None) -> Any:
    """A tiny model whose linears are the engine's, pruned at random; one row is empty and one input is smoothed."""
    model = tiny.build(kind)
    for number, (name, linear) in enumerate(get("causal_lm").prunable(model).items()):
        W_OI = linear.weight.detach() * (sparse(*linear.weight.shape, sparsity, number) != 0)
        W_OI[1] = 0
        smoothing = torch.linspace(0.5, 2, linear.in_features) if dtype == "int8" and number == 3 else None
        bias = None if linear.bias is None else linear.bias.detach()
        model.set_submodule(name, EngineLinear(PackedWeight.of(W_OI, dtype), bias, smoothing))
    if head is not None:
        model.set_submodule("lm_head", EngineLinear(PackedWeight.of(model.lm_head.weight, head)))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder nobody changes."""
    folder = tmp_path_factory.mktemp("exported")
    files.save(packed_model(), folder / "engine", tiny.save_tokenizer(folder / "tokenizer"))
    return folder / "engine"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "engine"))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / record.WEIGHTS, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def reseal(folder: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """Writes other tensors, and an engine.json that vouches for the folder as it is now."""
    facts = record.read(folder)
    if tensors is not None:
        save_file(tensors, folder / record.WEIGHTS, {"format": record.FORMAT} | metadata)
    record.write(folder, facts)


# ---- packed weights ----


@FUZZ
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    sparsity=st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]),
    dtype=st.sampled_from(sorted(DTYPES)),
    keep_dense=st.booleans(),
)
def test_what_is_packed_comes_back(rows: int, columns: int, sparsity: float, dtype: DType, keep_dense: bool) -> None:
    W_OI = sparse(rows, columns, sparsity, seed=rows * columns)
    W_OI[rows // 2] = 0
    packed = PackedWeight.of(W_OI, dtype, keep_dense=keep_dense)
    packed.check("w")
    expected_OI = W_OI.to(DTYPES[dtype]).float()
    if dtype == "int8":
        scale_O = np.maximum(W_OI.abs().numpy().max(1) / np.float32(127), 0)
        scale_O[scale_O == 0] = 1
        expected_OI = torch.from_numpy(np.rint(W_OI.numpy() / scale_O[:, None]) * scale_O[:, None])
    assert torch.equal(packed.dense(), expected_OI)
    assert packed.dtype == dtype
    assert packed.nnz == int((expected_OI != 0).sum())
    assert packed.sparsity == pytest.approx(1 - packed.nnz / W_OI.numel())
    assert packed.bitmask is None or not keep_dense
    dense = PackedWeight.of(W_OI, dtype, keep_dense=True)
    assert packed.nbytes <= dense.nbytes, "the bitmask form is chosen only where it is smaller"


def test_sparse_matrices_get_a_bitmask_and_dense_ones_do_not() -> None:
    for dtype, most_dense in (("fp32", 0.05), ("bf16", 0.1), ("int8", 0.2)):
        assert PackedWeight.of(sparse(256, 1024, most_dense), dtype).bitmask is not None  # type: ignore[arg-type]
        assert PackedWeight.of(sparse(256, 1024, 0.0), dtype).bitmask is None  # type: ignore[arg-type]


def test_the_layout_is_a_bit_for_each_column_lowest_first_and_values_row_by_row() -> None:
    W_OI = torch.zeros(4, 10)
    W_OI[0, 0], W_OI[0, 9], W_OI[2, 3], W_OI[2, 4], W_OI[3, 8] = 1.0, 2.0, 3.0, 4.0, 5.0
    packed = PackedWeight.of(W_OI, "fp32")
    assert packed.bitmask is not None
    assert packed.row_offsets is not None
    assert packed.bitmask.tolist() == [[0b1, 0b10], [0, 0], [0b11000, 0], [0, 0b1]]
    assert packed.values.tolist() == [1, 2, 3, 4, 5]
    assert packed.row_offsets.tolist() == [0, 2, 2, 4]
    assert (packed.bitmask.dtype, packed.row_offsets.dtype) == (torch.uint8, torch.int64)


def test_int8_rounds_as_the_pipeline_quantizes() -> None:
    W_OI = sparse(9, 40, 0.5)
    W_OI[3], W_OI[4] = 0, 1e-41
    q_OI, scale_O = quantized.quantize_weight(W_OI)
    packed = PackedWeight.of(W_OI, "int8")
    assert packed.scale is not None
    assert torch.equal(packed.scale, scale_O)
    assert torch.equal(packed.dense(), q_OI.float() * scale_O[:, None])
    again = PackedWeight.of_int8(q_OI, scale_O)
    assert torch.equal(again.values, packed.values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(dtype: DType, value: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        PackedWeight.of(torch.tensor([[1.0, value]]), dtype)


# ---- a folder comes back ----


@pytest.mark.parametrize("kind", ["llama", "opt", "mpt"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_comes_back_as_it_was(kind: str, dtype: DType, tmp_path: Path) -> None:
    model = packed_model(kind, dtype)
    files.save(model, tmp_path / "engine")
    loaded = files.load(tmp_path / "engine")
    before, after = files.engine_linears(model), files.engine_linears(loaded)
    assert before.keys() == after.keys()
    assert before
    for name, linear in before.items():
        assert torch.equal(linear.packed.dense(), after[name].packed.dense())
        for one, other in ((linear.bias, after[name].bias), (linear.input_scale, after[name].input_scale)):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)
    assert not loaded.training
    assert not [name for name, parameter in loaded.named_parameters() if parameter.requires_grad or parameter.is_meta]
    assert not [name for name, buffer in loaded.named_buffers() if buffer.is_meta]
    ids_1T = torch.arange(1, 12)[None]
    assert torch.equal(loaded(input_ids=ids_1T).logits, model(input_ids=ids_1T).logits)


def test_a_loaded_model_can_be_saved_again_and_gives_the_same_file(exported: Path, tmp_path: Path) -> None:
    files.save(files.load(exported), tmp_path / "again")
    assert (tmp_path / "again" / record.WEIGHTS).read_bytes() == (exported / record.WEIGHTS).read_bytes()


def test_tied_embeddings_are_stored_once_and_stay_tied(exported: Path) -> None:
    stored = tensors_of(exported)
    assert "model.embed_tokens.weight" in stored
    assert "lm_head.weight" not in stored
    model = files.load(exported)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_packed_head_stands_beside_the_embeddings(tmp_path: Path) -> None:
    model = packed_model(dtype="bf16", head="int8")
    files.save(model, tmp_path / "engine")
    facts = record.read(tmp_path / "engine")
    assert (facts.dtype, facts.head) == ("bf16", "int8")
    loaded = files.load(tmp_path / "engine")
    assert isinstance(loaded.lm_head, EngineLinear)
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_the_record_says_what_the_folder_holds(exported: Path) -> None:
    facts = record.read(exported)
    assert (facts.format, facts.dtype, facts.head) == ("squarehead-engine-1", "int8", "fp32")
    model = files.load(exported)
    for name, linear in files.engine_linears(model).items():
        told = facts.linears[name]
        assert (told.rows, told.columns) == linear.packed.shape
        assert (told.nnz, told.bytes, told.dtype) == (linear.packed.nnz, linear.packed.nbytes, "int8")
    assert set(facts.files) == {path.name for path in exported.iterdir()} - {record.RECORD}


# ---- damage ----


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
    packed = PackedWeight.of(sparse(8, 13, 0.7), "fp32")
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


# ---- publishing ----


def test_a_kill_while_saving_publishes_nothing(tmp_path: Path) -> None:
    model = packed_model()
    out = tmp_path / "place" / "engine"
    child = os.fork()
    if child == 0:
        record.write = lambda folder, facts: os.kill(os.getpid(), signal.SIGKILL)  # weights are written, not yet sealed
        files.save(model, out)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not out.exists()
    files.save(model, out)
    files.load(out)


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(EngineError, match="No space left"):
        files.save(packed_model(), tmp_path / "place" / "engine", Full())
    assert not list((tmp_path / "place").iterdir())


def test_what_is_there_already_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    before = (folder / record.RECORD).read_bytes()
    with pytest.raises(EngineError, match="exists already"):
        files.save(packed_model(), folder)
    assert (folder / record.RECORD).read_bytes() == before
    (tmp_path / "empty").mkdir()
    files.save(packed_model(), tmp_path / "empty")
    files.load(tmp_path / "empty")


def test_what_the_engine_would_not_run_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine linear"):
        files.save(tiny.build(), tmp_path / "engine")
    with pytest.raises(EngineError, match="expected float32"):
        files.save(packed_model().bfloat16(), tmp_path / "engine")
    assert not list(tmp_path.iterdir())


# ---- checkpoints ----


def quantized_checkpoint(folder: Path) -> nn.Module:
    """As the pipeline writes it, one linear left in floating point."""
    tiny.save_tokenizer(folder)
    model = tiny.build()
    for number, (name, linear) in enumerate(get("causal_lm").prunable(model).items()):
        if number != 1:
            model.set_submodule(name, quantized.Int8Linear.of(linear))
    described = writing.quantization_config(tiny.build(), list(quantized.linears(model)), own=False)
    writing.save(model, {}, described, folder)
    return model


def test_a_quantized_checkpoint_is_read_with_its_int8_weights(tmp_path: Path) -> None:
    source = quantized_checkpoint(tmp_path)
    model, found = checkpoints.read_checkpoint(tmp_path)
    assert found.keys() == quantized.linears(source).keys()
    for name, linear in quantized.linears(source).items():
        weight = found[name]
        assert isinstance(weight, Quantized)
        assert torch.equal(weight.q_OI, linear.weight)
        assert torch.equal(weight.scale_O, linear.weight_scale)
        assert torch.equal(model.get_submodule(name).weight, linear.dequantized())
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_numbers_that_lack_their_scale_are_no_weights(kind: torch.dtype, tmp_path: Path) -> None:
    file = tiny.save_model(tmp_path / "m") / "model.safetensors"
    tensors = tensors_of(tmp_path / "m")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(kind)}, file, {"format": "pt"})
    with pytest.raises(EngineError, match=f"{name} is stored as"):
        checkpoints.read_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"num_attention_heads": 0}), ("config.json", {"pad_token_id": 99999}),
        ("config.json", {"vocab_size": 0}), ("config.json", {"model_type": ["llama"]}), ("config.json", "[]"),
        ("generation_config.json", "{"), ("generation_config.json", "[]"), ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"), ("tokenizer_config.json", "[]"),
    ],
)  # fmt: skip
def test_odd_folders_are_one_line(
    file: str, content: str | dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.save_model(tmp_path / "m") / file
    whole = content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    path.write_text(whole)
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "out"), "--dtype", "fp32"]) == 2
    assert f"{tmp_path / 'm'}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_in_floating_point_is_read_in_fp32(tmp_path: Path) -> None:
    source = tiny.build().bfloat16()
    source.save_pretrained(tmp_path)
    model, found = checkpoints.read_checkpoint(tmp_path)
    assert found == {}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.norm.weight, source.model.norm.weight.float())
    assert torch.equal(model.get_submodule(GATE).weight, source.get_submodule(GATE).weight.float())


def test_checkpoints_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no config\.json"):
        checkpoints.read_checkpoint(tmp_path)
    tiny.save_model(tmp_path)
    tensors = tensors_of(tmp_path)
    save_file(
        {name: tensors[name] for name in tensors if "q_proj" not in name}, tmp_path / record.WEIGHTS, {"format": "pt"}
    )
    with pytest.raises(EngineError, match="2 missing keys"):
        checkpoints.read_checkpoint(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    quantized_checkpoint(tmp_path)
    tensors = tensors_of(tmp_path)
    tensors.pop(f"{GATE}.weight_scale")
    save_file(tensors, tmp_path / record.WEIGHTS)
    with pytest.raises(EngineError, match=f"{GATE} has no int8 weight with a scale"):
        checkpoints.read_checkpoint(tmp_path)


def test_a_checkpoint_quantized_by_an_earlier_version_is_refused(tmp_path: Path) -> None:
    tiny.save_model(tmp_path)
    (tmp_path / "quantization.json").write_text('{"format": "squarehead-w8a8-1", "linears": []}')
    with pytest.raises(EngineError, match="earlier version"):
        checkpoints.read_checkpoint(tmp_path)


# ---- the command line ----


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
