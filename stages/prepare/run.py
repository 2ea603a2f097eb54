"""Stage `prepare`: tokenizes a corpus for an encoder-decoder and computes features, once for all stages."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from stages import families
from stages.contracts import Artifact, Checkpoint, Corpus, Log, UserError
from stages.families.encoder_decoder import EncoderDecoder
from stages.prepare.spec import PrepareOptions

SPLITS = ("train", "validation", "test")


def run(config: PrepareOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Converts the corpus.

    Inputs: `model` (Checkpoint, for its tokenizer) and `data` (Corpus). Output: Examples.
    """
    source, corpus = inputs["model"], inputs["data"]
    assert isinstance(source, Checkpoint)
    assert isinstance(corpus, Corpus)
    family = families.of(source.path)
    if not isinstance(family, EncoderDecoder):
        raise UserError(f"data of format {corpus.format} are for encoder-decoders, not for {family.name}", "data")
    prompt = family.prompt(corpus, source.path)
    counts = {
        f"{split}_examples": write(family, corpus, split, source.path, out / split, log)
        for split in SPLITS
        if (corpus.path / f"{split}.jsonl").exists()
    }
    log.facts(
        format=corpus.format,
        digest=corpus.digest,
        prompt=prompt,
        speech=corpus.facts().get("speech"),
        languages=corpus.facts().get("languages"),
        examples=counts,
    )
    return {name: float(count) for name, count in counts.items()}


def write(family: EncoderDecoder, corpus: Corpus, split: str, folder: Path, out: Path, log: Log) -> int:
    """Fills `out` with the examples of a split, for a tokenizer in `folder`; returns how many. Raises UserError."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="squarehead-") as scratch:
        try:
            found = datasets.Dataset.from_generator(
                lambda: family.examples(corpus, split, folder, log),
                features=family.columns(),
                cache_dir=scratch,
                # 30 seconds of speech are a megabyte of features
                writer_batch_size=100,
                # what it would be called in a cache, which this has none of
                fingerprint=f"{corpus.digest}-{split}",
            )
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        found.save_to_disk(out)
        return len(found)
