"""The stages and the mathematics they share. `stages.registry` is their torch-free index."""
