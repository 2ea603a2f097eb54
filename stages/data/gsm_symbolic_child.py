"""The child process of `gsm_symbolic`: `python -S gsm_symbolic_child.py WHEEL SIZE SEED` prints one JSON row a line."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType

_PACKAGES = (
    "reasoning_gym",
    "reasoning_gym.coaching",
    "reasoning_gym.arithmetic",
    "reasoning_gym.arithmetic.gsm_symbolic",
)


def rows(wheel: str, size: int, seed: int) -> Iterator[dict[str, str]]:
    for name in _PACKAGES:  # packages without their __init__, which would import every other generator
        package = ModuleType(name)
        package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    generator = importlib.import_module("reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic")
    items = generator.GSMSymbolicDataset(generator.GSMSymbolicDatasetConfig(seed=seed, size=size))
    for index, template in enumerate(items.task_indices):
        item = items[index]
        # some chains of thought end in `#### 36.0` where the answer is 36
        thought = item["metadata"]["answer_cot"].rpartition("####")[0].rstrip()
        yield {
            "question": item["question"],
            "answer": f"{thought}\n#### {item['answer']}",
            "template": f"template {template}",
        }


if __name__ == "__main__":
    for row in rows(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
        print(json.dumps(row))
