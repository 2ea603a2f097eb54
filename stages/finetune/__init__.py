"""The training loop, dense and sparse: losses, teacher, masked optimizer, checkpoints that resume."""
