"""MLflow as a view of the store, while jobs run and later. `python -m pipeline.tracking relog` rebuilds it."""
