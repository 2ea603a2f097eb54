"""Encoder-decoders as they lay on hubs before generation settings had a file: what is not stated is known elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import engine
from stages import families
from stages.families.encoder_decoder import Decoding
from stages.model import run as source
from stages.model.spec import Model
from tests import tiny_encoder_decoders as tiny_models
from tests import tiny_pairs, tiny_whisper
from tests.recording import RecordingLog
from tests.tiny import change
from tests.tiny_seq2seq import save_corpus

WHISPERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "without the id of <|notimestamps|>": (False, {"no_timestamps_token_id": None}),
    "without anything of languages": (True, {"lang_to_id": None, "task_to_id": None}),
    "multilingual by its languages alone": (True, {"is_multilingual": None}),
    "with forced ids": (False, {"forced_decoder_ids": [[1, 309]], "no_timestamps_token_id": None}),
    "without the file": (False, {}),
}
"""Whether it is multilingual, and what becomes of its generation_config.json (None: taken out)."""


@pytest.mark.parametrize("name", WHISPERS)
@pytest.mark.parametrize("timestamps", [False, True])
def test_an_old_whisper_writes_what_a_complete_one_does(name: str, timestamps: bool, tmp_path: Path) -> None:
    multilingual, changes = WHISPERS[name]
    folder = tiny_whisper.save(tmp_path / "model", multilingual).path
    corpus = tiny_whisper.save_corpus(tmp_path / "corpus", {"test": [0.5]}, timestamps=timestamps)
    family: Any = families.get("whisper")
    batch = {"input_features": torch.randn(2, 80, 200, generator=torch.Generator().manual_seed(0))}

    def texts() -> tuple[list[int], list[list[list[int]]]]:
        prompt = family.prompt(corpus, folder)
        built = family.build(folder)
        loaded = family.load(folder)
        assert built.generation_config.no_timestamps_token_id == loaded.generation_config.no_timestamps_token_id
        return prompt, [family.generate(loaded, batch, Decoding(prompt, beams, 1.0, 6)) for beams in (1, 2)]

    settings = folder / "generation_config.json"
    if not changes:
        # nothing else knows it, and transformers does without
        change(settings, {"max_initial_timestamp_index": None})
    complete = texts()
    if changes:
        change(settings, changes)
    else:
        settings.unlink()
        change(folder / "config.json", {"suppress_tokens": tiny_whisper.SUPPRESSED,
                                        "begin_suppress_tokens": tiny_whisper.SUPPRESSED_AT_BEGIN,
                                        "forced_decoder_ids": [[1, 309]]})  # fmt: skip
    assert texts() == complete


def imported(folder: Path, family: str, out: Path) -> Path:
    """Through the stage `model`."""
    out.mkdir()
    asked = Model(path=str(folder), revision="", family=family, dtype="float32")  # type: ignore[arg-type]
    source.run(asked, {}, out, RecordingLog(out.parent / "resume"))
    return out


def test_an_old_t5_begins_with_its_padding(tmp_path: Path) -> None:
    folder = tiny_pairs.save_t5(tmp_path / "t5")
    change(folder / "config.json", {"decoder_start_token_id": None, "feed_forward_proj": None,
                                    "is_encoder_decoder": None, "num_decoder_layers": None})  # fmt: skip
    change(folder / "generation_config.json", {"decoder_start_token_id": None})
    family: Any = families.get("t5")
    corpus = save_corpus(tmp_path / "corpus", "t5")
    assert family.prompt(corpus, folder) == [0]
    stored = imported(folder, "t5", tmp_path / "stored")
    model = family.load(stored)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    own = model.generate(**batch, max_new_tokens=5, do_sample=False)[0].tolist()
    [ids] = family.generate(model, batch, Decoding([0], 1, 1.0, 5))
    assert own[: len(ids) + 1] == [0, *ids]
    change(folder / "generation_config.json", {"decoder_start_token_id": 3})
    assert family.prompt(corpus, folder) == [3]


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 3), (3, 1)])
def test_a_t5_with_other_numbers_of_blocks_writes_what_whole_passes_say(
    encoder: int, decoder: int, tmp_path: Path
) -> None:
    """transformers' own `generate` fails where the decoder has more."""
    family: Any = families.get("t5")
    model = tiny_models.t5(num_layers=encoder, num_decoder_layers=decoder)
    batch = tiny_models.read("t5")
    found = family.generate(model, batch, Decoding([0], 1, 1.0, 8))
    ids_BT = torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(8):
            best_B = model(**batch, decoder_input_ids=ids_BT).logits[:, -1].argmax(-1)
            ids_BT = torch.cat([ids_BT, best_B[:, None]], 1)
    for row, ids in zip(ids_BT.tolist(), found, strict=True):
        assert row[1 : 1 + len(ids)] == ids
    assert len(family.states(model, family.trim(tiny_models.rows("t5", model).take(torch.arange(2))))) == 5
    engine.save(engine.convert(model, dtype="fp32"), tmp_path / "out")
    assert family.generate(engine.load(tmp_path / "out"), batch, Decoding([0], 1, 1.0, 8)) == found
