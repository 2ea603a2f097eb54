"""Reports of runs and sweeps, from their folders and the store.

record.folders, results (what is on disk) -> table (a row for each model, metric and result) -> analysis, pairs,
findings, verdicts, speeds, sharing (pure functions of it) -> study (all of it) -> tables, figures -> writers, page,
terminal.
"""
