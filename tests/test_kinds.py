"""Things that come in kinds: every member is whole, unknown ones are refused, installed packages add their own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.recipes import RECIPES
from stages import kinds
from stages.contracts import UserError
from stages.evaluate.metrics import METRICS
from stages.prune.allocations import ALLOCATIONS
from stages.prune.pruners import PRUNERS, Linears
from stages.prune.pruners.random import ranks
from tests.composed import CONF, config
from tests.stage_options import pruning

PROJECT = CONF.parent
EVERY = {"pruners": (PRUNERS, 4), "allocations": (ALLOCATIONS, 2), "metrics": (METRICS, 1), "recipes": (RECIPES, 3)}


@pytest.mark.parametrize("kind", EVERY)
def test_every_file_registers_its_member(kind: str) -> None:
    registered, least = EVERY[kind]
    names = registered.names()
    assert len(names) >= least
    for name in names:
        assert (
            registered.get(name)
            is importlib.import_module(f"{registered.package}.{name}").__dict__[registered.constant]
        )
        assert registered.provider(name) == ""


@pytest.mark.parametrize(("kind", "option"), [("prune", "method"), ("recipe", "recipe")])
def test_every_member_has_a_conf_file_and_every_conf_file_a_member(kind: str, option: str) -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / kind).glob("*.yaml")}
    assert {chosen[option] for chosen in files.values()} == set((PRUNERS if kind == "prune" else RECIPES).names())
    assert all(name == chosen[option] for name, chosen in files.items())


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("prune.method=oracle", "prune.method"),
        ("prune.allocation=fair", "prune.allocation"),
        ("evaluate.metrics=[wisdom]", "evaluate.metrics"),
    ],
)
def test_an_unknown_member_is_refused_with_those_there_are(override: str, option: str) -> None:
    with pytest.raises(UserError, match="there are: ") as refused:
        config(override)
    assert refused.value.option == option


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="there are: dense, one_shot, task_pruning"):
        RECIPES.get(config("recipe=dense").model_copy(update={"recipe": "omelette"}).recipe)


def test_a_file_that_registers_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    half = kinds.Kinds("pruner", "stages.prune.pruners", "NOTHING", "prune.method")
    with pytest.raises(UserError, match="defines no NOTHING"):
        half.get("wanda")


@pytest.mark.parametrize("name", PRUNERS.names())
def test_a_pruner_prunes_what_it_promises(name: str) -> None:
    options = yaml.safe_load((CONF / "prune" / f"{name}.yaml").read_text()) | {"precision": "fp32"}
    options |= {"seed": 3} if "seed" in options else {}
    chosen = pruning(**dict.fromkeys(("block_size", "damping", "max_damping")) | options)
    pruner = PRUNERS.get(name)
    W_OI = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    H_II = torch.eye(40) if pruner.needs != "nothing" else None
    for goal in (0.3, 0.55):
        found = pruner.prune(Linears(["a"], [W_OI.clone()], [None], [goal], H_II), chosen)
        assert int((~found.keeps[0]).sum()) == pruner.count(24, 40, goal, chosen)
        assert torch.equal(found.weights[0] == 0, ~found.keeps[0])


# ---- random pruning (METHODS: A1) ----


def drawn(name: str, goal: float, seed: int = 0, kept: torch.Tensor | None = None) -> torch.Tensor:
    chosen = pruning(method="random", seed=seed, block_size=None, damping=None, max_damping=None)
    W_OI = torch.ones(16, 24)
    return PRUNERS.get("random").prune(Linears([name], [W_OI], [kept], [goal], None), chosen).keeps[0]


def test_a_draw_depends_on_the_seed_and_the_name_alone() -> None:
    assert torch.equal(drawn("a", 0.5), drawn("a", 0.5))
    assert not torch.equal(drawn("a", 0.5), drawn("b", 0.5))
    assert not torch.equal(drawn("a", 0.5), drawn("a", 0.5, seed=1))
    chosen = pruning(method="random", seed=0, block_size=None, damping=None, max_damping=None)
    both = PRUNERS.get("random").prune(
        Linears(["b", "a"], [torch.ones(16, 24)] * 2, [None, None], [0.5, 0.5], None), chosen
    )
    assert torch.equal(both.keeps[1], drawn("a", 0.5))


def test_rungs_of_a_random_ladder_are_nested_and_the_same_as_one_step() -> None:
    first = drawn("a", 0.3)
    second = drawn("a", 0.7, kept=first)
    assert not (second & ~first).any()
    assert torch.equal(second, drawn("a", 0.7))


def test_a_draw_favours_no_place() -> None:
    rank_OI = torch.stack([ranks("a", (8, 8), seed) for seed in range(400)]).mean(0)
    assert rank_OI.shape == (8, 8)
    assert (rank_OI - 31.5).abs().max() < 5 * 18.5 / 20, "a mean of 400 uniform draws over 0 ... 63"
    assert sorted(ranks("a", (3, 4), 0).flatten().tolist()) == list(range(12))


# ---- Erdős-Rényi allocation ----


def test_er_meets_the_level_with_one_linear_forced_dense() -> None:
    shapes = {"wide": (64, 64), "middle": (32, 32), "thin": (2, 3)}
    found = ALLOCATIONS.get("er")(shapes, 0.5)
    assert found["thin"] == 0.0, "its density would be over 1"
    # by hand: 2560 + ... kept of 5126 in all, 6 in `thin`; density ∝ (out + in) / (out · in) in the other two
    scale = (0.5 * 5126 - 6) / (128 + 64)
    assert found["wide"] == pytest.approx(1 - scale * 128 / 4096)
    assert found["middle"] == pytest.approx(1 - scale * 64 / 1024)
    zeros = sum(found[name] * rows * columns for name, (rows, columns) in shapes.items())
    assert zeros == pytest.approx(0.5 * 5126)
    assert ALLOCATIONS.get("er")(dict(reversed(shapes.items())), 0.5) == found


def test_er_is_for_unstructured_pruning() -> None:
    with pytest.raises(UserError, match="allocation=er"):
        config("prune.allocation=er", "prune.pattern=2:4", "sparsity=0.5")


# ---- an installed package ----

PLUGIN = """
from stages.evaluate.metrics import Measurement, MetricOptions
from stages.prune.pruners import Pruned
from stages.prune.spec import Prune

class Largest:
    needs = "nothing"
    options = Prune
    def count(self, rows, columns, sparsity, config):
        return round(rows * columns * sparsity)
    def prune(self, linears, config):
        from stages.prune.selection import without_lowest
        keeps = [without_lowest(-W.abs() + W.abs().max(), goal, kept, per_row=False)
                 for W, goal, kept in zip(linears.weights, linears.goals, linears.kept)]
        return Pruned([W.masked_fill(~keep, 0) for W, keep in zip(linears.weights, keeps)], keeps)

class Zeros:
    options = MetricOptions
    def check(self, options, judged):
        pass
    def measure(self, options, judged, log):
        weights = [p for n, p in judged.model.named_parameters() if n.endswith("proj.weight")]
        share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        return Measurement(share, None, True, {"kind": "share of zeros"})

LARGEST, ZEROS = Largest(), Zeros()
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder as pip installs into: a module, and the entry points of its distribution."""
    folder = tmp_path / "site"
    about = folder / "extra_methods-1.2.dist-info"
    about.mkdir(parents=True)
    (folder / "extra_methods.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-methods\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(
        "[squarehead.pruners]\nlargest = extra_methods:LARGEST\nbroken = extra_methods:MISSING\n"
        "wanda = extra_methods:LARGEST\n\n[squarehead.metrics]\nzeros = extra_methods:ZEROS\n"
    )
    return folder


def pipeline(plugin: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pipeline", f"runs={folder / 'runs'}", f"cache.folder={folder / 'cache'}", *options
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": f"{plugin}{os.pathsep}{PROJECT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=folder)


def test_an_installed_package_adds_a_pruner_and_a_metric(plugin: Path, tmp_path: Path) -> None:
    from tests import tiny

    model, data = tiny.save_model(tmp_path / "model"), tiny.save_texts(tmp_path / "data")
    (tmp_path / "conf" / "prune").mkdir(parents=True)
    (tmp_path / "conf" / "prune" / "largest.yaml").write_text(
        "method: largest\npattern: unstructured\nallocation: uniform\nprecision: fp32\nmicro_batch_size: 4\nskip: []\n"
    )
    done = pipeline(
        plugin, tmp_path, f"hydra.searchpath=[file://{tmp_path}/conf]", "prune=largest", "recipe=one_shot",
        f"model.path={model}", f"data.path={data}", "data.columns={text: text, id: id}", "dense.skip=true",
        "quantize=none", "benchmark=none", "tracking.enabled=false", "evaluate.metrics=[zeros]",
        "evaluate.perplexity.length=32", "evaluate.perplexity.windows=2", "calibrate.samples=4",
        "calibrate.length=32", "sparsity=0.25",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = (tmp_path / "runs" / "store" / "evaluate").glob("*/metrics.json")
    measured = [yaml.safe_load(path.read_text())["zeros"] for path in found]
    assert {round(metric["value"], 3) for metric in measured} == {0.0, 0.25}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("broken", "the pruner 'broken' cannot be loaded"),
        ("wanda", "gives the pruner 'wanda' a second time"),
    ],
)
def test_a_package_that_registers_badly_is_refused_at_plan_time(
    plugin: Path, tmp_path: Path, method: str, message: str
) -> None:
    done = pipeline(plugin, tmp_path, f"prune.method={method}", "dry_run=true")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
