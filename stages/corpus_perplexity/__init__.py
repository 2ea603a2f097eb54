"""How well a model predicts the validation text of each source of a corpus."""
