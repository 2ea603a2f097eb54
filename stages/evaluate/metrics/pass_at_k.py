"""pass@k: the probability that one of k programs that a model writes passes its tests (arXiv 2107.03374), for
HumanEval, MBPP and generated functions. The programs run in child processes that can only compute."""

from __future__ import annotations

import ast
import math
import re
from itertools import groupby
from typing import Any

from pydantic import Field, model_validator

from stages.contracts import Log, UserError
from stages.evaluate import answers
from stages.evaluate.answers import OPTION, Answer, AnswerOptions
from stages.evaluate.code import running
from stages.evaluate.metrics import Judged, Measurement

_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PROBE = "import collections, heapq, math, re, statistics\nassert math.sqrt(4) == 2"


class PassAtKOptions(AnswerOptions):
    max_new_tokens: int = Field(256, ge=1)
    """Longest program."""
    samples: int = Field(1, ge=1)
    """Programs for each problem."""
    k: list[int] = Field([1], min_length=1)
    """Values of k; pass@k is the probability that one of k programs passes."""
    stops: list[str] = Field(["\nclass", "\ndef", "\n#", "\nif", "\nprint"])
    """A program ends before the first of these; the default is HumanEval's."""
    seconds: int = Field(5, ge=1)
    """Processor time of a program with its tests, in seconds."""
    at_once: int = Field(1, ge=1)
    """Programs that run side by side."""

    @model_validator(mode="after")
    def _enough_samples(self) -> PassAtKOptions:
        if max(self.k) > self.samples or min(self.k) < 1:
            raise ValueError(f"k={self.k} needs as many samples, got samples={self.samples}")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples={self.samples} of greedy decoding are the same; give a temperature")
        return self


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Returns the unbiased estimate from `samples` programs of which `passed` did."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def completion(text: str, stops: list[str]) -> str:
    """Returns the program in an answer: its first fenced block, else the text up to where another one begins."""
    if fenced := _FENCE.search(text):
        return fenced.group(1)
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class PassAtK:
    options = PassAtKOptions

    def check(self, options: PassAtKOptions, judged: Judged) -> None:
        if not judged.run_code:
            raise UserError(
                "pass_at_k runs programs that a model wrote, in children without network and files where the system "
                "allows it, with limits of time, memory and processes; to allow that, set evaluate.run_code=true",
                "evaluate.run_code",
            )
        if any("program" not in row for row in answers.rows_of_items(options, judged)):
            raise UserError("pass_at_k asks for functions with tests (prompt_format function or mbpp)", OPTION)
        if not running.run(_PROBE, 20).passed:
            raise UserError("programs cannot be run here; as root, Python's own files must be readable by all", OPTION)
        answers.questions(options, judged)

    def measure(self, options: PassAtKOptions, judged: Judged, log: Log) -> dict[str, Measurement]:
        """Returns `pass_at_<k>`, and `code_parses`, the share of programs that are valid Python and not empty."""
        if not judged.run_code:
            self.check(options, judged)
        found = answers.answer(options, judged, log, options.samples)
        bodies = [completion(given.text, options.stops) for given in found]
        frames = [given.question.row["program"] for given in found]
        programs = [frame["before"] + body + frame["after"] for frame, body in zip(frames, bodies, strict=True)]
        verdicts = running.run_all(programs, options.seconds, options.at_once)
        parses = [
            float(bool(body.strip()) and _parses(frame["before"] + body))
            for frame, body in zip(frames, bodies, strict=True)
        ]
        rows = [
            {"id": given.question.id, "score": float(verdict.passed), "timed_out": verdict.timed_out, "output": body}
            for given, verdict, body in zip(found, verdicts, bodies, strict=True)
        ]
        answers.save(judged, "pass_at_k", rows)
        passed = [sum(verdict.passed for _, verdict in group) for group in _by_problem(found, verdicts)]
        known: dict[str, Any] = {
            **answers.protocol(options, judged, found), "samples": options.samples, "seconds": options.seconds,
            "stops": options.stops, "isolation": sorted({verdict.isolation for verdict in verdicts}),
        }  # fmt: skip
        measured = {}
        for k in options.k:
            value, error = answers.mean_and_error([pass_at_k(options.samples, count, k) for count in passed])
            measured[f"pass_at_{k}"] = Measurement(value, error, True, {"kind": f"pass@{k}", **known}, "fraction")
        value, error = answers.mean_and_error(parses)
        measured["code_parses"] = Measurement(value, error, True, {"kind": "is Python", **known}, "fraction")
        return measured


def _by_problem(found: list[Answer], verdicts: list[running.Verdict]) -> list[list[tuple[Answer, running.Verdict]]]:
    pairs = zip(found, verdicts, strict=True)
    return [list(group) for _, group in groupby(pairs, key=lambda pair: id(pair[0].question))]


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


METRIC = PassAtK()
