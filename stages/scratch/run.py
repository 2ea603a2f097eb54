"""Stage `scratch`: makes a model with random weights, and a tokenizer trained on its texts.

Once trained, it is a model of its data and size, not a known one: its label says so everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stages import families
from stages.contracts import Artifact, Corpus, Log
from stages.families import structure
from stages.scratch import llama, t5
from stages.scratch.spec import Scratch, ScratchOptions
from stages.scratch.texts import texts_of_corpus, texts_of_data

MAKERS: Mapping[str, Callable[[Scratch, list[str]], tuple[Any, Any]]] = {"causal_lm": llama.make, "t5": t5.make}
"""Function of each family from settings and texts to a model and its tokenizer."""


def run(config: ScratchOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Makes the model.

    Input: `data` (Corpus, whose training texts the tokenizer learns), unless `config` has a mixture of sources. Output:
    Checkpoint. Raises UserError for settings that the family's configuration does not have.
    """
    data = inputs.get("data")
    if config.corpus:
        texts, source = texts_of_corpus(config.corpus, config.scratch.tokenizer_bytes, log)
    else:
        assert isinstance(data, Corpus)
        texts, source = texts_of_data(data), data.digest
    model, tokenizer = MAKERS[config.family](config.scratch, texts)
    model = model.to(getattr(torch, config.dtype))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    structure.save(structure.of(model, families.get(config.family)), out)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    log.facts(
        source={"scratch": config.scratch.model_dump(), "data": source},
        label=config.scratch.label,
        license="none: not trained by anyone before",
        architecture=type(model).__name__,
        parameters=num_parameters,
        context=families.get(config.family).context(model),
        vocabulary=model.config.vocab_size,
        dtype=config.dtype,
    )
    return {"parameters": num_parameters, "vocabulary": len(tokenizer)}
