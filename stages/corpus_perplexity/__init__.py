"""Perplexity of a model on the validation text of each source of a corpus."""
