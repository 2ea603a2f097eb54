"""Describes the machine and the versions that a measurement belongs to, and the size of its caches."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import cpu, kernels, sources

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_FLUSH_BYTES = 128 << 20
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def describe(threads: int, runtimes: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the description for the record of a run. `runtimes` are those of the peers that took part."""
    import torch

    names = ("torch", "transformers", "numpy", "squarehead")
    return {
        "cpu": cpu.model(),
        "instructions": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "engine_kernels": None if kernels.unavailable() else kernels.available_isas()[-1],
        "last_level_cache_bytes": last_level_cache_bytes(),
        "threads": threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "engine_sources": sources.digest(),
            **{name: metadata.version(name) for name in names},
            **{runtime: _peer_version(runtime) for runtime in sorted(set(runtimes))},
        },
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Makes torch and the engine compute with `count` threads within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_level_cache_bytes(caches: Path = CACHES) -> int | None:
    """Returns the size that the kernel reports; None if it reports none."""
    found = {int(_read(index / "level")): _bytes(_read(index / "size")) for index in caches.glob("index*")}
    return found[max(found)] if found else None


def default_flush_bytes() -> int:
    """Returns how many bytes to read so that none of the weights stay in the last-level cache."""
    return max(LEAST_FLUSH_BYTES, 2 * (last_level_cache_bytes() or 0))


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _bytes(size: str) -> int:
    """Parses "107520K"."""
    return int(size[:-1]) * UNITS[size[-1]] if size[-1] in UNITS else int(size)


def _peer_version(runtime: str) -> str | None:
    """Returns the version pinned for the peer's side environment, else the installed one; None if there is none."""
    from engine.peers.environments import ENVIRONMENTS

    if runtime in ENVIRONMENTS:
        pins = ENVIRONMENTS[runtime].requirements.read_text(encoding="utf-8").splitlines()
        return ", ".join(pin for pin in pins if pin.replace("_", "").replace("-", "").startswith(runtime)) or None
    try:
        return metadata.version(runtime)
    except metadata.PackageNotFoundError:
        return None
