"""Computes the DAG of all jobs: which stages ran once for how many jobs, and what that saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.record.folders import JobRecord, Node
from pipeline.record.status import Status
from pipeline.reporting.results import Results
from stages.contracts import Metrics
from stages.index import described

LADDER = "prune, fine-tune"


@dataclass(frozen=True)
class Group:
    """The nodes of all jobs that play the same part in the DAG."""

    name: str
    layer: int
    """Its distance from the sources, which have 0."""
    inputs: tuple[str, ...]
    """Names of groups, without those that another input implies."""
    results: int
    """Number of distinct results that jobs requested."""
    there: int
    """Number of those that are stored (or were, when a job ended)."""
    jobs: int
    """Number of jobs that requested one."""
    uses: int
    """Number of requests: a ladder requests a result at each rung."""
    made: int
    """Number of results that these jobs made; the others were stored before."""
    seconds: float
    """Time to make each result once."""
    saved: float
    """Seconds that making them again for each job would have cost."""
    fingerprints: tuple[str, ...]


def collect(jobs: Sequence[JobRecord], before: Collection[str], results: Results) -> list[Group]:
    """Returns the groups in an order in which they can run. `before` holds the fingerprints of what was made for the
    jobs before they began."""
    ladders = any(_takes_turns(job, results) for job in jobs)
    members: dict[str, list[Node]] = {}
    edges: dict[str, dict[str, None]] = {}
    askers: dict[str, set[int]] = {}
    for at, job in enumerate(jobs):
        wanted = {name: node for name, node in job.nodes.items() if node.status != Status.UNNEEDED}
        named = {node.fingerprint: _group(node, ladders) for node in wanted.values()}
        for node in wanted.values():
            group = named[node.fingerprint]
            members.setdefault(group, []).append(node)
            askers.setdefault(group, set()).add(at)
            sources = _sources(node, results)
            edges.setdefault(group, {}).update({named[s]: None for s in sources if s in named and named[s] != group})
    groups = [_summed(name, nodes, len(askers[name]), before, edges, results) for name, nodes in members.items()]
    return sorted(groups, key=lambda group: group.layer)


def _takes_turns(job: JobRecord, results: Results) -> bool:
    """Returns whether a fine-tuned model is pruned further."""
    sparse = [node for node in job.nodes.values() if described(node.stage).model == "sparse"]
    trained = {node.fingerprint for node in sparse if described(node.stage).trains}
    return any(not described(node.stage).trains and trained & set(_sources(node, results)) for node in sparse)


def _sources(node: Node, results: Results) -> Collection[str]:
    """Returns the fingerprints of a node's inputs; none if they are unknown."""
    found = results.of(node)
    return (node.inputs if node.inputs is not None else found.inputs if found else {}).values()


def _group(node: Node, ladders: bool) -> str:
    """Returns the name of a node's group. Rungs of a ladder alternate, so pruning and fine-tuning are one group
    there."""
    if node.name.startswith("one_shot"):
        return "evaluate one-shot" if described(node.stage).makes is Metrics else "one-shot"
    if described(node.stage).model == "sparse":
        return LADDER if ladders else "fine-tune" if described(node.stage).trains else "prune"
    names = {
        "dense_eval": "evaluate dense",
        "dense_eval_q": "evaluate dense int8",
        "evaluate_q": "evaluate int8",
        "quantize_dense": "quantize dense",
        "model": "model",
    }
    if described(node.stage).makes is Metrics and node.name not in names and node.name != "evaluate":
        return "evaluate rungs"
    return names.get(node.name, node.stage)


def _summed(
    name: str, nodes: Sequence[Node], jobs: int, before: Collection[str], edges: Mapping[str, Mapping[str, None]],
    results: Results,
) -> Group:  # fmt: skip
    uses: dict[str, int] = {}
    for node in nodes:
        uses[node.fingerprint] = uses.get(node.fingerprint, 0) + 1
    stored = {node.fingerprint: found for node in nodes if (found := results.of(node))}
    return Group(
        name=name,
        layer=_layer(name, edges),
        inputs=tuple(source for source in edges.get(name, ()) if not _is_implied(source, name, edges)),
        results=len(uses),
        there=len(stored),
        jobs=jobs,
        uses=len(nodes),
        made=len({node.fingerprint for node in nodes if node.status == Status.DONE or node.fingerprint in before}),
        seconds=sum(found.seconds for found in stored.values()),
        saved=sum(found.seconds * (uses[print_] - 1) for print_, found in stored.items()),
        fingerprints=tuple(uses),
    )


def _is_implied(source: str, name: str, edges: Mapping[str, Mapping[str, None]]) -> bool:
    """Returns whether an input of a group is also an input, direct or not, of another input of it."""
    waiting = [other for other in edges[name] if other != source]
    while waiting:
        above = edges.get(waiting.pop(), {})
        if source in above:
            return True
        waiting += above
    return False


def _layer(name: str, edges: Mapping[str, Mapping[str, None]]) -> int:
    return 1 + max((_layer(source, edges) for source in edges.get(name, ())), default=-1)
