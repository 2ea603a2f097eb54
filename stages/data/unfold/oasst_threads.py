"""Unfolds message trees of Open Assistant into conversations."""

from stages.data.message_trees import threads

UNFOLD = threads
