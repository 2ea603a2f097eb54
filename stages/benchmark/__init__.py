"""Backends that run a checkpoint, and measurements of their speed and memory."""
