"""The engine's folder: what is saved comes back, nothing is half published, checkpoints are read as they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine import checkpoints, files, record
from engine.__main__ import main
from engine.errors import EngineError
from engine.linear import EngineLinear
from engine.weights import DTYPES, DType, Quantized
from stages.quantize import quantized
from tests import tiny
from tests.tiny_engine import GATE, packed_model, quantized_checkpoint, tensors_of

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
