"""The borders of the house: who may import whom, and that the pipeline stays light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "mlflow", "transformers", "datasets", "lm_eval", "matplotlib", "numpy"}


def imports(source: Path, top_level: bool) -> Iterator[str]:
    """Modules a source imports; `top_level`: only those that importing it imports."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package: str) -> list[Path]:
    found = sorted((PROJECT / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("source", sources("pipeline"), ids=lambda path: path.stem)
def test_the_pipeline_knows_of_stages_only_their_index_and_what_is_torch_free(source: Path) -> None:
    allowed = (
        *("stages.registry.", "stages.schedule.", "stages.sources.identity.", "stages.early"),
        *("stages.evaluation.compare.", "stages.evaluation.bootstrap.", "stages.benchmarking.names."),
    )
    for name in imports(source, top_level=False):
        assert name.partition(".")[0] not in HEAVY - {"mlflow", "matplotlib"}, f"{source}: {name}"
        assert not name.startswith("stages") or name.startswith(allowed), f"{source}: {name}"


@pytest.mark.parametrize("source", sources("pipeline"), ids=lambda path: path.stem)
def test_no_module_of_the_pipeline_imports_mlflow_or_matplotlib_when_it_is_imported(source: Path) -> None:
    assert not [name for name in imports(source, top_level=True) if name.partition(".")[0] in HEAVY]


@pytest.mark.parametrize("source", sources("stages"), ids=lambda path: path.stem)
def test_stages_know_of_the_pipeline_only_its_contracts(source: Path) -> None:
    allowed = ("pipeline.contracts.", "pipeline.schema.", "pipeline.cpu")
    for name in imports(source, top_level=False):
        assert not name.startswith("pipeline") or name.startswith(allowed), f"{source}: {name}"


def test_the_engine_knows_neither_pipeline_nor_stages() -> None:
    for source in sources("engine"):
        assert not [name for name in imports(source, top_level=False) if name.startswith(("pipeline", "stages"))]
