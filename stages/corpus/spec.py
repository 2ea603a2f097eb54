"""Stage `corpus`: packs text for pretraining. Torch-free description."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from stages.contracts import PackedCorpus
from stages.corpus.cost import CorpusCost
from stages.data.generators import AnyGenerator, check_path
from stages.options import Located, Options, Seed
from stages.sources.identity import GENERATED
from stages.stage import MetricSpec, Stage

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Source(Located):
    """A source of documents: each row, or each file, is a document."""

    added: ClassVar[frozenset[str]] = frozenset({"generator", "size", "seed", "template"})

    path: str = Field(min_length=1)
    """A hub id, which is streamed; a local file or folder; an embedded package; `python:stdlib`, the source code of
    this interpreter's own library; or `generated`."""
    revision: str = ""
    """For a hub id: branch, tag or commit; empty means `main`. The fingerprint holds the commit."""
    subset: str = ""
    """Hub: name of the configuration. A local folder: one of its README's configs."""
    data_dir: str = ""
    """Hub: read the files of this folder of the data set only, as `data/python` of The Stack."""
    split: str = "train"
    """Split of the source to read."""
    column: str = "text"
    """Column of the rows that holds a document's text. `a.b` is column b inside column a."""
    files: str = ""
    """A pattern such as `**/*.py`: each matching file of a local folder is a document. Empty: the rows of its data
    files are."""
    generator: AnyGenerator | None = None
    """For path=generated: a generator of `stages/data/generators/`, with its options."""
    size: int = Field(0, ge=0)
    """For path=generated: the number of documents."""
    seed: Seed = 0
    """For path=generated: seed of the documents."""
    template: str = ""
    """For path=generated: the text of a document, with columns of the generator's rows in braces:
    `{question}{answer}`."""
    weight: float | None = Field(None, gt=0)
    """Share of this source's tokens in the corpus, relative to the other sources' weights. Sources that end are read
    again. Null in every source: all of each, once."""

    @model_validator(mode="after")
    def _generated_fits(self) -> Source:
        check_path(self.path, self.generator)
        if self.generator and not (self.size and self.template):
            raise ValueError("generated documents need `size` and `template`")
        if not self.generator and (self.size or self.seed or self.template):
            raise ValueError(f"size, seed and template are for path={GENERATED}; leave them out")
        return self


class CorpusOptions(Options):
    """A mixture of text sources, packed for pretraining."""

    section: ClassVar[str] = "corpus"

    sources: dict[str, Source] = Field(min_length=1)
    """Sources by name; validation losses carry these names."""
    tokens: int = Field(ge=0)
    """Tokens of the training part. 0: until each source has been read to its end at least once."""
    validation_fraction: float = Field(gt=0, lt=0.5)
    """Share of each source's documents, chosen by a hash of their text, that is kept for validation."""
    validation_tokens: int = Field(ge=1)
    """Most validation tokens of each source; documents chosen for validation beyond that are left out."""
    shard_tokens: int = Field(ge=1)
    """A shard ends with the document that brings it to this size. A killed run resumes after its last shard."""

    @field_validator("sources")
    @classmethod
    def _names_fit(cls, value: dict[str, Source]) -> dict[str, Source]:
        if odd := [name for name in value if not _NAME.fullmatch(name)]:
            raise ValueError(f"names of sources are lower-case letters, digits and _, got {odd[0]!r}")
        return value

    @model_validator(mode="after")
    def _weights_fit(self) -> CorpusOptions:
        given = [name for name, source in self.sources.items() if source.weight is not None]
        if given and len(given) < len(self.sources):
            missing = next(name for name in self.sources if name not in given)
            raise ValueError(f"give every source a weight or none; {missing} has none")
        if self.tokens and not given and len(self.sources) > 1:
            raise ValueError("tokens of several sources need a weight for each; tokens=0 reads each once")
        return self

    @property
    def weights(self) -> dict[str, float] | None:
        """Returns the weights by source; None if each source is to be read once."""
        found = {name: source.weight for name, source in self.sources.items() if source.weight is not None}
        return found or None


IRRELEVANT = ("shard_tokens",)
"""The tokens are the same, whatever files they are cut into."""
STAGE = Stage(
    "corpus",
    "1",
    CorpusOptions,
    PackedCorpus,
    irrelevant=IRRELEVANT,
    cost=CorpusCost(),
    metrics=(
        MetricSpec("tokens", "tokens", headline=True),
        MetricSpec("documents", "documents"),
        MetricSpec("validation_tokens", "tokens"),
        MetricSpec("tokens_per_second", "tokens/s", True),
    ),
)
