"""lm-eval tasks that come with squarehead, one YAML each.

A task reads the files of a `Corpus` artifact. Its caller loads the YAML, puts the artifact's paths into
`dataset_kwargs.data_files` and passes the whole dictionary to lm-eval.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
