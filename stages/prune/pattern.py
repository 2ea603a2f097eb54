"""Names of sparsity patterns in options. Torch-free."""

from __future__ import annotations


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Parses `"2:4"` to (2, 4): keep 2 of each 4. Raises ValueError on anything else."""
    keep, colon, group = pattern.partition(":")
    if not (colon and pattern.isascii() and keep.isdigit() and group.isdigit()):
        raise ValueError(f"expected `unstructured` or N:M (keep N of M), got {pattern!r}")
    return int(keep), int(group)
