"""Checks of options against the record of a model and of its data, shared by several stages. Torch-free.

Counts of tokens are not known here: a token has at least one byte, so options that need more tokens than a split has
bytes are refused, and the rest is left to the stages' `check`. Checks of a single stage are in its `early.py`.
"""

from __future__ import annotations

from stages.contracts import Corpus, DataSet, Examples, Structure, UserError
from stages.data.formats import rows_of


def check_length(model: Structure, length: int, option: str) -> None:
    if model.context is not None and length > model.context:
        raise UserError(f"{length} tokens do not fit the model's context of {model.context}", option)


def check_split(data: DataSet | None, split: str, option: str) -> None:
    if data is None:
        return
    assert isinstance(data, Corpus | Examples)
    try:
        data.split(split)
    except UserError as error:
        raise UserError(error.message, option) from None


def check_tokens(data: DataSet | None, split: str, tokens: int, option: str) -> None:
    if not isinstance(data, Corpus) or rows_of(data) != "texts":
        return
    num_bytes = data.split(split).stat().st_size
    if tokens > num_bytes:
        reason = f"asks for {tokens:,} tokens, the split {split!r} has {num_bytes:,} bytes of text"
        raise UserError(f"{reason}; lower it or add texts", option)
