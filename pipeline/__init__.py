"""Orchestration: compose, plan, run, track. Knows no torch.

commands      __main__, report, reproduce, dashboard; and those of store, sweeps, tracking
api           the same for notebooks and scripts
command       behind __main__: composes a configuration with Hydra, plans and runs a job, explains errors
path of a job schema (a checked configuration) -> resolve -> recipes, steps (nodes of a graph) -> fingerprint,
              plan (hit, or run and why) -> preflight
              -> run (log, progress: output of a running stage) -> store -> record, table
estimating    estimates time, memory and disk of a plan
record        the records of jobs, sweeps and results on disk, with their metrics: all others read them here
store         results on disk: published whole, verified, deleted
sweeps        many jobs of one command: planned together, shared results made first, watched (hydra_plugins calls it)
tracking      MLflow, a view of the record
reporting     tables, figures and pages of jobs and sweeps; references: the published figures beside ours
shared        gpu, heap, process, environment, disk
"""

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent / "conf"
"""Hydra's groups, and what else is configured."""
