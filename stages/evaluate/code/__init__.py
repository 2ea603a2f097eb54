"""Runs programs that a model wrote, each in a child process that can do nothing but compute, for a few seconds."""
