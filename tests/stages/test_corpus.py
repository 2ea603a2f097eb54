"""Packing text for pretraining: shares, splits, shards that survive, streams, and the rows that training reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from stages import families, packed
from stages.contracts import Checkpoint, PackedCorpus, Stopped, UserError
from stages.corpus import documents
from stages.corpus import run as corpus
from stages.corpus.documents import Local
from stages.corpus.encoding import Encoder
from stages.corpus.mixture import is_validation, next_source
from stages.corpus.spec import CorpusOptions, Source
from stages.sources.hub_streams import HubStream
from stages.sources.identity import identity
from tests import tiny, tiny_hub
from tests.recording import RecordingLog
from tests.tiny_corpus import options, pack, save_sources

EOS = 0
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tiny.save_model(tmp_path_factory.mktemp("model")), "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: 300 short documents as rows, 40 long ones as files."""
    return save_sources(tmp_path_factory.mktemp("texts"))


def ids_of(part: packed.Tokens) -> list[int]:
    return part.window(0, len(part)).tolist()


def contents(found: PackedCorpus) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(found.path.iterdir()) if path.name != "meta.json"}


def documents_of(ids: list[int], tokenizer: Any) -> list[str]:
    parts, begin = [], 0
    for place, token in enumerate(ids):
        if token == EOS:
            parts.append(tokenizer.decode(ids[begin:place]))
            begin = place + 1
    return parts


def test_each_document_is_in_one_part_and_shares_are_those_of_the_weights(
    model: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    found = pack(options(folder), model, tmp_path)
    facts = found.facts()
    assert found.index()["dtype"] == "uint16"
    assert sum(found.index()["train"]) == 6000 == found.metrics()["tokens"]
    assert len(found.index()["train"]) > 3
    assert facts["sources"]["rows"]["tokens"] == pytest.approx(4500, abs=150), "within a document"
    tokenizer = families.of(model.path).tokenizer(model.path)
    training = documents_of(ids_of(packed.train_tokens(found)), tokenizer)
    texts = set(tiny.sentences(300, 5))
    validation = packed.validation_tokens(found)
    assert set(validation) == {"rows", "files"}
    kept = documents_of(ids_of(validation["rows"]), tokenizer)
    assert kept
    assert set(kept) <= texts
    assert all(is_validation(text, 0.2) for text in kept)
    assert not any(is_validation(text, 0.2) for text in training)
    assert not set(kept) & set(training)
    assert len(validation["rows"]) < 400 + 80, "capped, but for its last document"


def test_without_weights_each_source_is_read_once(model: Checkpoint, folder: Path, tmp_path: Path) -> None:
    sources = {"rows": {"path": str(folder / "rows.jsonl")}, "files": {"path": str(folder / "files"), "files": "*.txt"}}
    found = pack(options(folder, sources=sources, tokens=0, validation_tokens=10**6), model, tmp_path)
    facts = found.facts()["sources"]
    assert facts["rows"]["documents"] + facts["rows"]["validation_documents"] == 300
    assert facts["files"]["documents"] + facts["files"]["validation_documents"] == 40
    assert facts["rows"]["rounds"] == facts["files"]["rounds"] == 1


def test_with_weights_and_no_budget_sources_are_read_until_all_have_ended(
    model: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    found = pack(options(folder, tokens=0), model, tmp_path)
    facts = found.facts()["sources"]
    assert facts["files"]["rounds"] == 1
    assert facts["rows"]["rounds"] >= 1
    assert facts["rows"]["tokens"] == pytest.approx(3 * facts["files"]["tokens"], rel=0.05)


class Killed(Exception):  # noqa: N818 (as a kill would end it)
    pass


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the reading of local sources after so many documents."""
    whole, left = Local.texts, [count]

    def texts(self: Local, state: dict[str, Any] | None, skip: int) -> Iterator[str]:
        for text in whole(self, state, skip):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            yield text

    monkeypatch.setattr(Local, "texts", texts)


def test_a_killed_run_comes_to_the_same_bytes_however_often(
    model: Checkpoint, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.corpus.feed.BATCH_CHARACTERS", 700)
    whole = contents(pack(options(folder), model, tmp_path / "whole"))
    log = RecordingLog(tmp_path / "killed")
    behind = []
    for num_documents in (50, 45, 40):
        with monkeypatch.context() as patch:
            killed_after(num_documents, patch)
            with pytest.raises(Killed):
                pack(options(folder), model, tmp_path / "killed", log)
        behind.append(len(list(log.resume.glob("shard_*"))))
    assert [0, *behind] == sorted({0, *behind}), "each attempt came further"
    assert contents(pack(options(folder), model, tmp_path / "killed", log)) == whole
    assert any("resumes after" in note for note in log.notes)


def test_a_damaged_shard_and_those_behind_it_are_made_again(model: Checkpoint, folder: Path, tmp_path: Path) -> None:
    whole = contents(pack(options(folder), model, tmp_path))
    log = RecordingLog(tmp_path / "resume")
    damaged = log.resume / "shard_00002" / "train.bin"
    damaged.unlink()  # a hard link: the published file stays
    damaged.write_bytes(b"half")
    assert contents(pack(options(folder), model, tmp_path, log)) == whole
    assert [note for note in log.notes if "shard_00002 is unusable" in note]
    (log.resume / "writing").mkdir()
    (log.resume / "writing" / "train.bin").write_bytes(b"half written")
    shutil.rmtree(log.resume / "shard_00004")
    assert contents(pack(options(folder), model, tmp_path, log)) == whole


def test_a_wish_to_stop_is_heard(
    model: Checkpoint, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DOCUMENTS_PER_LOOK", 100)
    log = RecordingLog(tmp_path / "resume")
    log.should_stop = True
    with pytest.raises(Stopped, match="finished shards"):
        pack(options(folder), model, tmp_path, log)
    log.should_stop = False
    assert sum(pack(options(folder), model, tmp_path, log).index()["train"]) == 6000


def test_shards_of_another_size_hold_the_same_tokens(model: Checkpoint, folder: Path, tmp_path: Path) -> None:
    one, many = (pack(options(folder, shard_tokens=size), model, tmp_path / str(size)) for size in (10**6, 500))
    assert len(one.index()["train"]) == 1 < len(many.index()["train"])
    assert ids_of(packed.train_tokens(one)) == ids_of(packed.train_tokens(many))
    assert one.digest == many.digest


# ---- streams of a hub ----


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in three files, streamed from this disk."""
    repo = tmp_path / "repo"
    repo.mkdir()
    for shard in range(3):
        rows = [{"content": text} for text in tiny.sentences(60, shard)]
        (repo / f"train-{shard:05d}-of-00003.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def open_here(self: HubStream) -> Any:
        files = sorted(map(str, repo.iterdir()))
        return datasets.load_dataset("json", data_files=files, split="train", streaming=True)

    monkeypatch.setattr(HubStream, "_open", open_here)
    return repo


def streamed(**changes: Any) -> CorpusOptions:
    source = {"path": "o/text", "revision": tiny_hub.COMMIT, "column": "content", "weight": 1}
    given = {"tokens": 5000, "validation_fraction": 0.1, "validation_tokens": 100, "shard_tokens": 700}
    return CorpusOptions.model_validate({"sources": {"hub": source}} | given | changes)


def test_a_stream_that_is_cut_off_twice_comes_to_the_same_bytes(
    model: Checkpoint, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` once forgot, after the first resume, where a stream was (its issue 8308)."""
    monkeypatch.setattr("stages.corpus.feed.BATCH_CHARACTERS", 700)
    whole = contents(pack(streamed(), model, tmp_path / "whole"))
    log = RecordingLog(tmp_path / "cut")
    iterate, behind = datasets.IterableDataset.__iter__, []
    for rows in (50, 50):
        with monkeypatch.context() as patch:

            def cut(self: datasets.IterableDataset, rows: int = rows) -> Iterator[Any]:
                yield from islice(iterate(self), rows)
                raise ConnectionError("reset by peer")

            patch.setattr(datasets.IterableDataset, "__iter__", cut)
            with pytest.raises(UserError, match=r"cut off after 50 documents .*reset by peer.* resumes") as refused:
                pack(streamed(), model, tmp_path / "cut", log)
        assert refused.value.option == "corpus.sources.hub.path"
        behind.append(len(list(log.resume.glob("shard_*"))))
    assert 0 < behind[0] < behind[1]
    assert contents(pack(streamed(), model, tmp_path / "cut", log)) == whole


def test_a_stream_without_the_column_is_refused(model: Checkpoint, hub: Path, tmp_path: Path) -> None:
    sources = {"hub": {"path": "o/text", "revision": tiny_hub.COMMIT, "column": "text", "weight": 1}}
    with pytest.raises(UserError, match="no column 'text'; it has: content"):
        pack(streamed(sources=sources), model, tmp_path)


def test_a_hub_streams_at_one_commit(hub: Path, tmp_path: Path) -> None:
    script = (
        "from stages.sources.hub_streams import HubStream\n"
        "from stages.contracts import UserError\n"
        f"stream = HubStream('o/text', {tiny_hub.COMMIT!r}, '', '', 'train', 'content', 'corpus.sources.hub')\n"
        "texts = stream.texts(None, 0); found = [next(texts) for _ in range(70)]; state = stream.state()\n"
        "print(next(stream.texts(state, 0)))\n"
        "try: next(HubStream('o/text', 'f' * 40, '', '', 'train', 'content', 'corpus.sources.hub').texts(None, 0))\n"
        "except UserError as error: print(error.option)\n"
    )
    with tiny_hub.serve({"datasets/o/text": hub}) as (endpoint, _):
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
                                    "HF_DATASETS_OFFLINE": "0", "PYTHONPATH": str(PROJECT)}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
        )
    assert done.stdout.splitlines() == [tiny.sentences(60, 1)[10], "corpus.sources.hub.path"], done.stderr


# ---- the mixture ----


@pytest.mark.parametrize(("begin", "expected"), [({"a": 0, "b": 0}, "abaaba"), ({"a": 50, "b": 0}, "bbbaab")])
def test_the_source_furthest_behind_its_share_is_next(begin: dict[str, int], expected: str) -> None:
    tokens, found = dict(begin), ""
    for _ in expected:
        name = next_source(tokens, {"a": 2, "b": 1}, set())
        assert name is not None
        tokens[name] += 10
        found += name
    assert found == expected


# ---- tokenizers ----


class Stub:
    def __init__(self, folder: Path, template: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(single=template, special_tokens=[("<eos>", EOS)])


@pytest.mark.parametrize(
    ("template", "begin"), [("$A", []), ("<eos> $A", [EOS]), ("<eos> <eos> $A", [EOS]), ("<eos> $A <eos>", [EOS])]
)
def test_a_document_begins_and_ends_once(model: Checkpoint, template: str, begin: list[int]) -> None:
    tokenizer = Stub(model.path, template).tokenizer
    text = "the river sings"
    [ids] = Encoder(tokenizer).documents([text])
    assert ids.tolist() == [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"], EOS]


def test_special_tokens_written_in_a_text_are_text(model: Checkpoint) -> None:
    tokenizer = families.of(model.path).tokenizer(model.path)
    [ids] = Encoder(tokenizer).documents(["the river<eos>sings"])
    assert ids.tolist().count(EOS) == 1
    assert ids[-1] == EOS
    assert tokenizer.decode(ids[:-1]) == "the river<eos>sings"


def test_a_tokenizer_without_eos_is_refused(model: Checkpoint) -> None:
    tokenizer = families.of(model.path).tokenizer(model.path)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of sequence"):
        Encoder(tokenizer)


# ---- rows ----


def part(sizes: list[int], documents: list[list[int]]) -> packed.Tokens:
    whole = np.arange(sum(sizes), dtype=np.uint16)
    shards = np.split(whole, np.cumsum(sizes)[:-1])
    return packed.Tokens(shards, [np.array(starts, dtype=np.uint64) for starts in documents])


def test_windows_run_over_the_borders_of_shards() -> None:
    tokens = part([5, 3, 9], [[0, 3], [0], [0, 4]])
    rows = packed.Windows(tokens, 4, apart=False)
    assert len(rows) == 4
    assert rows.take(torch.tensor([1, 0, 3]))["input_ids"].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3], [12, 13, 14, 15]]


def test_positions_restart_with_each_document_and_its_first_token_is_not_learned() -> None:
    tokens = part([5, 3, 9], [[0, 3], [0], [0, 4]])  # documents begin at 0, 3, 5, 8, 12
    batch = packed.Windows(tokens, 8, apart=True).take(torch.tensor([0, 1]))
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch["labels"][0].tolist() == [-100, 1, 2, -100, 4, -100, 6, 7]


def test_validation_rows_are_of_all_sources_in_turn(model: Checkpoint, folder: Path, tmp_path: Path) -> None:
    found = pack(options(folder), model, tmp_path)
    both = packed.rows(found, "validation", 32, False, "o")
    alone = [packed.rows(found, f"validation.{name}", 32, False, "o") for name in ("rows", "files")]
    first = both.take(torch.arange(4))["input_ids"]
    assert torch.equal(first[0::2], alone[0].take(torch.arange(2))["input_ids"])
    assert torch.equal(first[1::2], alone[1].take(torch.arange(2))["input_ids"])
    assert len(both) == sum(map(len, alone))
    with pytest.raises(UserError, match="fewer than one window"):
        packed.rows(found, "validation", 10**6, False, "o")


def test_the_library_of_the_interpreter_is_a_source() -> None:
    from stages.sources import interpreter

    names = {path.name for path in interpreter.files()}
    assert {"argparse.py", "json"} & names
    assert "test_argparse.py" not in names
    assert identity("python:stdlib", "", "corpus.sources.python.path") == identity(
        "python:stdlib", "", "corpus.sources.other.path"
    )
    with pytest.raises(UserError, match="leave it empty"):
        identity("python:stdlib", "3.11", "corpus.sources.python.path")


def generated(**changes: Any) -> dict[str, Any]:
    sums = {"name": "chain_arithmetic", "fewest_terms": 2, "most_terms": 3}
    return {"path": "generated", "generator": sums, "size": 200, "seed": 1, "template": "{question}{answer}"} | changes


def test_generated_documents_are_a_source(model: Checkpoint, tmp_path: Path) -> None:
    reader = documents.open_reader("sums", Source(**generated()), RecordingLog(tmp_path))
    text, *others = reader.texts(None, 0)
    assert len(set(others)) == 199
    question, _, rest = text.partition("=")
    assert eval(question) == int(rest.rpartition("#")[2])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 10_000}, r"corpus\.sources\.sums\.size: chain_arithmetic has \d+ different items"),
        ({"template": "{question}{nothing}"}, r"corpus\.sources\.sums\.template: .*no column 'nothing'"),
    ],
)
def test_what_the_generator_does_not_give_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        documents.open_reader("sums", Source(**generated(**changes)), RecordingLog(tmp_path))


@pytest.mark.parametrize("changes", [{"generator": None}, {"path": "here"}, {"size": 0}, {"template": ""}])
def test_half_of_a_generated_source_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"need|are for"):
        Source(**generated(**changes))
