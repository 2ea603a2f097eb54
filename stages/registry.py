"""The index of stages: what the pipeline may know of them without importing torch.

A stage is a module with `run(config, inputs, out, log) -> metrics`: `config` is its own slice of the
configuration (pipeline.schema), `inputs` maps roles to artifacts, `out` is an empty folder to fill, and
the returned metrics are its summary. `version` is raised whenever the same config would give another result.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.contracts import Artifact, Benchmark, Calibration, Checkpoint, Corpus, Examples, Metrics


@dataclass(frozen=True)
class StageSpec:
    name: str
    version: str
    module: str
    """Imported only when the stage runs."""
    makes: type[Artifact]
    irrelevant: tuple[str, ...] = ()
    """Dotted config keys that cannot change the result; they stay out of the fingerprint."""
    in_cache: bool = False
    """Sources live in the user's cache, shared by all projects; everything else in the run's own store."""
    is_source: bool = False
    """Brings in the model or the data. Sources run first; with them everything else is checked before it runs
    (`pipeline.preflight`)."""


TRAINING_IRRELEVANT = ("training.checkpoint_every", "training.divergence")
"""divergence only stops a run: with a higher one, the same run goes on from its last checkpoint."""

STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec("model", "2", "stages.sources.model", Checkpoint, in_cache=True, is_source=True),
        StageSpec("data", "2", "stages.sources.data", Corpus, in_cache=True, is_source=True),
        StageSpec("scratch", "2", "stages.scratch", Checkpoint, is_source=True),
        StageSpec("prepare", "2", "stages.prepare", Examples, is_source=True),
        StageSpec("dense", "4", "stages.dense", Checkpoint, irrelevant=TRAINING_IRRELEVANT),
        StageSpec("calibrate", "4", "stages.calibrate", Calibration),
        StageSpec("prune", "2", "stages.prune", Checkpoint),
        StageSpec("finetune", "4", "stages.finetune", Checkpoint, irrelevant=TRAINING_IRRELEVANT),
        StageSpec("quantize", "2", "stages.quantize", Checkpoint),
        StageSpec("evaluate", "3", "stages.evaluate", Metrics),
        StageSpec("benchmark", "7", "stages.benchmark", Benchmark),
    )
}
