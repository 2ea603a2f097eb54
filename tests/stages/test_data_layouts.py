"""Folders of data are read as `datasets` reads them, and what cannot be read is one line that names the option."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.contracts import UserError
from stages.data import columns
from stages.data import run as data
from stages.data.rows import Row
from tests import tiny
from tests.composed import config_of
from tests.recording import RecordingLog

Rows = list[bytes]


def lines(path: Path) -> Rows:
    return path.read_bytes().splitlines(keepends=True)


def made(folder: Path, **options: object) -> tuple[dict[str, float], RecordingLog]:
    out, log = folder.parent / "out", RecordingLog(folder.parent / "log")
    out.mkdir()
    config = config_of("data=text", f"data.path='{folder}'").data.model_copy(update=options)
    found = data.run(config, {}, out, log)
    return {name.removesuffix("_rows"): count for name, count in found.items()}, log


def refused(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        made(folder)
    assert "\n" not in str(caught.value)
    return caught.value


def packed(pack: Callable[[bytes], bytes], ending: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in list(folder.iterdir()):
            (folder / f"{file.name}{ending}").write_bytes(pack(file.read_bytes()))
            file.unlink()

    return change


def sharded(folder: Path) -> None:
    rows = lines(folder / "train.jsonl")
    (folder / "train.jsonl").unlink()
    for i in range(3):
        (folder / f"train-0000{i}-of-00003.jsonl").write_bytes(b"".join(rows[i::3]))


def as_on_a_hub(folder: Path) -> None:
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").rename(folder / "data" / f"{split}-00000-of-00001.jsonl")


def split_folders(folder: Path) -> None:
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        (folder / name).mkdir()
        (folder / f"{split}.jsonl").rename(folder / name / "part.jsonl")


def named(validation: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "validation.jsonl").rename(folder / f"{validation}.jsonl") and None


def in_the_card(folder: Path) -> None:
    for split, name in (("train", "one"), ("validation", "two"), ("test", "three")):
        (folder / f"{split}.jsonl").rename(folder / f"{name}.jsonl")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: one.jsonl}\n"
        "  - {split: validation, path: two.jsonl}\n  - {split: test, path: three.jsonl}\n---\n"
    )


def a_folder_in_the_card(folder: Path) -> None:
    for name in ("mine", "other"):
        (folder / name).mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").rename(folder / "mine" / f"{split}.jsonl")
    (folder / "other" / "train.jsonl").write_text('{"text": "of another subset", "id": "x"}\n')
    (folder / "README.md").write_text("---\nconfigs:\n- {config_name: default, data_dir: mine}\n---\n")


def a_default_in_the_card(folder: Path) -> None:
    a_folder_in_the_card(folder)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- {config_name: b, data_dir: other}\n- {config_name: a, data_dir: mine, default: true}\n---\n"
    )


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "as on a hub": as_on_a_hub,
    "sharded": sharded,
    "folders": split_folders,
    "valid": named("valid"),
    "dev": named("dev"),
    "val": named("val"),
    "gzip": packed(gzip.compress, ".gz"),
    "bzip2": packed(bz2.compress, ".bz2"),
    "xz": packed(lzma.compress, ".xz"),
    "card": in_the_card,
    "card with a folder": a_folder_in_the_card,
    "card with a default": a_default_in_the_card,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_has_the_splits_that_datasets_finds(layout: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = tiny.save_texts(tmp_path / "data set")
    LAYOUTS[layout](folder)
    found, log = made(folder)
    assert found == {"train": 60, "validation": 20, "test": 20}
    theirs = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {str(split): float(len(rows)) for split, rows in theirs.items()} == found
    assert not log.notes


def test_files_whose_names_say_no_split_are_named_and_can_be_chosen(tmp_path: Path) -> None:
    folder = tiny.save_texts(tmp_path / "a")
    (folder / "validation.jsonl").rename(folder / "heldout.jsonl")
    found, log = made(folder)
    assert sum(found.values()) == 80
    assert "not read: heldout" in log.notes[0]
    other = tiny.save_texts(tmp_path / "b" / "texts")
    (other / "validation.jsonl").rename(other / "heldout.jsonl")
    found, log = made(other, splits={"train": "train", "validation": "heldout", "test": "test"})
    assert found == {"train": 60, "validation": 20, "test": 20}
    assert not log.notes


@pytest.mark.parametrize("parent", ["texts", "my_train_sets"])
def test_files_are_train_by_their_own_names_alone(parent: str, tmp_path: Path) -> None:
    folder = tmp_path / parent / "texts"
    folder.mkdir(parents=True)
    for name in ("traindata", "devdata"):
        (folder / f"{name}.jsonl").write_text(tiny_rows(name, 20))
    error = refused(folder)
    assert error.option == "data.splits"
    assert "devdata, traindata" in str(error)


def tiny_rows(name: str, count: int) -> str:
    return "".join(json.dumps({"id": f"{name}{i}", "text": f"{name} {i}"}) + "\n" for i in range(count))


def test_eval_is_test_as_in_datasets_unless_it_is_named(tmp_path: Path) -> None:
    folder = tiny.save_texts(tmp_path / "a")
    (folder / "validation.jsonl").rename(folder / "eval.jsonl")
    found, log = made(folder)
    assert found["test"] == 40
    assert "eval is read as test" in log.notes[0]
    found, log = made(tiny_copy(folder, tmp_path / "b"), splits={"train": "train", "validation": "eval"})
    assert found["validation"] == 20
    assert not [note for note in log.notes if "is read as" in note]


def tiny_copy(folder: Path, parent: Path) -> Path:
    return shutil.copytree(folder, parent / "texts")


@pytest.mark.parametrize("ending", ["jsonl", "json", "txt", "csv", "tsv"])
def test_a_byte_order_mark_is_no_part_of_the_text(ending: str, tmp_path: Path) -> None:
    texts = [f"line {i}" for i in range(200)]
    rows = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        "json": json.dumps([{"text": text} for text in texts]),
    }
    lines_only = "\n".join(texts)
    (tmp_path / f"a.{ending}").write_text(
        rows.get(ending, lines_only if ending == "txt" else f"text\n{lines_only}"), encoding="utf-8-sig"
    )
    assert sum(made(tmp_path / f"a.{ending}")[0].values()) == 200
    stored = {json.loads(line)["text"] for file in (tmp_path / "out").iterdir() for line in lines(file)}
    assert stored == set(texts)


@pytest.mark.parametrize("missing", ["null", "NaN"])
def test_a_row_without_text_is_left_out_or_refused_and_never_the_name_of_nothing(missing: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(tiny_rows("a", 200) + f'{{"id": "x", "text": {missing}}}\n')
    found, log = made(file)
    assert sum(found.values()) == 200
    assert "left out 1 rows" in log.notes[0]
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match=r"data\.verbatim"):
        made(file, verbatim=True)


def test_the_id_is_the_text_s_own_column_unless_it_is_named() -> None:
    assert config_of("data=text", "data.path=x", "data.columns.text=content").data.columns["id"] == "content"


def test_files_of_a_part_of_c4_are_told(tmp_path: Path) -> None:
    folder = tiny.save_texts(tmp_path / "c4")
    (folder / "train.jsonl").rename(folder / "c4-train.00000-of-01024.json")
    (folder / "validation.jsonl").rename(folder / "c4-validation.00000-of-00001.json")
    assert made(folder)[1].notes == ["the split 'train' is 1 of the 1024 files c4-train.*-of-01024"]


def test_signs_of_patterns_in_the_folder_s_name_are_its_name(tmp_path: Path) -> None:
    folder = tiny.save_texts(tmp_path / "a[1]*{b}")
    (folder / "validation.jsonl").rename(folder / "dev.jsonl")
    assert made(folder)[0] == {"train": 60, "validation": 20, "test": 20}


def test_a_column_inside_a_column_without_a_value_is_a_row_without_text() -> None:
    assert columns.held(Row("x:1", {"a": None}), "a.b.c", "data.columns.text") is None
    assert columns.text(Row("x:1", {"a": {"b": None}}), "text", "a.b.c") == ""
    with pytest.raises(UserError, match="no column"):
        columns.held(Row("x:1", {"a": "text"}), "a.b", "data.columns.text")


def test_a_card_without_a_header_may_be_anything(tmp_path: Path) -> None:
    folder = tiny.save_texts(tmp_path / "t")
    (folder / "README.md").write_bytes("Née en 1990".encode("latin-1"))
    assert made(folder)[0]["train"] == 60


def test_lines_of_plain_text_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"line {i}\n" for i in range(200)))
    assert sum(made(file)[0].values()) == 200


def deep(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"id": "x", "text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "extra.jsonl")


def device(folder: Path) -> None:
    (folder / "extra.jsonl").symlink_to("/dev/zero")


def dangling(folder: Path) -> None:
    (folder / "extra.jsonl").symlink_to(folder / "gone")


def loop(folder: Path) -> None:
    (folder / "extra.jsonl").symlink_to(folder / "extra.jsonl")


def cut_off(folder: Path) -> None:
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((folder / "train.jsonl").read_bytes())[:-20])
    (folder / "train.jsonl").unlink()


def two_kinds(folder: Path) -> None:
    (folder / "train.csv").write_text("id,text\n1,a\n")


def lost_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "train-00001-of-00003.jsonl").unlink()


def saved_to_disk(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").unlink()
    (folder / "train").mkdir()
    (folder / "train" / "data-00000-of-00001.arrow").write_bytes(b"")
    (folder / "train" / "state.json").write_text("{}")


def flipped(suffix: str, pack: Callable[[bytes], bytes], at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray(pack((folder / "train.jsonl").read_bytes()))
        content[at] ^= 0x40
        (folder / f"train.jsonl{suffix}").write_bytes(content)
        (folder / "train.jsonl").unlink()

    change.__name__ = f"flipped{suffix}"
    return change


def twice(folder: Path) -> None:
    """The rows would be read twice."""
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((folder / "train.jsonl").read_bytes()))


def broken_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")


def card_in_latin_1(folder: Path) -> None:
    (folder / "README.md").write_bytes("---\nlicense: é\n---\n".encode("latin-1"))


def packed_by_zstandard(folder: Path) -> None:
    """Without the package that reads it."""
    (folder / "train.jsonl").rename(folder / "train.jsonl.zst")


DAMAGES = [
    deep, pipe, device, dangling, loop, cut_off, two_kinds, lost_shard, saved_to_disk, packed_by_zstandard, twice,
    broken_card, card_in_latin_1, flipped(".gz", gzip.compress, 12), flipped(".gz", gzip.compress, -7),
    flipped(".xz", lzma.compress, 100), flipped(".bz2", bz2.compress, 100),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda it: it.__name__)
def test_what_cannot_be_read_is_one_line_that_names_the_option(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tiny.save_texts(tmp_path / "texts")
    damage(folder)
    assert refused(folder).option == "data.path"


def test_rows_can_be_kept_as_they_are(tmp_path: Path) -> None:
    rows = ["", " = Title = \n", "", " Some text . \n", "trailing  "] * 20
    folder = tmp_path / "wiki"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    made(folder, verbatim=True)
    stored = [json.loads(line)["text"] for line in lines(tmp_path / "out" / "test.jsonl")]
    assert "\n\n".join(stored) == "\n\n".join(rows)
