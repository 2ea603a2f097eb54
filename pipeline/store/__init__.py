"""Stores results on disk: a folder for each, found by its fingerprint. `python -m pipeline.store` is the command."""
