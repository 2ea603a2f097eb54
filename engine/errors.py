"""The error for what the engine refuses, in one line."""

from __future__ import annotations


class EngineError(ValueError):
    """States what was wrong, what was expected, and what to change. Shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
