"""Pairs of texts come in from Debian packages, tables and a hub; no text of a test split was in training."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from stages.contracts import UserError
from stages.data import run as data
from stages.data.rows import Raw, Row
from stages.sources import debian
from stages.sources.identity import identity
from tests.tiny_debs import Archive, archive, help_files, needs_apt
from tests.tiny_sources import SPLITS, Record, choice, made, read_rows, refused, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")

__all__ = ["archive"]
HELP_EN, HELP_DE = "libreoffice-help-en-us", "libreoffice-help-de"
HELP = f"deb:{HELP_EN}+{HELP_DE}"


def pairs(count: int) -> list[dict[str, str]]:
    return [{"source": f'say "number" {i}', "target": f'sag die "Zahl" {i}'} for i in range(count)]


def all_rows(folder: Path) -> list[dict[str, str]]:
    return [row for name in SPLITS for row in read_rows(folder / f"{name}.jsonl")]


# ---- Debian packages ----


@needs_apt
def test_a_debian_package_in_the_cache_wins_over_what_the_archive_has_now(archive: Archive) -> None:
    sha256 = archive.add(HELP_DE, "4:1.0-1+deb1", {"usr/a": b"one"})
    first = identity(f"deb:{HELP_DE}", "", "data.path")
    assert first == {"debian": f"{HELP_DE}=4:1.0-1+deb1", "sha256": sha256}
    log = Record()
    (deb,) = debian.of_identity(first)
    file = debian.fetch(deb, "data.path", log)
    newer = archive.add(HELP_DE, "4:1.1-1", {"usr/a": b"two"})
    assert identity(f"deb:{HELP_DE}", "", "data.path") == first
    assert debian.fetch(deb, "data.path", log) == file
    assert len(log.notes) == 1
    assert identity(f"deb:{HELP_DE}#sha256={newer}", "", "data.path")["debian"] == f"{HELP_DE}=4:1.1-1"
    with debian.unpacked([file]) as folder:
        assert (folder / "usr" / "a").read_bytes() == b"one"
    assert not folder.exists()


@needs_apt
def test_a_package_that_the_archive_replaced_meanwhile_is_found_by_the_next_run(archive: Archive) -> None:
    archive.add(HELP_DE, "1", {"usr/a": b"one"})
    (planned,) = debian.find(f"deb:{HELP_DE}", "data.path")
    newer = archive.add(HELP_DE, "2", {"usr/a": b"two"})
    with pytest.raises(UserError, match=f"could not get {HELP_DE}=1: .*try again"):
        debian.fetch(planned, "data.path", Record())
    (found,) = debian.find(f"deb:{HELP_DE}", "data.path")
    assert found == debian.Deb(HELP_DE, "2", newer)
    assert debian.fetch(found, "data.path", Record()).is_file()


@needs_apt
@pytest.mark.parametrize(
    ("path", "revision", "says"),
    [
        ("deb:gone", "", "no package 'gone'"),
        (f"deb:{HELP_DE}#sha256={'0' * 64}", "", f"not {'0' * 64}"),
        ("deb:", "", "expected deb:NAME"),
        ("deb:--option", "", "expected deb:NAME"),
        (f"deb:{HELP_DE}+{HELP_DE}", "", "expected deb:NAME"),
        (f"deb:{HELP_DE}", "main", "leave it empty"),
    ],
)
def test_debian_packages_that_cannot_be_had_are_one_line(archive: Archive, path: str, revision: str, says: str) -> None:
    archive.add(HELP_DE, "1", {"usr/a": b"one"})
    with pytest.raises(UserError, match=says) as caught:
        identity(path, revision, "data.path")
    assert caught.value.option == ("data.revision" if revision else "data.path")
    assert "\n" not in str(caught.value)


def test_without_apt_the_error_says_what_to_set_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no apt-get; set it to a folder of your own files, or to a hub id") as caught:
        identity(HELP, "", "data.path")
    assert caught.value.option == "data.path"


@needs_apt
def test_packages_without_a_reader_and_packages_as_models_are_refused(archive: Archive, tmp_path: Path) -> None:
    archive.add("hello", "1", {"usr/a": b"one"})
    assert "no reader for hello" in refused(data, choice("libreoffice_en_de", path="deb:hello"), tmp_path / "a").message
    with pytest.raises(UserError, match="no models"):
        identity("deb:hello", "", "model.path")


# ---- LibreOffice's help ----


def made_of_help(
    archive: Archive, out: Path, pages: dict[str, dict[str, tuple[str, str]]], **changes: object
) -> Record:
    for side, (name, language) in enumerate(((HELP_EN, "en-US"), (HELP_DE, "de"))):
        texts = {page: {key: both[side] for key, both in found.items()} for page, found in pages.items()}
        archive.add(name, "1", help_files(language, texts))
    return made(data, choice("libreoffice_en_de", path=HELP, **changes), out)


@needs_apt
def test_paragraphs_of_the_same_id_are_pairs_as_the_reader_of_the_page_sees_them(
    archive: Archive, tmp_path: Path
) -> None:
    switch = (
        '<span class="switchinline"><span hidden="true" id="MACx" class="MAC"><b>Command</b></span>'
        '<span hidden="true" id="defaultx"><b>{}</b></span></span>'
    )
    only = '<span class="switchinline"><span hidden="true" id="CALCx" class="CALC"> {}</span></span>'
    shown = {
        "par_1": (f"Press {switch.format('Ctrl')}+S &amp; wait", f"Drücken Sie {switch.format('Strg')}+S &amp; warten"),
        "par_2": (
            f"First line<br>second line.{only.format('And more.')}",
            f"Zeile eins<br>und zwei.{only.format('Mehr.')}",
        ),
        "par_3": ("too short", "viel zu kurz"),
        "par_4": ("MsgBox(a, b, c)", "MsgBox(a, b, c)"),
        "bm_5": ("no paragraph at all", "gar kein Absatz hier"),
        "par_6": (" ".join(["word"] * 61), " ".join(["Wort"] * 60)),
        "hd_7": ("Saving a document", "Ein Dokument speichern"),
    }
    log = made_of_help(archive, tmp_path / "out", {"a.html": shown}, fractions=(1.0, 0.0, 0.0))
    prefix = "translate English to German: "
    assert read_rows(tmp_path / "out" / "train.jsonl") == [
        {"source": f"{prefix}{source}", "target": target, "id": "text/a.html"}
        for source, target in (
            ("Press Ctrl+S & wait", "Drücken Sie Strg+S & warten"),
            ("First line second line. And more.", "Zeile eins und zwei. Mehr."),
            ("Saving a document", "Ein Dokument speichern"),
        )
    ]
    assert log.found["license"] == "MPL-2.0"
    assert log.found["format"] == "translation"
    assert log.found["source"]["debian"] == f"{HELP_EN}=1 {HELP_DE}=1"


@needs_apt
def test_a_text_stays_in_the_first_page_that_has_it_in_either_language(archive: Archive, tmp_path: Path) -> None:
    pages = {
        f"{i:03d}.html": {
            "par_own": (f"A sentence of page {i}", f"Ein Satz der Seite {i}"),
            "par_same": ("Choose Tools and Options.", "Wählen Sie Extras."),
            "par_case": ("choose tools, and options", f"Anders übersetzt auf {i}"),
            "par_target": (f"Another source on {i}", "Wählen Sie: extras"),
        }
        for i in range(150)
    }
    made_of_help(archive, tmp_path / "out", pages, fractions=(0.6, 0.2, 0.2))
    found = {name: read_rows(tmp_path / "out" / f"{name}.jsonl") for name in SPLITS}
    rows = all_rows(tmp_path / "out")
    assert sum(row["id"] == "text/000.html" for row in rows) == 4
    assert len(rows) == 150 + 3
    for column in ("id", "source", "target"):
        sides = [{row[column].casefold().strip(".:") for row in found[name]} for name in SPLITS]
        assert sum(len(side) for side in sides) == len(set.union(*sides))


# ---- own files ----


def test_tables_and_json_lines_are_the_same_data(tmp_path: Path) -> None:
    rows = pairs(200)
    write_rows(tmp_path / "own.jsonl", rows)
    lines = [f"{row['source']}\t{row['target']}\n" for row in rows]
    (tmp_path / "own.tsv").write_text("source\ttarget\n" + "".join(lines))
    quoted = ["\ufeffsource,target\r\n", *(f'"{r["source"]}","{r["target"]}"\r\n' for r in rows)]
    doubled = [line.replace('"number"', '""number""').replace('"Zahl"', '""Zahl""') for line in quoted]
    (tmp_path / "own.csv").write_bytes("".join(doubled).encode())
    digests = {
        made(data, choice("translation", path=str(tmp_path / f"own.{kind}")), tmp_path / kind).found["digest"]
        for kind in ("jsonl", "tsv", "csv")
    }
    assert len(digests) == 1
    assert {
        "source": 'translate English to German: say "number" 7',
        "target": 'sag die "Zahl" 7',
        "id": 'say "number" 7',
    } in (all_rows(tmp_path / "tsv"))


@pytest.mark.parametrize(
    ("name", "content", "option", "says"),
    [
        ("own.tsv", b"source\ttarget\none\teins\ntwo\n", "data.path", "own.tsv:3: 1 fields, the header has 2"),
        ("own.tsv", b"one\teins\ntwo\tzwei\n", "data.columns.source", "no column 'source'; it has: one, eins"),
        ("own.tsv", b"source\tsource\n", "data.path", "own.tsv:1: expected a header"),
        ("own.tsv", b"source\ttarget\n\xff\teins\n", "data.path", "own.tsv is not valid UTF-8"),
        ("own.csv", b'source,target\n"one,eins\n', "data.path", "own.csv:2 is not readable"),
        ("own.tsv", b"source\ttarget\none\t \n", "data.path", "no row with text"),
        ("own.jsonl", b'{"source": {"en": "one"}, "target": "eins"}\n', "data.columns.source", "got dict"),
        ("own.parquet", b"PAR1", "data.path", "own.parquet is not readable as Parquet"),
    ],
)
def test_unusable_tables_are_named_with_their_line(
    tmp_path: Path, name: str, content: bytes, option: str, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused(data, choice("translation", path=str(tmp_path / name)), tmp_path / "out")
    assert error.option == option
    assert says in error.message


def test_empty_references_are_left_out_and_counted(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "own.jsonl", [*pairs(60), {"source": "say", "target": " "}, {"source": "say", "target": None}]
    )
    log = made(data, choice("translation", path=str(tmp_path / "own.jsonl")), tmp_path / "out")
    assert log.found["rows_without_text"] == 2
    assert log.notes == ["left out 2 rows without text"]
    assert sum(log.found["rows"].values()) == 60


def test_a_dotted_name_is_a_column_inside_a_column(tmp_path: Path) -> None:
    write_rows(tmp_path / "own.jsonl", [{"translation": {"en": f"one {i}", "de": f"eins {i}"}} for i in range(60)])
    columns = {"source": "translation.de", "target": "translation.en", "id": "translation.en"}
    made(data, choice("translation", path=str(tmp_path / "own.jsonl"), columns=columns), tmp_path / "out")
    assert {"source": "translate English to German: eins 7", "target": "one 7", "id": "one 7"} in all_rows(
        tmp_path / "out"
    )
    wrong = {**columns, "source": "translation.fr"}
    error = refused(data, choice("translation", path=str(tmp_path / "own.jsonl"), columns=wrong), tmp_path / "b")
    assert error.option == "data.columns.source"
    assert "own.jsonl:1 has no column 'translation.fr'; it has: en, de" in error.message


def test_a_data_set_never_is_in_memory_as_a_whole(tmp_path: Path) -> None:
    rows = (Row(f"row {i}", {"source": f"{i}" * 500, "target": f"{i}" * 500}) for i in range(2_000))
    tracemalloc.start()
    try:
        num_rows, _ = data._write(choice("translation", path="x"), Raw({"train": rows}, ""), tmp_path, None)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(num_rows.values()) == 2_000
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 8 * peak_bytes
