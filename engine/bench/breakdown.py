"""Where one decoding step of the engine goes, and how far it stands from the time that reading its weights takes."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bench.bandwidth import ReadBandwidth
from engine.bench.roofline import gigabytes_per_second
from engine.step import Profile

OUTSIDE = "outside"
"""Of the compiled step: Python, its call, and choosing the token."""


@dataclass(frozen=True)
class Phase:
    """A part of a step. Only products read weights."""

    name: str
    microseconds: float
    percent: float
    """Of the step."""
    weight_bytes: int | None
    gigabytes_per_second: float | None


@dataclass(frozen=True)
class Breakdown:
    """Means over `steps` decoding steps."""

    steps: int
    phases: list[Phase]
    """In the order of the step, then what is outside of it; together they are the step."""
    microseconds: float
    transformers_microseconds: float
    """A step of the same model, decoded by transformers."""
    weight_bytes: int
    memory: ReadBandwidth
    """With the same threads."""
    limit_microseconds: float
    """What reading the weights from memory takes."""


def breakdown(profile: Profile, step_s: float, transformers_step_s: float, memory: ReadBandwidth) -> Breakdown:
    """`step_s`, `transformers_step_s`: seconds of one step, measured from outside; the profile is of the same steps."""
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
