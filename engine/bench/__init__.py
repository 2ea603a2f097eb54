"""Measures speed: interleaved rounds of contenders, the decoding of each runtime, and the limits of memory and
arithmetic.

`rounds` runs the contenders of every benchmark: of single layers, of a stack of layers, of an engine folder, and of the
pipeline's checkpoints.
"""
