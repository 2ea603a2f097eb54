"""T5 (arXiv 1910.10683) and models with the same modules: T5, T5 v1.1 and Flan-T5 (gated), mT5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.families.text_to_text import TextToText


class T5(TextToText):
    name = "t5"
    attention = "eager"
    """torch's fused attention takes a slow path where there is a position bias: eager trains 1.4 to 2 times as fast."""

    def start(self, folder: Path) -> int:
        """Returns the padding token if the checkpoint does not say: early T5s do not, and all begin with it."""
        from transformers import AutoConfig

        stated = super().start(folder)
        if stated is not None:
            return stated
        return int(AutoConfig.from_pretrained(folder, local_files_only=True).pad_token_id)

    def stacks(self, model: Any) -> tuple[str, str]:
        return "encoder.block", "decoder.block"
