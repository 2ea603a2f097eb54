"""A model's architecture, tokenizer and masks with new random weights."""
