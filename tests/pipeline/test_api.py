"""The Python interface: the example of its page runs, errors are exceptions, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from pipeline import api
from pipeline.record import folders
from tests.running import PROJECT, Place

SMALL = ["quantize=none", "benchmark=none", "tracking=none", "distill=ce"]
KEPT = ("SQUAREHEAD_CACHE", "OMP_NUM_THREADS")
EXAMPLE = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "python.md").read_text(), re.DOTALL)


def test_the_example_of_the_page_runs_in_any_folder_and_leaves_nothing_behind(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = EXAMPLE
    monkeypatch.chdir(place.folder)
    options = [*place.options, *SMALL, "runs=here"]
    handlers = [signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    variables = {name: os.environ.get(name) for name in KEPT}
    ran: dict[str, object] = {}
    exec(re.sub(r"^OPTIONS = .*$", f"OPTIONS = {options!r}", text, flags=re.MULTILINE), ran)
    assert handlers == [signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    assert variables == {name: os.environ.get(name) for name in KEPT}
    result, table = ran["result"], ran["table"]
    assert isinstance(result, api.Result)
    assert result.models() == {"model": "finetune_50"}
    assert len(ran["masks"]) == 14  # type: ignore[arg-type]
    perplexity = table[(table["node"] == "evaluate") & (table["metric"] == "perplexity")]  # type: ignore[index]
    assert perplexity["value"].item() == result.headline.quality.value  # type: ignore[union-attr]
    assert perplexity["distill"].item() == "ce"
    # the same job again, by the way of the command line's records
    assert {item.status.value for item in api.plan(*options).plan.values()} == {"hit"}
    assert [it.job.name for it in api.results("here")] == [result.job.name]
    (record,) = folders.read(result.job.folder).jobs
    assert record.overrides == options
    # a checkpoint that changed on disk is not used
    weights = result.checkpoint("prune_50").path / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(api.UserError, match="damaged"):
        api.load(weights.parent)
    with pytest.raises(api.UserError, match="is not a model; those of this job: model, dense, prune_50, finetune_50"):
        result.checkpoint("evaluate")
    with pytest.raises(api.UserError, match="no node 'prune_60'"):
        result.artifact("prune_60")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsity=1.5", "sparsity"),
        ("sparsity=0.5,0.6", "sparsity=0.5,0.6"),
        ("spasity=0.5", "did you mean sparsity?"),
        ("distill=magic", "distill/magic"),
        ("runs=''", "runs"),
        ("hydra.job.chdir=true", "hydra.job.chdir"),
        ("model.path=http://name:s3cret@host/model", "model.path"),
        ("until=nothing", "until"),
    ],
)
def test_a_wrong_option_raises_one_line(place: Place, override: str, says: str) -> None:
    with pytest.raises(api.UserError) as error:
        api.plan(*place.options, override)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_node_that_fails_raises_and_what_was_made_can_be_read(place: Place) -> None:
    job = api.plan(*place.options, *SMALL, "calibrate.samples=100000", "until=prune_50")
    with pytest.raises(api.JobFailedError, match=r"calibrate\.samples"):
        api.run(job, quiet=True)
    found = api.read(job.folder)
    assert found.outcomes["model"].status.value == "done"
    assert found.status.value == "failed"
    with pytest.raises(api.UserError, match="not stored"):
        found.artifact("calibrate")
    assert "calibrate.samples" in str(api.problems(api.plan(*place.options, "calibrate.samples=100000"))["calibrate"])


def test_a_folder_that_cannot_be_used_is_named_by_its_option(place: Place, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(api.UserError, match=r"^runs: "):
        api.run(api.plan(*place.options, *SMALL, f"runs={tmp_path / 'taken'}"), quiet=True)


def test_a_dry_run_and_a_folder_without_a_job_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(api.UserError, match="dry_run"):
        api.run(api.plan(*place.options, "dry_run=true"))
    with pytest.raises(api.UserError, match="no job that has ended"):
        api.read(tmp_path)
