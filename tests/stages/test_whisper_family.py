"""Whisper as a family: prompts and labels, exact features, windows of any length, states, and plain generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from stages import checkpoints, families
from stages.contracts import Checkpoint, Corpus, Examples, UserError
from stages.families import speech_features
from stages.families.encoder_decoder import Decoding
from stages.families.whisper import SpeechRows, Whisper
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from tests import tiny_whisper
from tests.recording import RecordingLog

FRAMES = 100 * tiny_whisper.WINDOW_SECONDS
CLIPS = {"train": [0.5, 1.0, 4.0], "test": [1.2, 0.7, 7.0]}
FAMILY = Whisper()


@dataclass(frozen=True)
class Prepared:
    checkpoint: Checkpoint
    corpus: Corpus
    examples: Examples
    log: RecordingLog
    model: Any

    def rows(self, split: str = "test") -> SpeechRows:
        return FAMILY.rows(self.model, self.checkpoint.path, self.examples, split, 64, "x")

    @property
    def prompt(self) -> list[int]:
        found: list[int] = self.log.found["prompt"]
        return found


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("whisper")
    return prepared(tiny_whisper.save(folder / "model"), tiny_whisper.save_corpus(folder / "corpus", CLIPS), folder)


def prepared(checkpoint: Checkpoint, corpus: Corpus, folder: Path) -> Prepared:
    log = RecordingLog(folder / "resume")
    (folder / "examples").mkdir()
    prepare.run(PrepareOptions(), {"model": checkpoint, "data": corpus}, folder / "examples", log)
    tiny_whisper.write_facts(folder / "examples", log.found)
    model = families.of(checkpoint.path).load(checkpoint.path)
    return Prepared(checkpoint, corpus, Examples(folder / "examples", "examples"), log, model)


def texts(checkpoint: Checkpoint, ids: list[int]) -> list[str]:
    found: list[str] = FAMILY.tokenizer(checkpoint.path).convert_ids_to_tokens(ids)
    return found


# ---- prompts and labels ----


@pytest.mark.parametrize(
    ("multilingual", "speech", "tokens"),
    [
        (False, {}, ["startoftranscript", "notimestamps"]),
        (False, {"timestamps": True}, ["startoftranscript"]),
        (True, {"language": "hi"}, ["startoftranscript", "hi", "transcribe", "notimestamps"]),
        (True, {"task": "translate", "timestamps": True}, ["startoftranscript", "en", "translate"]),
    ],
)
def test_the_prompt_states_language_task_and_timestamps(
    multilingual: bool, speech: dict[str, Any], tokens: list[str], tmp_path: Path
) -> None:
    checkpoint = tiny_whisper.save(tmp_path / "model", multilingual)
    corpus = tiny_whisper.save_corpus(tmp_path / "corpus", {}, **speech)
    found = FAMILY.prompt(corpus, checkpoint.path)
    assert texts(checkpoint, found) == [f"<|{token}|>" for token in tokens]


@pytest.mark.parametrize(
    ("multilingual", "speech", "option"),
    [
        (False, {"language": "hi"}, "data.speech.language"),
        (False, {"task": "translate"}, "data.speech.task"),
        (True, {"language": "xx"}, "data.speech.language"),
    ],
)
def test_a_language_or_task_that_the_model_lacks_is_refused(
    multilingual: bool, speech: dict[str, Any], option: str, tmp_path: Path
) -> None:
    checkpoint = tiny_whisper.save(tmp_path / "model", multilingual)
    corpus = tiny_whisper.save_corpus(tmp_path / "corpus", {}, **speech)
    with pytest.raises(UserError) as caught:
        FAMILY.prompt(corpus, checkpoint.path)
    assert caught.value.option == option


def test_labels_are_prompt_text_and_end(english: Prepared) -> None:
    batch = english.rows("train").take(torch.tensor([1, 0]))
    item = english.rows("train").examples[0]
    tokenizer = FAMILY.tokenizer(english.checkpoint.path)
    text = tokenizer(f" {item['reference']}", add_special_tokens=False)["input_ids"]
    expected = [*english.prompt[1:], *text, tokenizer.eos_token_id]
    assert batch["labels"][1, : len(expected)].tolist() == expected
    assert (batch["labels"][1, len(expected) :] == -100).all()
    # pad is eos: what is real is known by length alone
    assert batch["use"][1].sum() == len(expected)
    assert batch["decoder_input_ids"][1, : len(expected)].tolist() == [*english.prompt, *text]


def test_labels_with_timestamps_end_where_the_clip_ends(tmp_path: Path) -> None:
    checkpoint = tiny_whisper.save(tmp_path / "model")
    corpus = tiny_whisper.save_corpus(tmp_path / "corpus", {"train": [1.237]}, timestamps=True)
    example = next(FAMILY.examples(corpus, "train", checkpoint.path, RecordingLog(tmp_path / "resume")))
    tokens = texts(checkpoint, example["labels"])
    assert (tokens[0], tokens[-2:]) == ("<|0.00|>", ["<|1.24|>", "<|endoftext|>"])
    decoded = FAMILY.tokenizer(checkpoint.path).batch_decode([example["labels"]] * 2, skip_special_tokens=True)
    assert decoded == [f" {example['reference']}"] * 2


# ---- features ----


@pytest.mark.parametrize("seconds", [0.31, 4.567, 28.9, 29.5, 30.0])
def test_features_lengthened_are_those_of_the_whole_window(seconds: float) -> None:
    extractor = WhisperFeatureExtractor()
    audio_N = tiny_whisper.sound(seconds, 0)
    mel_MF = speech_features.log_mel(extractor, audio_N)
    assert mel_MF.shape[1] % 2 == 0
    assert mel_MF.shape[1] == min(2 * int(np.ceil((seconds + 1) * 50 - 1e-6)), 3000)
    whole_BMF = speech_features.lengthened(torch.from_numpy(mel_MF)[None], 3000)
    expected = extractor(audio_N, sampling_rate=16000, return_tensors="pt")["input_features"]
    assert expected.shape == whole_BMF.shape
    assert (whole_BMF - expected).abs().max() < 1e-5


def test_windows_are_the_longest_clips_or_whole(english: Prepared) -> None:
    rows = english.rows()
    batch = rows.take(torch.tensor([1, 0]))
    assert batch["frames"].tolist() == [170, 220]
    assert batch["input_features"].shape == (2, 80, 220)
    whole = rows.full_window().take(torch.tensor([1, 0]))
    assert whole["frames"].tolist() == [FRAMES] * 2
    assert torch.equal(whole["input_features"][:, :, :220], batch["input_features"])
    assert whole["input_features"].shape == (2, 80, FRAMES)


def test_trim_and_sizes_go_by_frames_and_tokens(english: Prepared) -> None:
    batch = english.rows().take(torch.tensor([1, 0]))
    one = FAMILY.trim({name: tensor[:1] for name, tensor in batch.items()})
    alone = FAMILY.trim(english.rows().take(torch.tensor([1])))
    assert one.keys() == alone.keys()
    assert all(torch.equal(one[name], alone[name]) for name in alone)
    assert torch.equal(FAMILY.sizes(batch), english.rows().sizes[torch.tensor([1, 0])])
    mask_BS = FAMILY.encoder_mask(batch)
    assert mask_BS.sum(1).tolist() == [85, 110]
    assert mask_BS[0, :85].all()


# ---- long clips ----


def test_long_clips_are_left_out_of_training_and_cut_for_evaluation(english: Prepared) -> None:
    assert len(english.rows("train")) == 2
    test = english.rows("test").examples.select_columns(["id", "piece", "reference", "seconds"])[:]
    assert test["id"] == ["test-0", "test-1", "test-2", "test-2", "test-2"]
    assert test["piece"] == [0, 0, 0, 1, 2]
    assert [bool(text) for text in test["reference"]] == [True, True, True, False, False]
    assert max(test["seconds"]) <= tiny_whisper.WINDOW_SECONDS
    assert sum(test["seconds"][2:]) == pytest.approx(7.0, abs=1e-3)
    train_note, test_note = english.log.notes
    assert "1 of 3 clips are longer than 3 s; left out" in train_note
    assert "1 of 3 clips are longer than 3 s; cut into pieces" in test_note


def test_cuts_are_where_it_is_quiet_and_lose_nothing() -> None:
    audio_N = np.ones(70_000, np.float32)
    audio_N[28_000:32_000] = 0.01
    first_N, *others = speech_features.pieces(audio_N, 32_000, 16_000)
    assert 28_000 < len(first_N) < 32_000
    assert all(len(piece_N) <= 32_000 for piece_N in (first_N, *others))
    assert np.array_equal(np.concatenate([first_N, *others]), audio_N)


# ---- the model ----


def test_a_whole_window_is_computed_as_transformers_does_it(english: Prepared) -> None:
    plain = WhisperForConditionalGeneration.from_pretrained(english.checkpoint.path).eval()
    inputs = FAMILY.inputs(english.rows().full_window().take(torch.tensor([0, 1])))
    with torch.no_grad():
        ours = english.model(**inputs, output_hidden_states=True)
        theirs = plain(**inputs, output_hidden_states=True)
    assert torch.equal(ours.logits, theirs.logits)
    for one, other in zip(ours.encoder_hidden_states, theirs.encoder_hidden_states, strict=True):
        assert torch.equal(one, other)


def test_a_shorter_window_uses_the_first_positions(english: Prepared) -> None:
    """An encoder that has only so many positions is the same thing."""
    batch = english.rows().take(torch.tensor([1]))
    positions = batch["input_features"].shape[2] // 2
    plain = WhisperForConditionalGeneration.from_pretrained(english.checkpoint.path).eval()
    encoder = plain.model.encoder
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions])
    encoder.config.max_source_positions = positions
    with torch.no_grad():
        expected_BSD = encoder(batch["input_features"]).last_hidden_state
        found_BSD = english.model.model.encoder(batch["input_features"]).last_hidden_state
    assert torch.equal(found_BSD, expected_BSD)
    assert english.model.config.max_source_positions == FRAMES // 2
    with pytest.raises(ValueError, match="do not fit"):
        english.model.model.encoder(torch.zeros(1, 80, 171))
    with pytest.raises(ValueError, match="do not fit"):
        english.model.model.encoder(torch.zeros(1, 80, FRAMES + 2))


def test_a_forward_that_ends_inside_the_encoder_leaves_it_whole(english: Prepared) -> None:
    encoder = english.model.model.encoder

    def end(*_: Any) -> None:
        raise StopAsyncIteration

    handle = encoder.layers[0].register_forward_hook(end)
    try:
        with pytest.raises(StopAsyncIteration):
            english.model(**FAMILY.inputs(english.rows().take(torch.tensor([1]))))
    finally:
        handle.remove()
    assert (encoder.config.max_source_positions, encoder.embed_positions.num_embeddings) == (FRAMES // 2,) * 2


def test_what_is_saved_is_a_plain_whisper(english: Prepared, tmp_path: Path) -> None:
    checkpoints.save(english.model, english.checkpoint, {}, tmp_path)
    plain, loading = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert plain.config.to_diff_dict() == english.model.config.to_diff_dict()
    assert plain.generation_config.suppress_tokens == tiny_whisper.SUPPRESSED
    assert WhisperFeatureExtractor.from_pretrained(tmp_path).chunk_length == tiny_whisper.WINDOW_SECONDS


def test_prunable_are_the_linears_of_both_stacks_and_no_convolution(english: Prepared) -> None:
    names = list(FAMILY.prunable(english.model))
    assert len(names) == 2 * 6 + 2 * 10
    assert all(name.startswith(("model.encoder.layers.", "model.decoder.layers.")) for name in names)
    assert [name for name, _ in FAMILY.blocks(english.model)] == [
        *("model.encoder.layers.0", "model.encoder.layers.1", "model.decoder.layers.0", "model.decoder.layers.1")
    ]
    batch = english.rows().take(torch.tensor([1, 0]))
    heard = {name for name in names if FAMILY.input_token_mask(batch, name).shape == FAMILY.encoder_mask(batch).shape}
    cross = {f"model.decoder.layers.{i}.encoder_attn.{part}_proj" for i in (0, 1) for part in "kv"}
    assert heard == {name for name in names if ".encoder." in name} | cross


def test_states_are_of_each_block_and_the_head_reads_the_last(english: Prepared) -> None:
    batch = english.rows().take(torch.tensor([1, 0]))
    with torch.no_grad():
        *states, last_BTD = FAMILY.states(english.model, batch)
        output = english.model(**FAMILY.inputs(batch), output_hidden_states=True)
    assert torch.equal(FAMILY.head(english.model)(last_BTD), output.logits)
    assert torch.equal(states[0], output.encoder_hidden_states[1])
    assert torch.equal(states[2], output.decoder_hidden_states[1])
    assert [state.shape[1] for state in states] == [110, 110, *[batch["labels"].shape[1]] * 2]
    assert [mask is not None for mask in FAMILY.feature_masks(english.model, batch)] == [True] * 4 + [False]


def test_the_model_in_bf16_takes_the_same_features(english: Prepared) -> None:
    model = FAMILY.load(english.checkpoint.path, torch.bfloat16)
    with torch.no_grad():
        h_BTD = FAMILY.hidden(model, english.rows().take(torch.tensor([0])))
    assert h_BTD.dtype == torch.bfloat16
    assert h_BTD.isfinite().all()


# ---- generation ----


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("multilingual", [False, True])
def test_generation_equals_whispers_own_on_whole_windows(multilingual: bool, beams: int, tmp_path: Path) -> None:
    corpus = tiny_whisper.save_corpus(tmp_path / "corpus", {"test": [0.5, 1.3]})
    made = prepared(tiny_whisper.save(tmp_path / "model", multilingual), corpus, tmp_path)
    batch = made.rows().full_window().take(torch.tensor([0, 1]))
    plain = WhisperForConditionalGeneration.from_pretrained(made.checkpoint.path).eval()
    # random models would write timestamps where none are asked for, and transformers would read on from there
    timestamps = range(plain.generation_config.no_timestamps_token_id + 1, plain.config.vocab_size)
    for model in (made.model, plain):
        model.generation_config.suppress_tokens = [*tiny_whisper.SUPPRESSED, *timestamps]
    ours = FAMILY.generate(made.model, batch, Decoding(made.prompt, beams, 1.0, 12))
    asked = {"language": "en", "task": "transcribe"} if multilingual else {}
    eos = plain.config.eos_token_id
    settings = {"num_beams": beams, "max_new_tokens": 12, "length_penalty": 1.0, "return_timestamps": False}
    theirs = plain.generate(batch["input_features"], **settings, **asked)
    # of one window, transformers returns what follows the prompt
    expected = [row[: row.index(eos)] if eos in row else row for row in theirs.tolist()]
    assert ours == expected
    assert any(ours)
    assert not {token for row in ours for token in row} & set(tiny_whisper.SUPPRESSED)


def test_generation_does_not_write_what_is_suppressed_at_the_begin(english: Prepared) -> None:
    batch = english.rows().take(torch.tensor([0]))
    decoding = Decoding(english.prompt, 1, 1.0, 3)
    first = FAMILY.generate(english.model, batch, decoding)[0][0]
    settings = english.model.generation_config
    try:
        settings.begin_suppress_tokens = [first]
        assert FAMILY.generate(english.model, batch, decoding)[0][0] != first
    finally:
        settings.begin_suppress_tokens = tiny_whisper.SUPPRESSED_AT_BEGIN


def test_a_prompt_open_to_timestamps_gives_them_by_their_rules(english: Prepared) -> None:
    batch = english.rows().take(torch.tensor([0, 1]))
    first = english.model.generation_config.no_timestamps_token_id + 1
    for ids in FAMILY.generate(english.model, batch, Decoding(english.prompt[:1], 1, 1.0, 12)):
        assert first <= ids[0] <= first + 50
        stamps = [token for token in ids if token >= first]
        assert stamps == sorted(stamps)
