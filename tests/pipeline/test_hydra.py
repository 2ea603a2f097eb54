"""What a Hydra user expects: sweeps of all kinds, own folders, other sweepers, completion, and Hydra's own hints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from setuptools import find_namespace_packages

from pipeline import __main__
from pipeline.record.sweep import Sweep, sweeps
from pipeline.sweeps import state as sweep_state
from pipeline.sweeps.plan import expand_overrides
from stages.contracts import UserError
from tests import cheap
from tests.composed import CONF, composed
from tests.running import PROJECT, Place, call

SMALL = ["quantize=none", "benchmark=none", "tracking=none"]
FAKE_SWEEPER = '''
"""A sweeper that thinks of its next job when it has seen the last one, as those that search do."""
from dataclasses import dataclass
from typing import Any
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

@dataclass
class SearchConf:
    _target_: str = "hydra_plugins.fake_search.SearchSweeper"

ConfigStore.instance().store(group="hydra/sweeper", name="fake_search", node=SearchConf)

class SearchSweeper(Sweeper):
    def setup(self, *, hydra_context, task_function, config) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
    def sweep(self, arguments) -> Any:
        found = []
        for num, sparsity in enumerate((0.5, 0.6)):
            (job,) = self.launcher.launch([[*arguments, f"sparsity={sparsity}"]], initial_job_idx=num)
            found.append(float(job.return_value))
        print("found", found)
'''


def expanded(*overrides: str) -> list[list[str]]:
    master = composed(with_hydra=True)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return expand_overrides(overrides, master, GlobalHydra.instance().config_loader())


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that take none."""
    for name, module in cheap.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def typed(place: Place, *words: str) -> tuple[int, str]:
    """From another folder; exit code and everything that was said."""
    found = call(list(words), place.folder)
    assert "Traceback" not in found.stdout + found.stderr, found.stderr
    return found.returncode, found.stdout + found.stderr


def swept(place: Place, *overrides: str) -> tuple[int, str, Sweep]:
    code, said = typed(place, *place.words("-m", *SMALL, *overrides))
    return code, said, sweeps(place.runs)[0]


def started(place: Place, *overrides: str, more: Path | None = None) -> tuple[int, str, Sweep]:
    """The same in a process of its own, with stages that take no time."""
    path = os.pathsep.join(map(str, [PROJECT, *([more] if more else [])]))
    found = subprocess.run(
        [sys.executable, "-m", "tests.cheap", *place.words("-m", *SMALL, *overrides)],
        cwd=place.folder, env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in found.stdout + found.stderr, found.stderr
    return found.returncode, found.stdout + found.stderr, sweeps(place.runs)[0]


@pytest.mark.parametrize(
    ("override", "jobs"),
    [
        ("seed=0,1,2", ["seed=0", "seed=1", "seed=2"]),
        ("seed=range(0,6,2)", ["seed=0", "seed=2", "seed=4"]),
        ("sparsity=choice(0.5,0.7)", ["sparsity=0.5", "sparsity=0.7"]),
        ("distill=glob(*)", ["distill=ce", "distill=kd", "distill=squarehead", "distill=squarehead_whisper"]),
        ("distill=glob(*,exclude=*head*)", ["distill=ce", "distill=kd"]),
        ("schedule.levels=[0.3],[0.3,0.4]", ["schedule.levels=[0.3]", "schedule.levels=[0.3,0.4]"]),
        ("prune.skip=['(a|b)','c']", ["prune.skip=['(a|b)','c']"]),
    ],
)
def test_sweeps_are_written_as_hydra_has_them(override: str, jobs: list[str]) -> None:
    assert [job[0] for job in expanded(override)] == jobs


def test_every_combination_is_a_job_and_the_last_value_of_an_option_holds() -> None:
    assert expanded("seed=7", "seed=0,1", "sparsity=0.5,0.6")[1] == ["seed=0", "sparsity=0.6"]


@pytest.mark.parametrize(
    ("override", "says"), [("finetune.lr=interval(0,1)", "hydra/sweeper=optuna"), ("distill=glob(x*)", "no option")]
)
def test_what_no_job_can_be_made_of_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        expanded(override)
    assert caught.value.option == override.partition("=")[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sparsity=0.5,0.7"], ["add --multirun"]),
        (["distill=nonsense"], ["Available options in 'distill': ce, kd, squarehead"]),
        (["distill.kdd=1"], ["Could not override 'distill.kdd'", "did you mean distill.kd"]),
        (["spasity=0.5"], ["did you mean sparsity?"]),
        (["distil=kd"], ["did you mean distill or "]),
        (["lr=1"], ["finetune.lr"]),
        (["schedule.levels=[0.3]"], ["schedule.levels belongs to schedule=ladder"]),
        (["experiment=mpt_7b"], ["did you mean experiment=paper/mpt_7b?"]),
        (["hydra/launcher=submitit_slurm"], ["pip install 'squarehead[submitit]'"]),
        (["hydra/sweeper=magic"], ["Available options in 'hydra/sweeper': basic, squarehead", "--help"]),
        (["hydra/sweeper=optuna"], ["pip install 'squarehead[optuna]'"]),
        (["~reference"], ["reference: it cannot be left out"]),
        (["+sparsity=0.5"], ["++sparsity=0.5"]),
        (["seed"], ["quote"]),
        (["-m", "seed=0,1", "distill.kdd=1"], ["did you mean distill.kd"]),
    ],
)
def test_hydra_s_hints_reach_the_user_in_one_line(
    words: list[str], says: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", *words, f"runs={tmp_path}/runs"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    said = str(ended.value.code)
    assert said.startswith("squarehead: ")
    assert len(said.splitlines()) == 1
    assert not [part for part in says if part not in said], said


def test_own_experiments_outside_the_tree_are_composed_and_swept(place: Place) -> None:
    own = place.folder / "own"
    (own / "experiment" / "mine").mkdir(parents=True)
    for name, sparsity in (("one", 0.3), ("two", 0.4)):
        text = f"# @package _global_\n# My {name}.\ndefaults: [quickstart]\nsparsity: {sparsity}\n"
        (own / "experiment" / "mine" / f"{name}.yaml").write_text(text)
    one = [*place.options, "experiment=mine/one", "dry_run=true"]
    both = [*place.options, "-m", "experiment=mine/one,mine/two", "dry_run=true"]
    for found in (["--config-dir", "own"], [f"hydra.searchpath=[file://{own}]"]):
        code, said = typed(place, *found, *one)
        assert (code, "prune_30" in said) == (0, True), said
        code, said = typed(place, *found, *both)
        assert (code, "prune_40" in said, "2 jobs" in said) == (0, True, True), said
    code, said = typed(place, f"hydra.searchpath=[file://{own}/]", *place.options, "-m", "experiment=glob(mine/*)",
                       "dry_run=true")  # fmt: skip
    assert "no option" in said, "Hydra's globs do not look into folders of a group"
    assert "My one." in typed(place, "--config-dir", "own", "--help")[1]


def test_hydra_s_own_flags(place: Place) -> None:
    assert typed(place, "--cfg", "job", "-p", "data")[1].startswith("# @package data\npath: ")
    assert f"file://{CONF}" in typed(place, "--info", "searchpath")[1]
    assert typed(place, "--version")[1].startswith("squarehead ")
    assert "jobs" in typed(place, *place.options, "seed=0,1", "-m", "sparsity=0.5", "dry_run=true")[1]
    said = typed(place, "--help")[1]
    assert "kd                       Standard knowledge distillation" in said


def test_the_console_command_completes_and_never_answers_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(line: str) -> str:
        command = [sys.executable, "-c", "from pipeline.__main__ import main; main()", "-sc", "query=bash"]
        found = subprocess.run(
            command, cwd=PROJECT, env=os.environ | {"COMP_LINE": line}, capture_output=True, text=True, timeout=60
        )
        assert not found.stderr
        return found.stdout.strip()

    assert complete("squarehead distill=k") == "distill=kd"
    assert complete("squarehead distil") == "distill. distill="
    assert complete("python -m pipeline dist") == ""


def test_every_option_of_a_group_says_what_it_is() -> None:
    from pipeline.command.conf_files import first_comment

    options = [path for path in CONF.glob("*/**/*.yaml") if path.parent.parent.name != "hydra"]
    assert len(options) > 80
    assert not [path for path in options if not first_comment(path.read_text())]


@pytest.mark.usefixtures("no_time")
def test_with_chdir_folders_are_where_the_command_was_typed(place: Place) -> None:
    words = [word for word in place.words(*SMALL) if not word.startswith("runs=")]
    code, said = typed(place, *words, "runs=mine", "hydra.job.chdir=true")
    assert code == 0, said
    assert list((place.folder / "mine" / "store").glob("finetune/*"))
    assert f"{place.folder}/mine (new folder)" in said
    assert len(list(place.folder.rglob("store"))) == 2, "of runs and of the cache"


@pytest.mark.usefixtures("no_time")
def test_a_folder_of_a_sweep_or_a_job_can_be_chosen(place: Place) -> None:
    _, _, _ = swept(place, "seed=0,1", "until=model", f"hydra.sweep.dir={place.runs}/sweeps/chosen")
    assert (place.runs / "sweeps" / "chosen" / "multirun.yaml").exists()
    assert (place.runs / "sweeps" / "chosen" / "1" / "summary.json").exists()
    assert typed(place, *place.words(*SMALL, "until=model", "hydra.run.dir=here"))[0] == 0
    assert (place.folder / "here" / "summary.json").exists()


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_hydra_s_own_sweeper_works_and_its_jobs_are_recorded_as_they_come(place: Place, launcher: str) -> None:
    # such a sweep is done when its process is; workers of joblib have the real stages, of which the first need no torch
    until = "evaluate" if launcher == "basic" else "data"
    line = ["hydra/sweeper=basic", f"hydra/launcher={launcher}", "distill=ce,squarehead", f"until={until}"]
    code, said, sweep = started(place, *line)
    assert code == 0, said
    assert sorted((job.num, job.swept_parameters["distill"]) for job in sweep.jobs) == [(0, "ce"), (1, "squarehead")]
    state = sweep_state.read(sweep)
    assert (state.status, state.counts) == ("done", {"done": 2})
    assert not (sweep.folder / "shared.json").exists()
    code, said, sweep = started(place, *line, "data.path=away")
    assert (code, "data.path" in said) == (1, True)


def test_a_sweeper_that_searches_is_told_the_quality_of_each_job(place: Place, tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    (plugins / "hydra_plugins").mkdir(parents=True)
    (plugins / "hydra_plugins" / "fake_search.py").write_text(FAKE_SWEEPER)
    code, said, sweep = started(place, "hydra/sweeper=fake_search", more=plugins)
    assert code == 0, said
    assert "found [12.5, 12.5]" in said
    assert [job.swept_parameters["sparsity"] for job in sweep.jobs] == ["0.5", "0.6"]
    code, said, _ = started(place, "hydra/sweeper=fake_search", "dry_run=true", more=plugins)
    assert (code, "dry_run: the jobs of this sweeper are not known beforehand" in said) == (1, True)


@pytest.mark.usefixtures("no_time")
def test_jobs_are_launched_in_batches_if_asked(place: Place) -> None:
    code, said, sweep = swept(place, "seed=0,1,2", "until=model", "hydra.sweeper.max_batch_size=2")
    assert (code, len(sweep.jobs)) == (0, 3), said
    assert json.loads((sweep.folder / "2" / "summary.json").read_text())


def test_the_sweeper_is_part_of_the_package_and_only_public_doors_are_used() -> None:
    assert "hydra_plugins" in find_namespace_packages(str(PROJECT), include=["hydra_plugins"])
    assert not (PROJECT / "hydra_plugins" / "__init__.py").exists(), "other packages share the namespace"
    for path in [*PROJECT.glob("pipeline/**/*.py"), *PROJECT.glob("hydra_plugins/*.py")]:
        text = path.read_text()
        assert "hydra._internal" not in text, path
        assert "SafeLoader" not in text, path
        assert "(BaseException)" not in text, path
    assert len((PROJECT / "pipeline" / "__main__.py").read_text().splitlines()) <= 80
