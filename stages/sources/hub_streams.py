"""Streams a data set of a hub, at one commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from stages.contracts import UserError
from stages.sources import cards


@dataclass
class HubStream:
    """One column of one split. `option` is the section of the configuration that errors name."""

    repo: str
    commit: str
    subset: str
    data_dir: str
    split: str
    column: str
    option: str
    _stream: Any = field(init=False, default=None)

    license = cards.UNKNOWN

    def texts(self, state: dict[str, Any] | None, skip: int) -> Iterator[str]:
        """Yields texts from a state on, or from the beginning, without the first `skip`. A row without text gives an
        empty one."""
        # a new stream each time: one that was read continues from its last state
        self._stream = self._open()
        if state is not None:
            self._stream.load_state_dict(state)
        return islice(self._read(), skip, None)

    def state(self) -> dict[str, Any] | None:
        """Returns JSON values from which `texts` continues with the next row."""
        found: dict[str, Any] = self._stream.state_dict()
        return found

    def _open(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(
                self.repo,
                self.subset or None,
                data_dir=self.data_dir or None,
                split=self.split,
                revision=self.commit,
                streaming=True,
            )
        except Exception as error:  # `datasets`, fsspec and HTTP libraries raise errors of their own
            raise UserError(
                f"could not get {self.repo} at {self.commit[:12]} from the hub: {error}", f"{self.option}.path"
            ) from error

    def _read(self) -> Iterator[str]:
        count = 0
        try:
            for row in self._stream:
                if self.column not in row:
                    have = ", ".join(row)
                    raise UserError(
                        f"{self.repo} has no column {self.column!r}; it has: {have}", f"{self.option}.column"
                    )
                count += 1
                yield row[self.column] or ""
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the stream of {self.repo} was cut off after {count:,} documents ({type(error).__name__}: {error}); "
                "finished shards are kept, and the same command resumes after them",
                f"{self.option}.path",
            ) from error
