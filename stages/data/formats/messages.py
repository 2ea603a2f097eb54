"""Conversations: `[{"role": "user", "content": ...}, {"role": "assistant", ...}]`, as in TRL and on hubs."""

from __future__ import annotations

from typing import Any, Literal

from stages.contracts import UserError
from stages.data.columns import text, value
from stages.data.formats import RowKind
from stages.data.rows import Row
from stages.data.spec import ItemData

_ROLES = ("system", "user", "assistant")


class MessagesData(ItemData):
    template: Literal["tokenizer", "zephyr"]
    """How turns are written: by the chat template of the model's tokenizer, or by zephyr's, with which the papers teach
    base models, an empty system turn first."""
    prompt: str = ""
    completion: str = ""

    def item_facts(self) -> dict[str, Any]:
        return super().item_facts() | {"template": self.template}


class Messages:
    rows: RowKind = "conversations"
    options = MessagesData
    columns = frozenset({"messages", "id"})
    templates = None
    takes: frozenset[str] = frozenset()

    def row(self, row: Row, data: MessagesData) -> dict[str, Any] | None:
        """Returns None for a conversation without a turn of the assistant, or with an empty one."""
        messages = [_message(row, turn) for turn in _turns(row, data.columns["messages"])]
        if not messages or any(turn["role"] == "assistant" and not turn["content"] for turn in messages):
            return None
        name = text(row, "id", data.columns["id"]) if data.columns["id"] else messages[0]["content"]
        return {"messages": messages, "id": name, **data.kept(row)} if name else None


def _turns(row: Row, column: str) -> list[Any]:
    found = value(row, "messages", column)
    if not isinstance(found, list):
        raise UserError(
            f"{row.where}: expected a list of messages in column {column!r}, got {type(found).__name__}",
            "data.columns.messages",
        )
    return found


def _message(row: Row, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or turn.get("role") not in _ROLES:
        role = turn.get("role") if isinstance(turn, dict) else type(turn).__name__
        raise UserError(
            f"{row.where}: expected messages with a role of {', '.join(_ROLES)} and a text as content, got {role!r}",
            "data.columns.messages",
        )
    return {"role": turn["role"], "content": turn["content"].strip()}


FORMAT = Messages()
