"""Things that come in kinds: every member is whole, unknown ones are refused, installed packages add their own."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from pipeline.recipes import RECIPES
from stages import kinds
from stages.benchmark.backends import BACKENDS
from stages.contracts import UserError
from stages.data.formats import FORMATS
from stages.data.generators import GENERATORS
from stages.data.prompts import PROMPTS
from stages.data.unfold import UNFOLDS
from stages.evaluate.metrics import METRICS
from stages.finetune.losses import LOSSES
from stages.model.families import FAMILIES
from stages.prune.allocations import ALLOCATIONS
from stages.prune.pruners import PRUNERS, Linears
from stages.prune.pruners.random import ranks
from stages.prune.reconstructions import RECONSTRUCTIONS
from stages.quantize.schemes import SCHEMES
from tests.composed import CONF, config
from tests.stage_options import pruning

PROJECT = CONF.parent
EVERY = {
    "pruners": (PRUNERS, 4), "allocations": (ALLOCATIONS, 5), "reconstructions": (RECONSTRUCTIONS, 4),
    "metrics": (METRICS, 8), "recipes": (RECIPES, 4),
    "losses": (LOSSES, 3), "schemes": (SCHEMES, 1), "formats": (FORMATS, 6), "families": (FAMILIES, 4),
    "backends": (BACKENDS, 15), "prompts": (PROMPTS, 5), "unfold": (UNFOLDS, 4), "generators": (GENERATORS, 2),
}  # fmt: skip


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
        ("prune.allocation.method=fair", "prune.allocation.method"),
        ("prune.reconstruction.method=magic", "prune.reconstruction.method"),
        ("evaluate.metrics=[wisdom]", "evaluate.metrics"),
        ("distill.losses=[grief]", "distill.losses"),
        ("quantize.scheme=w1a1", "quantize.scheme"),
        ("data.format=runes", "data.format"),
        ("model.family=abacus", "model.family"),
        ("benchmark.backends=[abacus]", "benchmark.backends"),
    ],
)
def test_an_unknown_member_is_refused_with_those_there_are(override: str, option: str) -> None:
    with pytest.raises(UserError, match="there are: ") as refused:
        config(override)
    assert refused.value.option == option


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UserError, match="there are: dense, foundation, one_shot, task_pruning"):
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


# ---- an installed package ----

EXTRA = {
    "pruners": {"largest": "largest:PRUNER"},
    "reconstructions": {"still": "still:RECONSTRUCTION"},
    "allocations": {"evenly": "evenly:ALLOCATION"},
    "metrics": {"zeros": "zeros:METRIC"},
    "losses": {"reverse_kl": "reverse_kl:LOSS", "width_ratio": "width_ratio:LOSS"},
    "schemes": {"grid4": "grid4:SCHEME"},
    "formats": {"shouted": "shouted:FORMAT"},
    "families": {"small": "small:FAMILY"},
    "backends": {"eager": "eager:BACKEND"},
    "recipes": {"measure_twice": "measure_twice:RECIPE"},
    "stages": {"count_files": "count_files.spec:STAGE"},
}
"""Group of entry points -> name -> where it is, in a package with a file for each (`tests/extra_methods`)."""
BAD = {
    "pruners": {"broken": "largest:MISSING", "wanda": "largest:PRUNER", "hollow": "evenly:ALLOCATION"},
    "backends": {"torch_fp32": "eager:BACKEND"},
}
CHOICES = {
    "prune/largest": "method: largest\npattern: unstructured\nallocation: {method: evenly}\nprecision: fp32\n"
    "micro_batch_size: 4\nskip: []",
    "reconstruction/still": "# @package prune.reconstruction\nmethod: still",
    "distill/own": "ce: 0\nkd: 0\nsquarehead: 0\ntemperature: 1\neps: 0\nnormalize: layer\nskip_first: 0\n"
    "losses: [reverse_kl, {name: width_ratio, weight: 0.5}]",
    "quantize/grid4": "scheme: grid4\nsmooth: 0\nskip: []\nskip_sensitive: 0\ndense: false",
    "recipe/measure_twice": "# @package _global_\nrecipe: measure_twice",
}


def install(site: Path, version: str, entries: dict[str, dict[str, str]]) -> Path:
    """A folder as pip installs into: a package, and the entry points of its distribution."""
    shutil.rmtree(site, ignore_errors=True)
    about = site / f"extra_methods-{version}.dist-info"
    about.mkdir(parents=True)
    shutil.copytree(PROJECT / "tests" / "extra_methods", site / "extra_methods")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra-methods\nVersion: {version}\n")
    groups = (
        [f"[squarehead.{group}]", *(f"{name} = extra_methods.{value}" for name, value in members.items())]
        for group, members in entries.items()
    )
    (about / "entry_points.txt").write_text("\n".join(line for group in groups for line in group))
    return site


def pipeline(site: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pipeline", f"runs={folder / 'runs'}", f"cache.folder={folder / 'cache'}",
        f"hydra.searchpath=[file://{folder}/conf]", *options,
    ]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{PROJECT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=folder)


def test_what_another_distribution_brings_is_found_anywhere_in_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options = config(
        "prune.method=wanda", "evaluate.metrics=[bits_per_byte]", "benchmark.backends=[torch_fp32,torch_csr]"
    )
    assert kinds.providers(options) == {}
    elsewhere = SimpleNamespace(dist=SimpleNamespace(name="extra-methods", version="1.2"))
    names = ("wanda", "bits_per_byte", "torch_csr", "w8a8")
    monkeypatch.setattr(kinds, "_installed", lambda group: dict.fromkeys(names, elsewhere))
    assert kinds.providers(options) == {
        "pruner wanda": "extra-methods==1.2", "metric bits_per_byte": "extra-methods==1.2",
        "backend torch_csr": "extra-methods==1.2", "quantization scheme w8a8": "extra-methods==1.2",
    }  # fmt: skip


def test_an_installed_package_adds_one_of_each_kind(tmp_path: Path) -> None:
    from tests import tiny

    model, data = tiny.save_model(tmp_path / "model"), tiny.save_texts(tmp_path / "data")
    for name, text in CHOICES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text + "\n")
    line = [
        *tiny.options(model, tmp_path / "runs", tmp_path / "cache")[3:],
        *(name.replace("/", "=") for name in CHOICES), "model.family=small", f"model.path={model}",
        f"data.path={data}", "data=text", "data.format=shouted", "+data.mark=?", "dense.skip=true", "schedule=one_shot",
        "benchmark.backends=[torch_fp32,eager]", "tracking.enabled=false", "evaluate.metrics=[zeros]", "sparsity=0.25",
    ]  # fmt: skip
    done = pipeline(install(tmp_path / "site", "1.2", EXTRA), tmp_path, *line)
    assert done.returncode == 0, done.stdout + done.stderr

    store = tmp_path / "runs" / "store"

    def result(stage: str, file: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((store / stage).glob(f"*/{file}"))]

    zeros = [found["zeros"] for found in result("evaluate", "metrics.json")]
    by_precision = {
        precision: {round(found["value"], 2) for found in zeros if found["protocol"]["precision"] == precision}
        for precision in ("fp32", "grid4")
    }
    assert by_precision["fp32"] == {0.0, 0.25}
    assert min(by_precision["grid4"]) > 0.25, "the grid rounds more weights to zero"
    assert {row["backend"] for found in result("benchmark", "benchmark.json") for row in found["rows"]} == {
        "torch_fp32", "eager",
    }  # fmt: skip
    [trained] = result("finetune", "meta.json")
    [curve] = (store / "finetune").glob("*/metrics.jsonl")
    assert {"loss_reverse_kl", "loss_width_ratio"} <= json.loads(curve.read_text().partition("\n")[0])["metrics"].keys()
    assert trained["config"]["providers"] == {
        "loss reverse_kl": "extra-methods==1.2", "loss width_ratio": "extra-methods==1.2",
    }  # fmt: skip
    [counted] = result("count_files", "meta.json")
    assert counted["config"]["providers"] == {"stage count_files": "extra-methods==1.2"}
    again = pipeline(tmp_path / "site", tmp_path, *line, "dry_run=true")
    assert "0 to run, 10 stored" in again.stdout, again.stdout + again.stderr
    newer = pipeline(install(tmp_path / "site", "1.3", EXTRA), tmp_path, *line, "dry_run=true")
    assert "10 to run, 0 stored" in newer.stdout, newer.stdout + newer.stderr
    assert "extra-methods==1.2→extra-methods==1.3" in "".join(newer.stdout.split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.method=broken", "the pruner 'broken' cannot be loaded"),
        ("prune.method=wanda", "gives the pruner 'wanda' a second time"),
        ("prune.method=hollow", "the pruner 'hollow' is not whole: it has no count, needs, prune"),
        ("benchmark.backends=[torch_fp32]", "gives the backend 'torch_fp32' a second time"),
    ],
)
def test_a_package_that_registers_badly_is_refused_at_plan_time(tmp_path: Path, override: str, message: str) -> None:
    done = pipeline(install(tmp_path / "site", "1.2", BAD), tmp_path, override, "dry_run=true")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
