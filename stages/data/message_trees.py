"""Reads Open Assistant's message trees: prompts with replies, which have replies.

What a model wrote (`synthetic`) or what was deleted is left out, with everything that answers it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.contracts import UserError
from stages.data.rows import Row

ROLES = {"prompter": "user", "assistant": "assistant"}
Turn = dict[str, str]


def threads(row: Row) -> Iterator[Row]:
    """Yields {"messages", "tree"}: every path from the root to a last reply of an assistant."""
    for number, messages in enumerate(_ways(_root(row), [])):
        yield Row(f"{row.where}[{number}]", {"messages": messages, "tree": row.values["message_tree_id"]})


def replies(row: Row) -> Iterator[Row]:
    """Yields {"messages", "replies", "tree"}: a conversation up to a prompt, and the replies of assistants as people
    ranked them, the best first. Prompts with fewer than two ranked replies are left out."""
    for number, (messages, ranked) in enumerate(_ranked(_root(row), [])):
        values = {"messages": messages, "replies": ranked, "tree": row.values["message_tree_id"]}
        yield Row(f"{row.where}[{number}]", values)


def _root(row: Row) -> Mapping[str, Any]:
    root = row.values.get("prompt")
    if not isinstance(root, dict) or "message_tree_id" not in row.values:
        raise UserError(f"{row.where} is not a message tree: it has no prompt and message_tree_id", "data.unfold")
    return root


def _is_kept(node: Mapping[str, Any]) -> bool:
    return not node.get("synthetic") and not node.get("deleted") and bool(node["text"].strip())


def _ways(node: Mapping[str, Any], before: list[Turn]) -> Iterator[list[Turn]]:
    if not _is_kept(node):
        return
    here = [*before, {"role": ROLES[node["role"]], "content": node["text"]}]
    further = [way for reply in node["replies"] for way in _ways(reply, here)]
    if further:
        yield from further
    elif node["role"] == "assistant":
        yield here


def _ranked(node: Mapping[str, Any], before: list[Turn]) -> Iterator[tuple[list[Turn], list[str]]]:
    if not _is_kept(node):
        return
    here = [*before, {"role": ROLES[node["role"]], "content": node["text"]}]
    if node["role"] == "prompter":
        judged = [reply for reply in node["replies"] if _is_kept(reply) and reply.get("rank") is not None]
        if len(judged) > 1:
            yield here, [reply["text"] for reply in sorted(judged, key=lambda reply: int(reply["rank"]))]
    for reply in node["replies"]:
        yield from _ranked(reply, here)
