"""Runs programs that a model wrote, each in a child process that can only compute, for a few seconds."""
