"""Data formats: the columns of a data set's rows, and the kind of rows that families of models read. A file each, and a
file in conf/data/.

A member defines `FORMAT`. Its file is read when a run is planned: plain Python, no torch.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from stages.contracts import DataSet
from stages.kinds import Kinds

if TYPE_CHECKING:
    from stages.data.rows import Row
    from stages.data.spec import Data

RowKind = Literal["texts", "items", "conversations", "pairs", "clips"]
"""What families read. texts: running text {"text", "id"}. items: {"prompt", "completion", "id"} and what an evaluation
asks for. conversations: {"messages", "id"}. pairs: {"source", "target", "id"}. clips: speech {"audio", "seconds",
"text", "id"}; the format gives the text of the column `audio`'s clip, the stage writes the clip."""


@runtime_checkable
class Format(Protocol):
    rows: RowKind
    options: type[Data]
    """The section `data` of the configuration, with the options of this format."""
    columns: frozenset[str] | None
    """Columns that a row must have (`data.columns`), `id` among them; None: its `options` check that."""
    templates: tuple[str, str] | None
    """Columns that occur in `data.prompt` and `data.completion`; None: it reads neither."""
    takes: frozenset[str]
    """Options among `verbatim`, `speech` and `languages` that it reads."""

    def row(self, row: Row, data: Any) -> dict[str, Any] | None:
        """Returns the row for JSON Lines; None for one without text, which is left out. `data` is of its own `options`.
        Raises UserError."""


FORMATS: Kinds[Format] = Kinds("data format", __name__, "FORMAT", "data.format", Format)


def rows_of(data: DataSet) -> RowKind:
    """Returns the kind of rows that a data set is read as."""
    return FORMATS.get(data.format).rows


def names_of(kinds: Container[str]) -> list[str]:
    """Returns the formats whose rows are of these kinds."""
    return [name for name in FORMATS.names() if FORMATS.get(name).rows in kinds]
