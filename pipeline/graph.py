"""The DAG of a job: its nodes, and how a recipe adds them. Reads and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.contracts import UserError
from stages.index import STAGES
from stages.options import Options

BASELINE = "dense_eval"
"""The evaluation that all others are compared with."""


@dataclass(frozen=True)
class Node:
    """A stage with its options, in a DAG."""

    name: str
    stage: str
    config: Options
    inputs: dict[str, str] = field(default_factory=dict)
    """Role -> name of the node that fills it."""
    after: tuple[str, ...] = ()
    """Nodes that must not have failed before it runs, although it does not read them. Not part of its identity."""


Graph = dict[str, Node]
"""Nodes by name, in an order in which they can run."""


def add(graph: Graph, name: str, stage: str, options: Options, **inputs: str | None) -> str:
    """Adds a node; `inputs` gives each role the node that fills it, or None. Returns the node's name, or that of an
    earlier node that does the same work: one-shot pruning, for example, is the first rung of some ladders."""
    after = (BASELINE,) if STAGES[stage].needs_baseline and BASELINE in graph else ()
    node = Node(name, stage, options, {role: source for role, source in inputs.items() if source}, after)
    for known in graph.values():
        if (known.stage, known.config, known.inputs) == (stage, node.config, node.inputs):
            return known.name
    graph[name] = node
    return name


def ancestors(graph: Graph, name: str) -> set[str]:
    """Returns the node and everything it needs. Raises UserError for an unknown name (option `until`)."""
    if name not in graph:
        raise UserError(f"no node {name!r} in this run; there are: {', '.join(graph)}", "until")
    found = {name}
    for source in graph[name].inputs.values():
        found |= ancestors(graph, source)
    return found
