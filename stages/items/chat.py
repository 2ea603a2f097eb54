"""Writes conversations as text: by the chat template of the model's tokenizer, or by zephyr's, which base models are
taught.

The assistant's characters are found by rendering a conversation turn by turn, so that it works for any template: what a
turn of the assistant adds after the opening that a generation starts from is learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stages.contracts import UserError
from stages.items.parts import Part

Template = Literal["tokenizer", "zephyr"]
Message = Mapping[str, str]
OPTION = "data.template"
ASSISTANT = "assistant"


def parts(messages: Sequence[Message], template: Template, tokenizer: Any, name: str = "") -> list[Part]:
    """Returns a conversation up to the end of its last turn, with the assistant's turns learned, each with what ends a
    turn. `name` identifies the conversation in errors."""
    by_zephyr = template == "zephyr"
    found = _zephyr(messages, tokenizer.eos_token) if by_zephyr else _by_tokenizer(messages, tokenizer, name)
    if found and not found[-1].learned:
        found[-1] = Part(found[-1].text.rstrip())
    return [part for part in found if part.text]


def opened(messages: Sequence[Message], template: Template, tokenizer: Any, name: str = "") -> list[Part]:
    """Returns a conversation up to where the assistant's next turn begins: the prompt of a generation."""
    if template == "zephyr":
        return [*_zephyr(messages, tokenizer.eos_token), Part(f"<|{ASSISTANT}|>\n")]
    return [Part(_rendered(messages, tokenizer, name, opened=True))]


def _zephyr(messages: Sequence[Message], eos: str) -> list[Part]:
    """Writes a conversation in zephyr's form, with an empty system turn first if there is none."""
    begins_with_system = bool(messages) and messages[0]["role"] == "system"
    turns = messages if begins_with_system else [{"role": "system", "content": ""}, *messages]
    found = []
    for turn in turns:
        text = f"{turn['content']}{eos}"
        found += [Part(f"<|{turn['role']}|>\n"), Part(text, learned=turn["role"] == ASSISTANT), Part("\n")]
    return found


def _by_tokenizer(messages: Sequence[Message], tokenizer: Any, name: str) -> list[Part]:
    whole = _rendered(messages, tokenizer, name)
    found, at = [], 0
    for number, turn in enumerate(messages):
        if turn["role"] != ASSISTANT:
            continue
        before = _rendered(messages[:number], tokenizer, name, opened=True)
        until = _rendered(messages[: number + 1], tokenizer, name)
        if not (whole.startswith(until) and until.startswith(before) and len(before) >= at):
            raise UserError(
                f"the tokenizer's chat template renders the beginning of a conversation ({name}) differently from the "
                "whole, so that the assistant's turns cannot be identified; use data.template=zephyr",
                OPTION,
            )
        said = until[len(before) :]
        found += [Part(whole[at : len(before)]), Part(said.rstrip(), learned=True)]
        at = len(before) + len(said.rstrip())
    return [*found, Part(whole[at:])]


def _rendered(messages: Sequence[Message], tokenizer: Any, name: str, opened: bool = False) -> str:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError("the model's tokenizer has no chat template; use data.template=zephyr", OPTION)
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=opened
        )
    except TemplateError as error:
        raise UserError(f"the chat template refuses the conversation {name}: {error}", OPTION) from None
    return text
