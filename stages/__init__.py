"""The stages and the mathematics they share. `stages.index` is their torch-free index."""
