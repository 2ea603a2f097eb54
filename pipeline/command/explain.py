"""`squarehead explain NAME`: describes an option, a section or a group, with its default and the files that set it."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.command import conf_files
from pipeline.command.option_table import NO_DEFAULT, Option, Section, options, sections
from stages.contracts import UserError

WIDTH = 100
USAGE = "squarehead explain NAME: an option (finetune.lr), a section (finetune), or a choice of a group (distill=kd)"


def explain_name(arguments: Sequence[str]) -> str:
    """Returns the description of a name. Raises UserError for an unknown name."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        raise UserError(f"expected one name; {USAGE}")
    name = arguments[0]
    if option := options().get(name):
        return "\n".join(_option(option))
    if name in sections() and name:
        return "\n".join(_section(sections()[name]))
    for file in conf_files.conf_files():
        if name == file.choice:
            return "\n".join([file.comment, "", *_values(file.values.items())])
    if any(file.group == name for file in conf_files.conf_files()):
        return "\n".join([f"{name}: a group; choose one with {name}=NAME", *_choices(name)])
    raise UserError(f"no option, section or group {name!r}{_near(name)}")


def format_value(value: Any) -> str:
    """Formats a value as a command line would give it."""
    if value is NO_DEFAULT:
        return ""
    plain = isinstance(value, str) and value and value == value.strip() and "\n" not in value
    return value if plain else json.dumps(value)


def _option(option: Option) -> Iterator[str]:
    yield f"{option.name}: {option.type}"
    yield from _wrapped(option.text)
    if option.belongs_to:
        yield f"only for {', '.join(option.belongs_to)}"
    if option.default is not NO_DEFAULT:
        yield f"default: {format_value(option.default)}"
    yield from _choices(option.name)
    setting = [
        (file.choice, file.values[option.name]) for file in conf_files.conf_files() if option.name in file.values
    ]
    yield from ["", "set by:"] if setting else []
    yield from _values(setting)


def _section(section: Section) -> Iterator[str]:
    yield f"{section.name}: a section of options"
    yield from _wrapped(section.text)
    yield from _choices(section.name)
    yield ""
    yield from _values((option.name, option.default) for option in section.options)
    below = [name for name in sections() if name.startswith(f"{section.name}.")]
    yield from ["", f"sections in it: {', '.join(below)}"] if below else []


def _choices(group: str) -> Iterator[str]:
    files = [file for file in conf_files.conf_files() if file.group == group]
    if files:
        yield ""
        yield "choices:"
    default = conf_files.default_choices().get(group)
    for file in files:
        mark = " (default)" if file.option == default else ""
        yield from _wrapped(f"{file.choice}{mark}: {file.comment}", "  ")


def _values(pairs: Any) -> Iterator[str]:
    given = [(name, format_value(value)) for name, value in pairs]
    width = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        yield f"  {name:{width}}  {value}".rstrip()


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  " if indent else "", break_on_hyphens=False
    )


def _near(name: str) -> str:
    known = [*options(), *filter(None, sections())]
    above, _, last = name.rpartition(".")
    words = last.replace("_", " ")
    near = [other for other in known if other.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    near = near or [
        option.name for option in options().values() if option.name.startswith(above) and words in option.text.lower()
    ]
    return f"; did you mean {' or '.join(near[:4])}?" if near else "; squarehead --help lists groups and options"
