"""Measuring speed: interleaved rounds of contenders, how each runtime decodes, and what memory and arithmetic allow.

`rounds` runs the contenders of every benchmark: of single layers, of a stack of layers, of an engine folder, and of the
pipeline's checkpoints.
"""
