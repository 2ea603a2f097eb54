"""The stages and the mathematics they share. `stages.index` lists them without importing torch."""
