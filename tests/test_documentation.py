"""The README and the pages under docs/: links lead to files, commands exist and their options are valid."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipeline.schema import parse
from tests.composed import composed

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
RUNS = re.compile(r"^(?:python -m pipeline|squarehead) (?!explain)(.+)$")
COMMAND = ("python ", "make ", "squarehead")
NOT_OURS = ("hydra/", "hydra.")


def _commands(page: Path) -> list[str]:
    """The commands in blocks of code, without their comments."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.startswith(COMMAND)]


COMMANDS = [(page.name, command) for page in PAGES for command in _commands(page)]
JOBS = sorted({(name, found[1]) for name, command in COMMANDS if (found := RUNS.match(command))})


def test_there_are_pages_and_commands() -> None:
    assert len(PAGES) > 10
    assert len(JOBS) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize(("page", "words"), JOBS)
def test_the_options_of_a_documented_job_are_valid(page: str, words: str) -> None:
    given = [word for word in shlex.split(words) if not word.startswith(("-", *NOT_OURS))]
    overrides = []
    for override in OverridesParser.create().parse_overrides(given):
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                continue
            overrides.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
        else:
            overrides.append(str(override.input_line))
    parse(OmegaConf.to_container(composed(*overrides), resolve=True))  # type: ignore[arg-type]


def test_modules_and_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for page, command in COMMANDS:
        words = shlex.split(command)
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), f"{page}: {command}"
        if words[:1] == ["make"]:
            named = [word for word in words[1:] if "=" not in word]
            assert set(named) <= targets, f"{page}: {command}"
