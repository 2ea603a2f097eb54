"""Encoder-decoders through the engine: computed as torch does, kept in a folder, decoded to the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

import engine
from engine import checkpoints, files
from engine.__main__ import main
from engine.linear import EngineLinear
from engine.weights import DType
from stages import checkpoints as stored
from stages import engine_models, families
from stages.contracts import Checkpoint
from stages.families.encoder_decoder import Decoding, EncoderDecoder
from stages.quantize import run as quantize
from stages.quantize.quantized import Int8Linear
from stages.quantize.spec import Quantize
from tests import tiny, tiny_seq2seq
from tests import tiny_encoder_decoders as tiny_models
from tests.recording import RecordingLog
from tests.tiny_engine import needs_kernels

pytestmark = needs_kernels

KINDS = tiny_models.KINDS


@torch.no_grad()
def logits(kind: str, model: nn.Module) -> Tensor:
    ids_BT = torch.tensor([[*tiny_models.prompt(kind), 60, 33, 17, 100], [*tiny_models.prompt(kind), 8, 9, 10, 11]])
    found: Tensor = model(**tiny_models.read(kind), decoder_input_ids=ids_BT).logits
    return found


def texts(kind: str, model: Any, beams: int = 1) -> list[list[int]]:
    family = families.get(tiny_models.family(kind))
    assert isinstance(family, EncoderDecoder)
    return family.generate(model, tiny_models.read(kind), Decoding(tiny_models.prompt(kind), beams, 1.0, 12))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_computes_and_writes_what_the_model_did(kind: str) -> None:
    model = tiny_models.pruned(kind)
    before, greedy, searched = logits(kind, model), texts(kind, model), texts(kind, model, beams=3)
    assert any(greedy)
    prunable = families.get(tiny_models.family(kind)).prunable(model)
    engine.convert(model, dtype="fp32")
    assert {name for name, module in model.named_modules() if isinstance(module, EngineLinear)} == set(prunable)
    torch.testing.assert_close(logits(kind, model), before, rtol=1e-4, atol=1e-4)
    assert texts(kind, model) == greedy
    assert texts(kind, model, beams=3) == searched


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_torchs(kind: str) -> None:
    expected = logits(kind, tiny_models.pruned(kind))
    assert distance(logits(kind, engine.convert(tiny_models.pruned(kind), dtype="bf16")), expected) < 0.03
    head = engine.convert(tiny_models.pruned(kind), dtype="bf16", head="bf16")
    assert isinstance(head.get_output_embeddings(), EngineLinear)
    assert distance(logits(kind, head), expected) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_one_product_equal_layers_apart(kind: str) -> None:
    """Self-attention shares q, k and v, cross-attention k and v alone, gated blocks their two inputs."""
    together = engine.convert(tiny_models.pruned(kind), dtype="int8")
    groups = {id(m.shared): m.shared for m in together.modules() if isinstance(m, EngineLinear) and m.shared}
    encoder, decoder = 2, 1 if kind == "t5_gated" else 2
    gates = encoder + decoder if kind in ("t5_gated", "mt5") else 0
    assert sorted(len(group._members) for group in groups.values()) == [2] * (decoder + gates) + [3] * (
        encoder + decoder
    )
    apart = engine.convert(tiny_models.pruned(kind), dtype="int8")
    for module in apart.modules():
        if isinstance(module, EngineLinear):
            module.shared = None
    assert torch.equal(logits(kind, together), logits(kind, apart))
    assert texts(kind, together) == texts(kind, apart)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["fp32", "int8"])
def test_a_saved_model_comes_back_the_same(kind: str, head: DType, tmp_path: Path) -> None:
    model = engine.convert(tiny_models.pruned(kind), dtype="int8", head=head)
    engine.save(model, tmp_path / "out")
    loaded = engine.load(tmp_path / "out")
    assert type(loaded) is type(model)
    assert files.engine_linears(loaded).keys() == files.engine_linears(model).keys()
    assert torch.equal(logits(kind, loaded), logits(kind, model))
    assert texts(kind, loaded) == texts(kind, model)


@pytest.mark.parametrize(("kind", "parameters"), [("t5", 4), ("t5_gated", 3), ("whisper", 2)])
def test_tied_embeddings_stay_one_and_a_head_of_its_own_stays_apart(kind: str, parameters: int, tmp_path: Path) -> None:
    engine.save(engine.convert(tiny_models.pruned(kind), dtype="fp32"), tmp_path / "out")
    loaded = engine.load(tmp_path / "out")
    embedding = loaded.get_input_embeddings() if kind != "whisper" else loaded.model.decoder.embed_tokens
    same = [n for n, p in loaded.named_parameters(remove_duplicate=False) if p is embedding.weight]
    assert len(same) == parameters
    assert (loaded.get_output_embeddings().weight is embedding.weight) == (kind != "t5_gated")


@pytest.fixture(scope="module", params=["t5", "whisper"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("quantized")
    dense = Checkpoint(save(request.param, folder / "dense"), "dense")
    (folder / "out").mkdir()
    rounding = Quantize(scheme="w8a8", smooth=0, skip=[r".*layers\.0\.fc2"] * (request.param == "whisper"),
                        skip_sensitive=0, dense=True)  # fmt: skip
    quantize.run(rounding, {"model": dense}, folder / "out", RecordingLog(folder / "resume"))
    return request.param, Checkpoint(folder / "out", "quantized")


def save(kind: str, folder: Path) -> Path:
    """A checkpoint in hub format."""
    tiny_models.pruned(kind).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    if kind == "whisper":
        WhisperFeatureExtractor(feature_size=tiny_models.MELS, chunk_length=1).save_pretrained(folder)
    return folder


def test_quantized_checkpoints_run_with_their_own_integers(quantized: tuple[str, Checkpoint]) -> None:
    kind, checkpoint = quantized
    simulated = stored.load(checkpoint, torch.float32)
    model = engine_models.load(checkpoint, "int8", "benchmark.backends")
    int8 = {name for name, module in simulated.named_modules() if isinstance(module, Int8Linear)}
    assert set(files.engine_linears(model)) == int8
    # each layer gives the same numbers; what is between them sums in another order here and there
    for name in sorted(int8):
        ours, theirs = model.get_submodule(name), simulated.get_submodule(name)
        x_BTI = torch.randn(2, 3, ours.in_features)
        with torch.no_grad():
            assert torch.equal(ours(x_BTI), theirs(x_BTI)), name
    torch.testing.assert_close(logits(kind, model), logits(kind, simulated), rtol=1e-3, atol=1e-3)
    assert texts(kind, model) == texts(kind, simulated)


SIZES = ["--prompt-tokens", "4", "--new-tokens", "2", "--rounds", "1", "--threads", "1"]


def test_a_text_to_text_model_is_exported_generates_and_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save("t5", tmp_path / "source"), tmp_path / "out"
    assert main(["export", str(source), str(out), "--dtype", "fp32", "--head", "bf16"]) == 0
    assert "head bf16" in capsys.readouterr().out
    tokenizer = checkpoints.read_tokenizer(out)
    ids_1T = tokenizer("the river", return_tensors="pt")["input_ids"]
    expected = engine.load(out).generate(ids_1T, max_new_tokens=5, do_sample=False)
    assert main(["generate", str(out), "--prompt", "the river", "--max-new-tokens", "5", "--threads", "1"]) == 0
    assert capsys.readouterr().out.strip() == tokenizer.decode(expected[0], skip_special_tokens=True).strip()
    assert main(["bench", str(out), *SIZES]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert {"transformers", "engine", "query", "cross_attention", "head"} <= set(rows)


def test_a_speech_model_is_exported_whole_and_says_what_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save("whisper", tmp_path / "source"), tmp_path / "out"
    assert main(["export", str(source), str(out), "--dtype", "int8"]) == 0
    extractor = AutoFeatureExtractor.from_pretrained(out)
    assert (extractor.feature_size, extractor.chunk_length) == (tiny_models.MELS, 1)
    capsys.readouterr()
    for arguments in (["generate", str(out), "--prompt", "the"], ["bench", str(out), *SIZES]):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert "speech model, which reads audio" in shown
        assert shown.count("\n") == 1


def test_prompts_of_other_text_to_text_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are told languages by tokens are not prompted, and no source is longer than the positions."""
    for kind, prompt, says in (
        ("bart", "the red river", ""),
        ("bart", "the red river " * 12, "do not fit the model's context of 30"),
        ("mbart50", "the red river", "needs language tokens"),
        ("marian_multilingual", "the red river", "needs language tokens"),
    ):
        out = tmp_path / f"{kind} out"
        if not out.exists():
            source = tiny_seq2seq.save(kind, tmp_path / kind)
            assert main(["export", str(source), str(out), "--dtype", "fp32"]) == 0
        capsys.readouterr()
        assert main(["generate", str(out), "--prompt", prompt, "--max-new-tokens", "4"]) == (2 if says else 0)
        shown = capsys.readouterr().err
        assert says in shown
        assert shown.count("\n") == bool(says)


def test_quantized_checkpoints_are_exported(quantized: tuple[str, Checkpoint], tmp_path: Path) -> None:
    kind, checkpoint = quantized
    assert main(["export", str(checkpoint.path), str(tmp_path / "out"), "--dtype", "int8"]) == 0
    expected = engine_models.load(checkpoint, "int8", "benchmark.backends")
    # the family may have its attention computed by other code of torch's
    torch.testing.assert_close(
        logits(kind, engine.load(tmp_path / "out")), logits(kind, expected), rtol=1e-3, atol=1e-3
    )
