"""Sweeps: many jobs of one command, planned together; shared results are made first. `python -m pipeline.sweeps`
manages them."""
