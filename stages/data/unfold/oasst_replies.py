"""Message trees of Open Assistant as prompts with ranked replies."""

from stages.data.message_trees import replies

UNFOLD = replies
