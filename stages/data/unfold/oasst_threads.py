"""Message trees of Open Assistant as conversations."""

from stages.data.message_trees import threads

UNFOLD = threads
