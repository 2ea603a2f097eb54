"""Perplexity by its protocol, and lm-eval tasks on the model in memory."""
