"""Reads recorded prompts of the Asterisk telephone exchange, one speaker for each language, with their transcripts."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from stages.contracts import UserError
from stages.data.rows import Raw, Row
from stages.sources import debian

PACKAGE = re.compile(r"asterisk-core-sounds-[a-z]{2}(-wav)?")
_LICENSE = "CC-BY-SA-3.0"
_TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-*/core-sounds-*.txt.gz"
_SOUNDS = "usr/share/asterisk/sounds"
_FEWEST_WORDS = 4
"""Shorter prompts are names of digits and letters."""


def read(debs: list[Path]) -> Raw:
    """Yields rows {"audio": {"bytes"}, "text", "clip"} in the transcripts' order, without sounds that are not
    speech."""
    with debian.unpacked(debs) as folder:
        transcripts, speakers = list(folder.glob(_TRANSCRIPTS)), list(folder.glob(f"{_SOUNDS}/*/"))
        if len(transcripts) != 1 or len(speakers) != 1:
            raise UserError("expected deb:asterisk-core-sounds-LL+asterisk-core-sounds-LL-wav", "data.path")
        rows = list(_rows(transcripts[0], speakers[0]))
    return Raw({"train": rows}, _LICENSE)


def _rows(transcripts: Path, sounds: Path) -> Iterator[Row]:
    # lines are `clip: text`; comments begin with a semicolon, and remarks on sounds that are no speech, or not what
    # the text says, stand in brackets
    lines = gzip.decompress(transcripts.read_bytes()).decode("utf-8").splitlines()
    seen = set()
    for number, line in enumerate(lines, start=1):
        clip, _, text = (part.strip() for part in line.partition(": "))
        sound = sounds / f"{clip}.wav"
        words = tuple(re.findall(r"\w+", text.casefold()))
        # some prompts were recorded twice: a split by clip could put one text on both sides
        if line.startswith(";") or set(line) & set("[(") or len(text.split()) < _FEWEST_WORDS or words in seen:
            continue
        if sound.exists():
            seen.add(words)
            where = f"{transcripts.name.removesuffix('.gz')}:{number}"
            yield Row(where, {"audio": {"bytes": sound.read_bytes()}, "text": text, "clip": clip})
