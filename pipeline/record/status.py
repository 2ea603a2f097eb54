"""The status of a node, a job or a sweep: one vocabulary for plans, runs, sweeps, MLflow and reports."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Status of a node, a job or a sweep. Records on disk hold these values.

    HIT          a node whose result was stored before; nothing has to be done
    TO_RUN       planned, and not begun yet
    RUNNING      a process works on it
    DONE         ended well, and its result is stored
    FAILED       ended with an error, or could not be planned; `error` says why
    INTERRUPTED  begun, but its process ended first; the same command resumes
    NOT_RUN      never begun: one of its inputs failed, or the job or sweep ended before
    UNNEEDED     a node that is not stored, and that no running node reads
    """

    HIT = "hit"
    TO_RUN = "run"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    NOT_RUN = "not run"
    UNNEEDED = "unneeded"

    @property
    def is_stored(self) -> bool:
        return self in (Status.HIT, Status.DONE)

    @property
    def label(self) -> str:
        """Returns the word for people: `to run` where records say `run`."""
        return "to run" if self is Status.TO_RUN else self.value

    @property
    def style(self) -> str:
        """Returns the colour of its label in a terminal."""
        return _STYLES[self]


_STYLES = {
    Status.HIT: "cyan",
    Status.TO_RUN: "yellow",
    Status.RUNNING: "yellow",
    Status.DONE: "green",
    Status.FAILED: "red",
    Status.INTERRUPTED: "red",
    Status.NOT_RUN: "yellow",
    Status.UNNEEDED: "dim",
}
