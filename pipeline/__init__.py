"""Orchestration: compose, plan, run, track. Knows no torch.

commands      __main__, report, reproduce, dashboard; and those of store, sweeps, tracking
api           the same for notebooks and scripts
command       behind __main__: Hydra composes a configuration, a job is planned and run, errors are explained
the way       schema (a checked configuration) -> resolve -> recipes, steps (nodes of a graph) -> fingerprint,
              plan (hit, or run and why) -> preflight
              -> run (log, progress: what a running stage says) -> store -> record, table
estimating    what a plan will take: time, memory, disk
record        what jobs, sweeps and results are on disk, with their metrics: all others read it from here
store         results on disk: published whole, verified, deleted
sweeps        many jobs of one line: planned together, what they share made first, watched (hydra_plugins calls it)
tracking      MLflow, a view of the record
reporting     tables, figures and pages of runs and sweeps; references: the published figures beside ours
for all       gpu, heap, process, environment, disk
"""

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent / "conf"
"""Hydra's groups, and what else is configured."""
