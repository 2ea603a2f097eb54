"""Many jobs of one line: planned together, what they share made first. `python -m pipeline.sweeps` looks after them."""
