"""Builds the engine's kernels; everything else about the package stands in pyproject.toml.

Without a C++ compiler the package installs all the same, and the engine says that it has no kernels.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent))
from engine.sources import NATIVE, digest

flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
threads = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has no OpenMP

setup(
    ext_modules=[
        Extension(
            "engine._kernels",
            sources=sorted(str(path.relative_to(Path(__file__).parent)) for path in NATIVE.glob("*.cpp")),
            depends=sorted(str(path.relative_to(Path(__file__).parent)) for path in NATIVE.glob("*.h")),
            define_macros=[("SQUAREHEAD_SOURCES", f'"{digest()}"')],
            extra_compile_args=flags + threads,
            extra_link_args=threads,
            optional=True,
        )
    ]
)
