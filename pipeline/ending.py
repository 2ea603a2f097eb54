"""Ends a process on SIGTERM, as schedulers and containers send it.

A stage that checks `Log.should_stop` saves a checkpoint and stops; any other is interrupted at once, as by ctrl-C. In
both cases published results stay, and the same command resumes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

GRACE_SECONDS = 25
"""Time to save a checkpoint; Slurm kills after 30."""
EXIT_CODE = 128 + signal.SIGTERM
WATCH_SECONDS = 1.0


class Ending:
    """Whether this process was asked to end, and whether the running stage checks for it."""

    asked = False
    is_watched = False
    """The running stage has checked since it began."""

    @classmethod
    def should_stop(cls) -> bool:
        cls.is_watched = True
        return cls.asked

    @classmethod
    def stage_begins(cls) -> None:
        cls.is_watched = False


def listen() -> None:
    """Handles SIGTERM from now on. Does nothing outside of the main thread, where Python has no signals."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _on_sigterm)


def end_with_parent() -> None:
    """Ends this process, a worker of a launcher, when the launcher is gone: first as by SIGTERM, then for good."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(EXIT_CODE)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if Ending.asked or not Ending.is_watched:
        Ending.asked = True
        raise KeyboardInterrupt
    Ending.asked = True
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.alarm(GRACE_SECONDS)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
