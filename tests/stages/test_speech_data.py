"""Speech comes in as 16 kHz FLAC from any sound file, and what cannot is named with its line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import yaml

from stages.data import run as data
from stages.data.spec import Data
from stages.data.splits import cut
from stages.sources.identity import identity
from tests import tiny_hub
from tests.running import PROJECT
from tests.tiny_debs import Archive, archive, needs_apt, sounds, transcripts
from tests.tiny_sources import choice, made, read_rows, refused, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")

__all__ = ["archive"]
HERTZ = 440


def tone(seconds: float = 0.5, rate: int = 16_000, channels: int = 1, hertz: float = HERTZ) -> np.ndarray:
    """(N,) or (N, channels); the second channel is silent."""
    wave_N = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return wave_N if channels == 1 else np.stack([wave_N, np.zeros_like(wave_N)], axis=1)


def sound_file(wave: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, wave, rate, format=kind, subtype=subtype)
    return content.getvalue()


def own(folder: Path, **changes: object) -> Data:
    return choice("speech", **{"path": str(folder), "fractions": (1.0, 0.0, 0.0), **changes})


def written(folder: Path, clips: dict[str, bytes]) -> Path:
    """A folder with clips/... and train.jsonl, which names them in this order."""
    (folder / "clips").mkdir(parents=True)
    for name, content in clips.items():
        (folder / "clips" / name).write_bytes(content)
    write_rows(folder / "train.jsonl", [{"audio": f"clips/{name}", "text": f"This is {name}."} for name in clips])
    return folder


def loudest_hertz(wave_N: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave_N)).argmax() * 16_000 / len(wave_N))


# ---- sound ----


def test_clips_of_any_kind_become_flac_of_16_khz_one_channel_and_16_bits(tmp_path: Path) -> None:
    clips = {
        "a.wav": sound_file(tone(1, 8_000), 8_000),
        "b.flac": sound_file(tone(1, 44_100, 2), 44_100, "FLAC"),
        "c.mp3": sound_file(tone(1, 48_000), 48_000, "MP3", "MPEG_LAYER_III"),
        "d.wav": sound_file(tone(1), subtype="FLOAT"),
        "e.wav": sound_file(tone(1, 8_000), 8_000),
    }
    log = made(data, own(written(tmp_path / "own", clips)), tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "train.jsonl")
    assert [row["id"] for row in rows] == [f"clips/{name}" for name in clips]
    assert [row["text"] for row in rows] == [f"This is {name}." for name in clips]
    assert [row["audio"] for row in rows] == [f"audio/train/{i:06d}.flac" for i in range(5)]
    for row in rows:
        file = soundfile.info(tmp_path / "out" / row["audio"])
        assert (file.format, file.samplerate, file.channels, file.subtype) == ("FLAC", 16_000, 1, "PCM_16")
        assert row["seconds"] == file.frames / 16_000 == pytest.approx(1, abs=0.06)
        assert loudest_hertz(soundfile.read(tmp_path / "out" / row["audio"])[0]) == pytest.approx(HERTZ, abs=1)
    stereo_N, _ = soundfile.read(tmp_path / "out" / rows[1]["audio"])
    assert np.abs(stereo_N).max() == pytest.approx(0.25, abs=0.01)
    assert log.notes == [
        "resampled to 16000 Hz: 2 clips of 8000 Hz, 1 clips of 44100 Hz, 1 clips of 48000 Hz",
        "mixed the channels of 1 clips",
    ]
    assert log.found["resampled_from"] == {"8000": 2, "44100": 1, "48000": 1}


def test_a_clip_that_fits_already_keeps_every_sample_however_long_it_is(tmp_path: Path) -> None:
    wave_N = np.random.default_rng(0).integers(-32_768, 32_768, 31 * 16_000).astype(np.int16)
    folder = written(tmp_path / "own", {"long.wav": sound_file(wave_N)})
    log = made(data, own(folder), tmp_path / "out")
    found_N, _ = soundfile.read(tmp_path / "out" / "audio" / "train" / "000000.flac", dtype="int16")
    assert np.array_equal(found_N, wave_N)
    assert log.notes == []
    assert log.found["seconds"] == {"train": 31.0}
    assert log.found["metrics"] == {"train_rows": 1, "train_seconds": 31.0}
    assert log.found["speech"] == {"language": "en", "task": "transcribe", "timestamps": False, "window": "full"}


# ---- manifests ----


def test_a_manifest_is_json_lines_or_a_table_and_splits_are_its_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", {f"{i}.wav": sound_file(tone(0.1, hertz=200 + 10 * i)) for i in range(24)})
    config = own(folder, fractions=(0.6, 0.2, 0.2))
    first = made(data, config, tmp_path / "a").found
    rows = read_rows(folder / "train.jsonl")
    (folder / "train.jsonl").unlink()
    lines = [f"{row['audio']}\t{row['text']}\n" for row in rows]
    (folder / "train.tsv").write_text("audio\ttext\n" + "".join(lines))
    assert made(data, config, tmp_path / "b").found["digest"] == first["digest"]
    (folder / "test.tsv").write_text("audio\ttext\n" + lines[7])
    kept = made(data, config, tmp_path / "c").found["rows"]
    assert kept["test"] == 1
    assert kept["train"] + kept["validation"] == 24


def test_a_changed_audio_file_changes_identity_and_digest(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", {"a.wav": sound_file(tone()), "b.wav": sound_file(tone(hertz=300))})
    first = made(data, own(folder), tmp_path / "a").found
    assert made(data, own(folder), tmp_path / "b").found == first
    (folder / "clips" / "b.wav").write_bytes(sound_file(tone(hertz=301)))
    assert identity(str(folder), "", "data.path") != first["source"]
    changed = made(data, own(folder), tmp_path / "c").found
    assert changed["digest"] != first["digest"]
    assert changed["rows"] == first["rows"]
    assert (tmp_path / "c" / "train.jsonl").read_bytes() == (tmp_path / "a" / "train.jsonl").read_bytes()


def test_clips_without_sound_or_text_and_unreadable_ones_are_left_out_counted_and_named(tmp_path: Path) -> None:
    clips = {
        "good.wav": sound_file(tone()),
        "silent.wav": sound_file(np.full(8_000, 1e-4), subtype="FLOAT"),
        "empty.wav": sound_file(np.zeros(0)),
        "cut.flac": b"fLaC",
        "nan.wav": sound_file(np.full(8_000, np.nan), subtype="FLOAT"),
        "nothing.wav": b"",
        "good too.wav": sound_file(tone()),
    }
    folder = written(tmp_path / "own", clips)
    with (folder / "train.jsonl").open("a") as manifest:
        manifest.write('{"audio": "clips/good.wav", "text": " "}\n')
    log = made(data, own(folder), tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "train.jsonl")
    assert [row["id"] for row in rows] == ["clips/good.wav", "clips/good too.wav"]
    assert [row["audio"] for row in rows] == ["audio/train/000000.flac", "audio/train/000001.flac"]
    assert log.notes[0] == "left out 1 rows without text"
    assert log.notes[1] == "left out 2 clips without sound, first train.jsonl:2"
    assert log.notes[2].startswith("left out 3 clips that cannot be read, first train.jsonl:4: ")
    assert [log.found[f"clips_{why}"] for why in ("without_sound", "unreadable")] == [2, 3]
    assert log.found["rows_without_text"] == 1


def test_files_that_a_manifest_names_and_that_are_not_there_are_refused_by_number_and_line(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", {f"{i}.wav": sound_file(tone()) for i in range(4)})
    for i in (1, 3):
        (folder / "clips" / f"{i}.wav").unlink()
    error = refused(data, own(folder), tmp_path / "out")
    assert error.option == "data.columns.audio"
    assert error.message == "2 of the audio files are not there, first train.jsonl:2: clips/1.wav"


def test_audio_that_the_digest_of_the_folder_does_not_cover_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", {"a.wav": sound_file(tone())})
    elsewhere = written(tmp_path / "elsewhere", {"a.wav": sound_file(tone())})
    (folder / "linked").symlink_to(elsewhere / "clips")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.wav").write_bytes(sound_file(tone()))
    outside = str(elsewhere / "clips" / "a.wav")
    for i, audio in enumerate((outside, "../elsewhere/clips/a.wav", "linked/a.wav", ".hidden/a.wav")):
        write_rows(folder / "train.jsonl", [{"audio": audio, "text": "hello"}])
        error = refused(data, own(folder), tmp_path / f"out-{i}")
        assert error.option == "data.path"
        assert f"train.jsonl:1: {audio!r} is hidden, or outside of the folder own" in error.message
    write_rows(folder / "train.jsonl", [{"audio": "clips/a.wav", "text": "hello"}])
    error = refused(data, own(folder / "train.jsonl"), tmp_path / "file")
    assert error.option == "data.path"
    assert "set this to the folder that holds both" in error.message


@pytest.mark.parametrize(
    ("row", "option", "says"),
    [
        (
            {"audio": 7, "text": "hello"},
            "data.columns.audio",
            "train.jsonl:1: expected the path of an audio",
        ),
        ({"sound": "clips/a.wav", "text": "hello"}, "data.columns.audio", "has no column 'audio'; it has: sound, text"),
        ({"audio": "clips/silent.wav", "text": "hello"}, "data.path", "holds no clip with sound"),
    ],
)
def test_manifests_that_hold_no_clips_are_refused(tmp_path: Path, row: dict, option: str, says: str) -> None:
    folder = written(tmp_path / "own", {"silent.wav": sound_file(np.zeros(800))})
    write_rows(folder / "train.jsonl", [{**row, "id": "one"}])
    error = refused(data, own(folder, columns={"audio": "audio", "text": "text", "id": "id"}), tmp_path / "out")
    assert error.option == option
    assert says in error.message


# ---- Asterisk's prompts ----


def prompts(archive: Archive, lines: list[str], clips: list[str]) -> None:
    archive.add("asterisk-core-sounds-en", "1.6.1-1", transcripts(lines))
    content = sound_file(tone(0.1, 8_000), 8_000)
    archive.add("asterisk-core-sounds-en-wav", "1.6.1-1", sounds(dict.fromkeys(clips, content)))


@needs_apt
def test_prompts_are_speech_of_four_words_and_more_each_text_once(archive: Archive, tmp_path: Path) -> None:
    lines = [
        "; Core Sounds in English, of four words and more",
        "",
        "conf-kicked: You have been kicked: good bye.",
        "beep: [this is a simple beep tone]",
        "[beep: a line that is no speech",
        "letters/two: It is three",
        "silence/1: (1 second of silence)",
        "conf-again: You have been KICKED, good bye",
        "not-recorded: This one has no recording",
        "digits/all: One two three four",
    ]
    recorded = ["conf-kicked", "beep", "[beep", "letters/two", "silence/1", "conf-again", "digits/all"]
    prompts(archive, lines, recorded)
    log = made(data, choice("asterisk_prompts", fractions=(1.0, 0.0, 0.0)), tmp_path / "out")
    assert [(row["id"], row["text"]) for row in read_rows(tmp_path / "out" / "train.jsonl")] == [
        ("conf-kicked", "You have been kicked: good bye."),
        ("digits/all", "One two three four"),
    ]
    assert log.found["license"] == "CC-BY-SA-3.0"
    assert log.notes[-1] == "resampled to 16000 Hz: 2 clips of 8000 Hz"


def test_a_prompt_is_always_in_the_same_split() -> None:
    train = cut(["train"], choice("asterisk_prompts").fractions)
    places = {"agent-alreadyon": "test", "conf-full": "validation", "vm-intro": "train"}
    assert {clip: train.side(clip) for clip in places} == places


@needs_apt
def test_other_packages_of_prompts_are_refused(archive: Archive, tmp_path: Path) -> None:
    prompts(archive, ["one: one two three four"], ["one"])
    config = choice("asterisk_prompts", path="deb:asterisk-core-sounds-en")
    error = refused(data, config, tmp_path / "out")
    assert error.option == "data.path"
    assert "asterisk-core-sounds-LL-wav" in error.message


# ---- hub ----

FROM_HUB = """
import json, sys
from pathlib import Path
from stages.data import run as data
from stages.data.spec import Data

class Record:
    def facts(self, **found):
        print(json.dumps(found))
    def note(self, line):
        pass

for config, out in json.loads(sys.argv[1]):
    Path(out).mkdir()
    data.run(Data.model_validate(config), {}, Path(out), Record())
assert "torchcodec" not in sys.modules
"""


def hub_repo(folder: Path, subset: str, rows: dict[str, list[dict]], features: dict) -> Path:
    """Parquet as `datasets` writes it: the types of columns that Arrow does not know stand in its metadata."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (folder / subset).mkdir(parents=True)
    for split, found in rows.items():
        table = pyarrow.Table.from_pylist(found).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, folder / subset / f"{split}.parquet")
    files = [{"split": split, "path": f"{subset}/{split}.parquet"} for split in rows]
    card = {"license": "cc0-1.0", "configs": [{"config_name": subset, "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    return folder


def test_hub_sets_come_by_nested_columns_and_with_audio_that_needs_no_torchcodec(tmp_path: Path) -> None:
    counts = {"train": 4, "validation": 2, "test": 3}
    text = {"dtype": "string", "_type": "Value"}
    wmt14 = hub_repo(
        tmp_path / "wmt14",
        "de-en",
        {
            split: [{"translation": {"de": f"Text {i} von {split}", "en": f"{split} text {i}"}} for i in range(count)]
            for split, count in counts.items()
        },
        {"translation": {"languages": ["de", "en"], "_type": "Translation"}},
    )
    mp3 = sound_file(tone(1, 48_000), 48_000, "MP3", "MPEG_LAYER_III")
    common_voice = hub_repo(
        tmp_path / "common_voice",
        "hi",
        {
            split: [
                {
                    "client_id": "someone",
                    "path": f"{split}_{i}.mp3",
                    "audio": {"bytes": mp3, "path": f"{split}_{i}.mp3"},
                    "sentence": f"नमस्ते {i}",
                }
                for i in range(count)
            ]
            for split, count in counts.items()
        },
        {"client_id": text, "path": text, "audio": {"sampling_rate": 48_000, "_type": "Audio"}, "sentence": text},
    )
    names = {"wmt14_en_de": "wmt/wmt14", "common_voice_hi": "mozilla-foundation/common_voice_11_0"}
    jobs = [(choice(name).model_dump(), str(tmp_path / f"out-{name}")) for name in names]
    repos = dict(zip((f"datasets/{repo}" for repo in names.values()), (wmt14, common_voice), strict=True))
    with tiny_hub.serve(repos) as (endpoint, _):
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        command = [sys.executable, "-c", FROM_HUB, json.dumps(jobs)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [found["source"] for found in facts] == [{"hub": r, "commit": tiny_hub.COMMIT} for r in names.values()]
    assert [found["rows"] for found in facts] == [counts, counts]
    assert facts[1]["seconds"] == pytest.approx(counts, abs=0.2)
    assert facts[1]["speech"]["language"] == "hi"
    assert facts[1]["license"] == "cc0-1.0"
    assert read_rows(tmp_path / "out-wmt14_en_de" / "test.jsonl")[2] == {
        "source": "translate English to German: test text 2",
        "target": "Text 2 von test",
        "id": "test text 2",
    }
    row = read_rows(tmp_path / "out-common_voice_hi" / "test.jsonl")[1]
    assert (row["id"], row["text"]) == ("test_1.mp3", "नमस्ते 1")
    wave_N, rate = soundfile.read(tmp_path / "out-common_voice_hi" / row["audio"])
    assert rate == 16_000
    assert loudest_hertz(wave_N) == pytest.approx(HERTZ, abs=1)
