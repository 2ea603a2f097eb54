"""Generates docs/options.md: every option and every choice of a group. `python -m pipeline.command.options_page` writes
it; a test compares it with the sections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.command import conf_files
from pipeline.command.explain import format_value
from pipeline.command.option_table import Option, Section, sections

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "options.md"
HEAD = """# Options

`python -m pipeline.command.options_page` generates this page from the typed sections (`stages/*/spec.py`,
`pipeline/schema.py`) and the files of `conf/`. `squarehead explain finetune.lr` shows
one option and which files set it.

A command line gives an option as `finetune.lr=1e-4` and the choice of a group as `distill=kd`. A default is what holds
without either; options without one belong to choices that are not the default.
"""


def page() -> str:
    parts = [HEAD]
    for section in sections().values():
        parts.append("\n".join(_section(section)))
    groups = dict.fromkeys(file.group for file in conf_files.conf_files() if file.group)
    for group in [group for group in groups if group not in sections()]:
        parts.append("\n".join([f"## {group}", "", *_choices(group)]))
    return "\n".join(parts)


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.name or 'Top level'}"
    yield ""
    if section.name:
        yield _escaped(section.text)
        yield ""
    yield from _choices(section.name)
    if section.options:
        yield "| option | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from map(_row, section.options)
        yield ""


def _row(option: Option) -> str:
    text = option.text
    if option.belongs_to:
        text = f"{text} Only for {', '.join(f'`{choice}`' for choice in option.belongs_to)}."
    default = format_value(option.default)
    return f"| `{option.name}` | {_cell(option.type)} | {f'`{_cell(default)}`' if default else ''} | {_cell(text)} |"


def _choices(group: str) -> Iterator[str]:
    files = [file for file in conf_files.conf_files() if group and file.group == group]
    default = conf_files.default_choices().get(group)
    for file in files:
        yield f"- `{file.choice}`{' (default)' if file.option == default else ''}: {_escaped(file.comment)}"
    if files:
        yield ""


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*_", "\\*_")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
