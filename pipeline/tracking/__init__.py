"""MLflow, a view of the store: its runs, while jobs run and later. `python -m pipeline.tracking relog` rebuilds it."""
