"""Servers in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import ProxyHandler, build_opener

from tests.running import PROJECT, hear_interrupts


@contextmanager
def background(command: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process and its children, ended with the block."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **variables},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        try:
            get(url)
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no answer from {url}")


def get(url: str) -> bytes:
    with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
        found: bytes = answer.read()
        return found
