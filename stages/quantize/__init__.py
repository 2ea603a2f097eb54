"""W8A8 linears, SmoothQuant, and the sensitivity that chooses exceptions."""
