"""Reads LibreOffice's help as parallel texts: its pages have the same names, and their paragraphs the same ids, in all
languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.contracts import UserError
from stages.data.rows import Raw, Row
from stages.sources import debian

PACKAGE = re.compile(r"libreoffice-help-[a-z-]+")
_LICENSE = "MPL-2.0"
_PAGES = "usr/share/libreoffice/help"
_FEWEST_WORDS, _MOST_WORDS = 3, 60
_TAGS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")
_PARAGRAPHS = "|".join(f"//{tag}[starts-with(@id, 'par_') or starts-with(@id, 'hd_')]" for tag in _TAGS)


def read(debs: list[Path]) -> Raw:
    """Yields rows {"page", and a column for each language, named as LibreOffice does: "en-US", "de"}."""
    if len(debs) != 2:
        raise UserError(f"a translation needs the help of two languages, got {len(debs)} packages", "data.path")
    with debian.unpacked(debs) as folder:
        languages = sorted(pages.parent.name for pages in folder.glob(f"{_PAGES}/*/text"))
        if len(languages) != 2:
            raise UserError(f"expected the help of two languages, found {', '.join(languages) or 'none'}", "data.path")
        rows = list(_rows(folder / _PAGES, *languages))
    return Raw({"train": rows}, _LICENSE)


def _rows(folder: Path, first: str, second: str) -> Iterator[Row]:
    """Yields pairs of 3 to 60 words on either side, each once, whose sides differ (equal ones are code).

    The help repeats itself: paragraphs are embedded in many pages, and menus and notes recur. Since splits keep pages
    together, a text, in either language and apart from case and punctuation, stays only in the first page that has it:
    no sentence of a test split, nor its translation, is in training.
    """
    home: dict[tuple[str, str], str] = {}
    for file in sorted((folder / first / "text").rglob("*.html")):
        page = file.relative_to(folder / first).as_posix()
        other = folder / second / page
        if not other.exists():
            continue
        ours, theirs = _paragraphs(file), _paragraphs(other)
        seen = set()
        for identifier in (name for name in ours if name in theirs):
            pair = {first: ours[identifier], second: theirs[identifier]}
            keys = [(language, _bare(text)) for language, text in pair.items()]
            lengths = [len(text.split()) for text in pair.values()]
            if min(lengths) < _FEWEST_WORDS or max(lengths) > _MOST_WORDS or pair[first] == pair[second]:
                continue
            if tuple(keys) in seen or any(home.get(key, page) != page for key in keys):
                continue
            seen.add(tuple(keys))
            home |= dict.fromkeys(keys, page)
            yield Row(f"{page}#{identifier}", {"page": page, **pair})


def _paragraphs(file: Path) -> dict[str, str]:
    """Returns the text of a page's paragraphs and headings by id."""
    import lxml.html

    page: Any = lxml.html.fromstring(file.read_bytes(), parser=lxml.html.HTMLParser(encoding="utf-8"))
    for switch in page.xpath("//span[@class='switchinline']"):
        # the page's script shows one variant: by the reader's system, or the program the help was opened from
        variants = [variant for variant in switch if variant.get("class") != "MAC"]
        shown = next((variant for variant in variants if variant.get("id", "").startswith("default")), None)
        shown = variants[0] if shown is None and variants else shown
        for variant in list(switch):
            if variant is not shown:
                variant.drop_tree()
    for line_break in page.iter("br"):
        line_break.tail = f" {line_break.tail or ''}"
    found: dict[str, str] = {}
    for paragraph in page.xpath(_PARAGRAPHS):
        found.setdefault(paragraph.get("id"), " ".join(paragraph.text_content().split()))
    return found


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()
