"""Configurations of models and data from elsewhere, rows to write there, and the stages that fetch them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from stages.contracts import UserError
from stages.data.spec import Data
from stages.model.spec import Model
from tests.composed import CONF
from tests.running import PROJECT

SPLITS = ("train", "validation", "test")


def a_model(path: object, **more) -> Model:
    return Model(**{"path": str(path), "revision": "", "family": "causal_lm", "dtype": "float32", **more})


def texts_of(path: object, **more) -> Data:
    return _data(path, {"format": "text", "columns": {"text": "text", "id": "id"}, **more})


def questions_of(path: object, **more) -> Data:
    columns = {"question": "question", "answer": "answer", "id": "question"}
    return _data(path, {"format": "qa", "columns": columns, **more})


def _data(path: object, changes: dict) -> Data:
    settings = yaml.safe_load((PROJECT / "conf" / "data" / "text.yaml").read_text())
    return Data.model_validate({**settings, "path": str(path), **changes})


class Record:
    def __init__(self) -> None:
        self.found: dict = {}
        self.notes: list[str] = []

    def facts(self, **found) -> None:
        self.found |= found

    def note(self, line: str) -> None:
        self.notes.append(line)


def made(stage, config, out: Path) -> Record:
    out.mkdir()
    log = Record()
    log.found["metrics"] = stage.run(config, {}, out, log)
    return log


def refused(stage, config, out: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        made(stage, config, out)
    assert "\n" not in str(caught.value)
    return caught.value


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def texts(count: int) -> list[dict]:
    return [{"id": f"row {i}", "text": f"text number {i}"} for i in range(count)]


def problems(count: int) -> list[dict]:
    return [{"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(count)]


def logits(folder: Path) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return loaded(torch.arange(3, 35)[None]).logits


def choice(name: str, **changes: object) -> Data:
    return Data.model_validate({**yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text()), **changes})
