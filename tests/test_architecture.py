"""The borders of the house: engine <- stages <- pipeline, that the pipeline stays light, and what tests share."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "stages", "pipeline")
"""Each may import those before it."""
HEAVY = {"torch", "mlflow", "transformers", "datasets", "lm_eval", "matplotlib", "numpy", "pandas"}


@cache
def imports(source: Path, top_level: bool) -> list[str]:
    """Modules a source imports; `top_level`: only those that importing it imports."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found: list[str] = []
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{source}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def sources(package: str) -> list[Path]:
    found = sorted((PROJECT / package).rglob("*.py"))
    assert found
    return found


def name_of(source: Path) -> str:
    return source.relative_to(PROJECT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


MODULES = {name_of(source): source for package in PACKAGES for source in sources(package)}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    later = PACKAGES[PACKAGES.index(package) + 1 :]
    for source in sources(package):
        wrong = [name for name in imports(source, top_level=False) if name.partition(".")[0] in later]
        assert not wrong, f"{source.relative_to(PROJECT)} imports {wrong}"


@cache
def loaded_with(module: str) -> frozenset[str]:
    """Modules of the project that importing one imports, itself among them; and heavy libraries."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name not in MODULES:
            continue
        found.add(name)
        for imported in imports(MODULES[name], top_level=True):
            if (library := imported.partition(".")[0]) in HEAVY:
                found.add(library)
            parts = imported.split(".")
            waiting += [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return frozenset(found)


@pytest.mark.parametrize("source", sources("pipeline"), ids=name_of)
def test_importing_the_pipeline_imports_nothing_heavy(source: Path) -> None:
    heavy = {name: loaded_with(name) & HEAVY for name in loaded_with(name_of(source))}
    assert not {name: found for name, found in heavy.items() if found}


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (PROJECT / "stages").glob("*/spec.py")))
def test_a_stage_is_one_room(room: str) -> None:
    from stages.index import STAGES

    assert STAGES[room].name == room
    assert (PROJECT / "stages" / room / "run.py").is_file()
    assert STAGES[room].module == f"stages.{room}.run"
    assert not loaded_with(f"stages.{room}.spec") & HEAVY


PLANNED_BY = (
    "stages.prune.pruners", "stages.prune.allocations", "stages.prune.reconstructions",
    "stages.finetune.losses", "stages.quantize.schemes",
    "stages.data.formats", "stages.model.families", "stages.evaluate.metrics", "stages.benchmark.backends",
)  # fmt: skip


@pytest.mark.parametrize("package", PLANNED_BY)
def test_a_member_of_a_kind_is_read_without_anything_heavy(package: str) -> None:
    members = [name for name in MODULES if name.startswith(f"{package}.")]
    assert members
    assert not {name: loaded_with(name) & HEAVY for name in members if loaded_with(name) & HEAVY}


def test_no_test_imports_from_the_file_of_another() -> None:
    """What tests share stands in conftest.py or in a module without tests."""
    for source in [source for source in sources("tests") if "extra_methods" not in source.parts]:
        wrong = [name for name in imports(source, top_level=False) if ".test_" in name]
        assert not wrong, f"{source.relative_to(PROJECT)} imports {wrong}"
