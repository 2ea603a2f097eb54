"""What makes two results the same, and what does not. The golden values keep every stored result a hit:
a change here makes all users' stores worthless, so it must be meant."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fingerprint import PROJECT, canonical_json, code_digest, fingerprint, flatten
from stages.contracts import UserError
from stages.index import STAGES

CONFIG = {"training": {"lr": 1e-4, "steps": 100, "checkpoint_every": 50}, "betas": [0.9, 0.999], "cubic": None}
INPUTS = {"model": "a" * 64, "data": "b" * 64}
GOLDEN_FINETUNE = "7a252a18a08d3de0222267742776678565a2d282aa33fd8b42d33f30da4ee1b2"
GOLDEN_WITHOUT_CHECKPOINTS = "c4a49a4aa3e852f3c2472bcb8786eaa842c6de116e3cf5977c3d03af54342caa"
GOLDEN_EMPTY = "58a0def7d11d129f3677746333ba89e1545f9a333fc08a834018ad35a4c4f8dd"

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
plain_keys = st.text(st.characters(exclude_characters=".", codec="utf-8"), min_size=1, max_size=4)
configs = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(plain_keys, inner, max_size=4),
    max_leaves=10,
)


def of(**changes) -> str:
    call = {"stage": "finetune", "version": "1", "config": CONFIG, "inputs": INPUTS, **changes}
    return fingerprint(**call)


def training(**changes) -> dict:
    return {**CONFIG, "training": {**CONFIG["training"], **changes}}


def test_golden_values():
    text = '{"a":[1,2.5,true,null,"\\u00e9"],"b":{"c":0.0001,"d":1e+16}}'
    assert canonical_json({"b": {"d": 1e16, "c": 1e-4}, "a": (1, 2.5, True, None, "é")}) == text
    assert of() == GOLDEN_FINETUNE
    assert of(irrelevant=("training.checkpoint_every",)) == GOLDEN_WITHOUT_CHECKPOINTS
    assert fingerprint("model", "1", {}, {}) == GOLDEN_EMPTY


def test_a_fingerprint_is_the_sha256_of_what_it_documents():
    identity = {"config": CONFIG, "inputs": INPUTS, "stage": "finetune", "version": "1"}
    assert of() == hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_one_number_written_differently_is_one_configuration():
    assert of(config=training(lr=0.0001)) == of(config=training(lr=float("1e-4"))) == of()
    assert of(config=training(lr=-0.0)) == of(config=training(lr=0.0))


def test_order_of_keys_and_tuples_do_not_matter():
    backwards = {key: CONFIG[key] for key in reversed(CONFIG)} | {"betas": (0.9, 0.999)}
    assert of(config=backwards, inputs=dict(reversed(INPUTS.items()))) == of()


@pytest.mark.parametrize(
    "change",
    [
        {"config": training(lr=2e-4)},
        {"config": training(steps=101)},
        {"config": training(added=None)},
        {"config": {**CONFIG, "betas": [0.999, 0.9]}},
        {"config": {**CONFIG, "cubic": {}}},
        {"stage": "dense"},
        {"version": "2"},
        {"inputs": INPUTS | {"data": "c" * 64}},
        {"inputs": INPUTS | {"teacher": "a" * 64}},
        {"inputs": {"model": "b" * 64, "data": "a" * 64}},
    ],
)
def test_what_can_change_the_result_changes_the_fingerprint(change):
    assert of(**change) != of()


def test_an_irrelevant_key_does_not_count_and_its_neighbours_do():
    ignored = ("training.checkpoint_every",)
    assert of(config=training(checkpoint_every=7), irrelevant=ignored) == of(irrelevant=ignored)
    assert of(config=training(checkpoint_every=7)) != of()
    assert of(config=training(lr=1.0), irrelevant=ignored) != of(irrelevant=ignored)
    assert of(config={**CONFIG, "checkpoint_every": 7}, irrelevant=ignored) != of(irrelevant=ignored)


def test_irrelevant_keys_exist_among_the_options_of_their_stage():
    for stage in STAGES.values():
        for key in stage.irrelevant:
            options = stage.options
            *sections, option = key.split(".")
            for section in sections:
                options = options.model_fields[section].annotation
            assert option in options.model_fields


def test_outside_data_count_by_digest_and_never_by_path(tmp_path):
    content = b'{"text": "one"}\n'

    def source(folder: str, content: bytes) -> str:
        path = tmp_path / folder / "train.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        config = {"path": str(path), "digest": hashlib.sha256(path.read_bytes()).hexdigest()}
        return fingerprint("data", "1", config, {}, irrelevant=("path",))

    assert source("here", content) == source("there", content)
    assert source("here", content) != source("here", content + b"\n")
    with pytest.raises(TypeError, match=r"data\.path"):
        canonical_json({"data": {"path": tmp_path}})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_by_name(value):
    with pytest.raises(UserError, match="finite") as refused:
        of(config=training(lr=value))
    assert refused.value.option == "config.training.lr"


def test_keys_that_json_would_turn_into_text_are_refused():
    with pytest.raises(TypeError, match="keys must be strings"):
        canonical_json({1: "a", "1": "b"})


@QUICK
@given(json_values)
def test_canonical_json_reads_back_equal_and_is_its_own_canonical_form(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    assert text.isascii()


@QUICK
@given(st.dictionaries(plain_keys, configs, max_size=4))
def test_flatten_loses_nothing(config):
    nested: dict = {}
    for dotted, value in flatten(config).items():
        *above, last = dotted.split(".")
        place = nested
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    assert nested == config


def test_flatten_names_the_items_of_lists_of_settings():
    tasks = {"tasks": [{"name": "gsm8k"}, {"name": "arc"}], "betas": [0.9, 0.999], "skip": [], "columns": {}}
    assert flatten(tasks) == {
        "tasks.0.name": "gsm8k", "tasks.1.name": "arc", "betas": [0.9, 0.999], "skip": [], "columns": {},
    }  # fmt: skip


# ---- code ----

SOURCES = {
    "stages/__init__.py": "",
    "stages/prune.py": "import json\nimport torch\nfrom stages import masks\nfrom .families import adapter\n",
    "stages/masks.py": "def later():\n    from engine.format import pack\n    return pack\n",
    "stages/families/__init__.py": "def adapter():\n    return __import__('stages.families.opt')\nM = 'stages.mpt:M'\n",
    "stages/mpt.py": "class Mpt: pass\n",
    "stages/families/opt.py": "from ..deep import x\n",
    "stages/deep.py": "x = 1\n",
    "stages/unrelated.py": "y = 1\n",
    "engine/__init__.py": "",
    "engine/format.py": "import engine.cycle\n",
    "engine/cycle.py": "import engine.format\n",
    "engine/kernels/spmm.cpp": "// kernel\n",
    "engine/notes.md": "text\n",
    "pipeline/schema.py": "z = 1\n",
}


def project(folder: Path, **added: str) -> Path:
    """A copy of SOURCES; `added` appends a line to a file."""
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + added.get(name, ""))
    return folder


def test_code_digest_is_the_same_wherever_the_project_lies(tmp_path):
    assert code_digest("stages.prune", project(tmp_path / "a")) == code_digest("stages.prune", project(tmp_path / "b"))


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("stages/prune.py", True),
        ("stages/masks.py", True),  # from stages import
        ("stages/families/__init__.py", True),  # relative import
        ("stages/families/opt.py", True),  # lazy, by name
        ("stages/mpt.py", True),  # lazy, by name and attribute
        ("stages/deep.py", True),  # two steps away
        ("engine/__init__.py", True),  # a package runs before its modules
        ("engine/format.py", True),  # inside a function
        ("engine/cycle.py", True),
        ("engine/kernels/spmm.cpp", True),
        ("engine/notes.md", False),
        ("stages/unrelated.py", False),
        ("pipeline/schema.py", False),
    ],
)
def test_a_new_line_of_code_counts_where_it_can_be_reached(tmp_path, file, counts):
    before = code_digest("stages.prune", project(tmp_path / "before"))
    after = code_digest("stages.prune", project(tmp_path / "after", **{file: "# new\n"}))
    assert (before != after) == counts


def test_code_that_needs_no_engine_does_not_see_its_kernels(tmp_path):
    before = code_digest("stages.deep", project(tmp_path / "before"))
    assert before == code_digest("stages.deep", project(tmp_path / "after", **{"engine/kernels/spmm.cpp": "// new\n"}))


@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ("evaluate", "engine/native/*"),
        ("benchmark", "engine/native/*"),
        ("benchmark", "engine/decoder.py"),
        ("benchmark", "stages/benchmark/*_backends.py"),
        ("prune", "stages/prune/pruners/*.py"),
        ("finetune", "stages/prune/allocations/*.py"),
        ("evaluate", "stages/evaluate/metrics/*.py"),
    ],
)
def test_the_code_that_computes_counts_for_its_stage(stage, pattern, tmp_path):
    """Of this project as it is: kernels, the decoder, backends."""
    for package in ("stages", "engine"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    seen = {code_digest(f"stages.{stage}.run", tmp_path)}
    files = sorted(tmp_path.glob(pattern))
    assert files
    for number, file in enumerate(files, start=1):
        file.write_bytes(file.read_bytes() + b"\n")
        code_digest.cache_clear()
        seen.add(code_digest(f"stages.{stage}.run", tmp_path))
        assert len(seen) == number + 1, file.name


def test_a_moved_file_is_other_code(tmp_path):
    one, other = project(tmp_path / "one"), project(tmp_path / "other")
    shutil.move(other / "stages/deep.py", other / "stages/deeper.py")
    (other / "stages/families/opt.py").write_text("from ..deeper import x\n")
    assert code_digest("stages.prune", one) != code_digest("stages.prune", other)


def test_a_missing_module_is_an_error(tmp_path):
    with pytest.raises(ModuleNotFoundError):
        code_digest("stages.nowhere", project(tmp_path))
