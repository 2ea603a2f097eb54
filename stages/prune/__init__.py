"""Pruners of linears (pure functions of tensors) and the block-by-block pass that calibrates them."""
