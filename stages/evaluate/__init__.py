"""Perplexity, lm-eval tasks on the model in memory, and scores of generated texts."""
