"""Reads data sets of a hub, at one commit. `datasets` runs no scripts of a repository and reads no pickles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contracts import UserError
from stages.data.rows import Raw, Row
from stages.sources import cards


def read(repo: str, commit: str, subset: str) -> Raw:
    """Reads all splits of a hub data set. Raises UserError in one line if that fails."""
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(repo, subset or None, revision=commit)
        if builder.hash != commit:  # offline, `datasets` uses any commit that it has
            raise UserError(f"{repo} at {commit[:12]} is not in the cache, and there is no way to the hub", "data.path")
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except UserError:
        raise
    except Exception as error:  # `datasets`, fsspec and HTTP libraries raise errors of their own
        option = "data.subset" if "config" in str(error).lower() else "data.path"
        raise UserError(f"could not get {repo} at {commit[:12]} from the hub: {error}", option) from error
    return Raw({str(name): Rows(str(name), _undecoded(rows)) for name, rows in loaded.items()}, _license(repo, commit))


@dataclass(frozen=True)
class Rows:
    """Rows that are read from disk during iteration: data sets of the hub can be larger than memory."""

    split: str
    table: Any
    """A `datasets.Dataset`."""

    def __iter__(self) -> Iterator[Row]:
        for index, values in enumerate(self.table):
            yield Row(f"{self.split}[{index}]", values)


def _undecoded(table: Any) -> Any:
    """Keeps audio as the bytes of its files: to decode it, `datasets` would need torchcodec."""
    from datasets import Audio

    for name, feature in table.features.items():
        if isinstance(feature, Audio):
            table = table.cast_column(name, Audio(decode=False))
    return table


def _license(repo: str, commit: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return cards.license_in(Path(hf_hub_download(repo, "README.md", repo_type="dataset", revision=commit)))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return cards.UNKNOWN
