"""The script of a peer's process: `serve.py MODULE` answers requests to that module's `Runtime`, one JSON line each.

{"method": NAME, "arguments": {...}} -> {"answer": JSON} or {"error": one line}. The method `seconds` is answered here:
it times the runtime's `run_layer`; `ping` does nothing. Ends when its parent closes the pipe, or dies.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def seconds(call: Callable[[], object], flush_bytes: int) -> float:
    """Returns the seconds of one call, after `flush_bytes` of other memory were read."""
    if flush_bytes:
        _other_memory(flush_bytes).sum()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@functools.cache
def _other_memory(count: int) -> Any:
    import numpy as np

    return np.ones(count // 8, np.uint64)


def main() -> None:
    # libraries print; the answers get a pipe of their own, and standard output goes where the errors go
    with os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as answers:
        os.dup2(2, 1)
        runtime = importlib.import_module(sys.argv[1]).Runtime()
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if request["method"] == "seconds":
                    answer: Any = seconds(runtime.run_layer, **request["arguments"])
                elif request["method"] == "ping":
                    answer = None
                else:
                    answer = getattr(runtime, request["method"])(**request["arguments"])
                reply = {"answer": answer}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
