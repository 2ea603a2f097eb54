"""Training, dense and sparse: losses, teacher, masked optimizer, checkpoints that resume."""
