"""Backends that run a checkpoint, and what the machine is."""
