"""Breaks down one decoding step of the engine, and compares it with the time that reading its weights takes."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bench.bandwidth import ReadBandwidth
from engine.bench.roofline import gigabytes_per_second
from engine.step import Profile

OUTSIDE = "outside"
"""Part outside of the compiled step: Python, its call, and choosing the token."""


@dataclass(frozen=True)
class Phase:
    """A part of a step. Only products read weights."""

    name: str
    microseconds: float
    percent: float
    """Share of the step."""
    weight_bytes: int | None
    gigabytes_per_second: float | None


@dataclass(frozen=True)
class Breakdown:
    """Means over `steps` decoding steps."""

    steps: int
    phases: list[Phase]
    """Phases in the order of the step, then the part outside of it; together they are the step."""
    microseconds: float
    transformers_microseconds: float
    """Time of a step of the same model, decoded by transformers."""
    weight_bytes: int
    memory: ReadBandwidth
    """Read bandwidth with the same threads."""
    limit_microseconds: float
    """Time of reading the weights from memory."""


def breakdown(profile: Profile, step_s: float, transformers_step_s: float, memory: ReadBandwidth) -> Breakdown:
    """Computes the breakdown. `step_s` and `transformers_step_s` are the seconds of one step, measured from outside;
    the profile is of the same steps."""
    assert profile.steps > 0
    seconds = {name: total / profile.steps for name, total in profile.seconds.items()}
    seconds[OUTSIDE] = step_s - sum(seconds.values())
    phases = []
    for name, phase_s in seconds.items():
        read = profile.weight_bytes.get(name)
        rate = None if read is None else gigabytes_per_second(read, phase_s)
        phases.append(Phase(name, 1e6 * phase_s, 100 * phase_s / step_s, read, rate))
    weight_bytes = sum(profile.weight_bytes.values())
    return Breakdown(
        steps=profile.steps,
        phases=phases,
        microseconds=1e6 * step_s,
        transformers_microseconds=1e6 * transformers_step_s,
        weight_bytes=weight_bytes,
        memory=memory,
        limit_microseconds=1e-3 * weight_bytes / memory.gigabytes_per_second,
    )
