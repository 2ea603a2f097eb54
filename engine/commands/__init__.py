"""The commands of `python -m engine`: a module each, which is quick to import."""
