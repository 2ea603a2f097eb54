"""Estimates the cost of packing a corpus: tokenising, and the bytes of its tokens."""

from __future__ import annotations

from stages.cost import Cost, Setting, Workload
from stages.model_size import ModelSize

TOKEN_OPERATIONS = 1e5
"""Cost of reading and tokenising a token, in operations as other stages count them: half a million tokens a second and
core."""
SMALL_VOCABULARY = 1 << 16


class CorpusCost(Cost):
    def operations(self, load: Workload, parameters: float) -> float | None:
        """Returns None if the corpus ends with its sources, whose size is not known."""
        return TOKEN_OPERATIONS * load.config["tokens"] or None

    def result_bytes(self, load: Workload, size: ModelSize, setting: Setting) -> float | None:
        width = 2 if size.vocabulary <= SMALL_VOCABULARY else 4
        return width * load.config["tokens"] or None
