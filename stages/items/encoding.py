"""Tokens of items: which are learned, where a long item is cut, and the prompt that asks for one.

`encode` makes rows of training and calibration, `ask` prompts of evaluation, from the same parts: a generation begins
exactly where a learned text began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.contracts import Corpus, UserError
from stages.data.formats import rows_of
from stages.items import chat, parts
from stages.items.parts import Part


@dataclass(frozen=True)
class Tokens:
    """Tokens of one item. Lists are of its length."""

    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class Question:
    """An item as a prompt of an evaluation."""

    id: str
    ids: list[int]
    """The prompt, as a row of training begins."""
    prompt: str
    reference: str
    """Expected text in the data; empty if there is none."""
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Items:
    """The items of a data set for a model with this tokenizer."""

    data: Corpus
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"its tokenizer has no end of sequence (eos), with which items of format {self.data.format} end",
                "model.path",
            )

    def encode(
        self, row: Mapping[str, Any], length: int, option: str, last_target: bool = False
    ) -> Tokens | None:  # fmt: skip
        """Returns at most `length` tokens of a row. A long one loses first the part that may be cut, then its end. None
        for a prompt without room for its target, if the data leave those out. `last_target`: only the last turn of the
        assistant is learned in a conversation, whatever the data say.

        Raises UserError, with `option`, for such a prompt otherwise, and for a row without a target.
        """
        texts = self._parts(row)
        if not any(part.learned for part in texts):
            raise UserError(f"the item {row['id']!r} has no target; nothing of it can be learned", "data.path")
        if last_target:
            last = max(number for number, part in enumerate(texts) if part.learned)
            texts = [replace(part, learned=number == last) for number, part in enumerate(texts)]
        learns_all = self.data.loss_on == "all" and not last_target
        if learns_all and not any(part.cut for part in texts):
            ids = self._ended(self._ids("".join(part.text for part in texts)))[:length]
            return Tokens(ids, [True] * len(ids))
        ids, owners = self._owned(texts)
        ended = self._ended(ids)
        owners += [owners[-1]] * (len(ended) - len(ids))
        ids, owners = _shortened(ended, owners, texts, length)
        learned = [texts[owner].learned for owner in owners[:length]]
        if any(learned):
            return Tokens(ids[:length], [True] * len(learned) if learns_all else learned)
        if self.data.too_long == "leave_out":
            return None
        raise UserError(
            f"the prompt of the item {row['id']!r} leaves no room for its target in {length} tokens; allow more, or "
            "leave such items out by data.too_long=leave_out",
            option,
        )

    def ask(self, row: Mapping[str, Any], room: int, option: str) -> Question:
        """Returns the prompt of a row, of at most `room` tokens. Raises UserError, with `option`, if it is longer and
        may not be cut."""
        texts = self._parts(row)
        learned = [number for number, part in enumerate(texts) if part.learned]
        reference = texts[learned[-1]].text.removesuffix(self.tokenizer.eos_token) if learned else ""
        asked = texts[: learned[-1]] if learned else self._opened(row, texts)
        ids, _ = _shortened(*self._owned(asked), asked, room)
        if len(ids) > room:
            raise UserError(
                f"the prompt of the item {row['id']!r} has {len(ids)} tokens; {room} fit beside the answer",
                option,
            )
        return Question(str(row["id"]), ids, "".join(part.text for part in asked), reference, row)

    def stops(self) -> set[int]:
        """Returns the ids that end an answer: eos, and what the tokenizer's chat template ends a turn with."""
        found = {int(self.tokenizer.eos_token_id)}
        if self._by_tokenizer:
            turns = [{"role": "user", "content": "a"}, {"role": chat.ASSISTANT, "content": "b"}]
            found.add(self._ids("".join(part.text for part in chat.parts(turns, "tokenizer", self.tokenizer)))[-1])
        return found

    @property
    def _by_tokenizer(self) -> bool:
        """Returns whether the tokenizer's chat template determines where an item begins (with bos, if at all) and
        ends."""
        return rows_of(self.data) == "conversations" and self.data.template == "tokenizer"

    def _parts(self, row: Mapping[str, Any]) -> list[Part]:
        if rows_of(self.data) == "conversations":
            return chat.parts(row["messages"], self.data.template, self.tokenizer, row["id"])
        return parts.of_row(row)

    def _opened(self, row: Mapping[str, Any], texts: list[Part]) -> list[Part]:
        if rows_of(self.data) == "conversations":
            return chat.opened(row["messages"], self.data.template, self.tokenizer, row["id"])
        return texts

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=not self._by_tokenizer, verbose=False)["input_ids"]
        return found

    def _owned(self, texts: Sequence[Part]) -> tuple[list[int], list[int]]:
        """Returns the ids of the parts together, and the number of the part in which each token ends. The text is
        tokenised in one piece, since a token may span the border of two parts."""
        if not self.tokenizer.is_fast:
            raise UserError("its tokenizer does not map tokens to characters (it is not a fast one)", "model.path")
        found = self.tokenizer(
            "".join(part.text for part in texts),
            add_special_tokens=not self._by_tokenizer,
            return_offsets_mapping=True,
            verbose=False,
        )
        owners, owner, border = [], 0, len(texts[0].text)
        for _, end in found["offset_mapping"]:  # (0, 0) for what the tokenizer adds before and behind
            while end > border:
                owner += 1
                border += len(texts[owner].text)
            owners.append(owner)
        return list(found["input_ids"]), owners

    def _ended(self, ids: list[int]) -> list[int]:
        eos = int(self.tokenizer.eos_token_id)
        return ids if self._by_tokenizer or ids[-1:] == [eos] else [*ids, eos]


def _shortened(
    ids: list[int], owners: list[int], texts: Sequence[Part], length: int
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Returns the ids without the last tokens of the part that may be cut, as many as exceed `length`."""
    over = len(ids) - length
    if over <= 0:
        return ids, owners
    cuttable = [at for at, owner in enumerate(owners) if texts[owner].cut]
    gone = set(cuttable[max(0, len(cuttable) - over) :])
    kept = [at for at in range(len(ids)) if at not in gone]
    return [ids[at] for at in kept], [owners[at] for at in kept]
