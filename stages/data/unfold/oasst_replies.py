"""Unfolds message trees of Open Assistant into prompts with ranked replies."""

from stages.data.message_trees import replies

UNFOLD = replies
