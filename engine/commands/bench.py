"""Measure an engine folder at batch 1: a prompt of random tokens, then greedy decoding with the key-value cache. For an
encoder-decoder the prompt is the encoder's input.

Prints medians over rounds and their range. Steps are decoded by transformers alone and, if the architecture allows it,
by the engine's own decoding step. "MB read" is how much of the weights one decoded token reads. Then follow the phases
of the engine's step (means) and the time of reading its weights from memory.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.bench import options, output

if TYPE_CHECKING:
    from engine.bench.breakdown import Breakdown
    from engine.bench.decoding import Prompt, Runner
    from engine.bench.rounds import Contender, Spread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT", help="what `export` has written")
    for name, default, what in (
        ("--prompt-tokens", 128, "of the prompt"),
        ("--new-tokens", 32, "decoded in each round"),
        ("--rounds", 5, "measured"),
        ("--warmup", 1, "rounds before them"),
        ("--threads", 2, "of torch and the kernels"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what} (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures here too")


def run(args: argparse.Namespace) -> None:
    from engine import kernels
    from engine.bench import machine
    from engine.bench.weight_bytes import bytes_per_token
    from engine.files import load

    options.check_least(args, 1, "prompt_tokens", "new_tokens", "rounds", "threads")
    options.check_least(args, 0, "warmup")
    options.check_out(args.json)
    with Console(stderr=True).status(f"loading {args.folder}"):
        model = load(args.folder, threads=args.threads, compiled_steps=False)
    measured = _measure(model, args)
    read = bytes_per_token(model)
    isa = kernels.available_isas()[-1]
    console = Console(highlight=False)
    title = f"{args.folder}: {output.threads_text(args.threads)}, {isa}, prompt of {args.prompt_tokens} tokens"
    console.print(f"{title}, {args.rounds} interleaved rounds", soft_wrap=True)
    console.print(_rates(measured, read))
    if measured.reason:
        console.print(f"engine: n/a ({measured.reason})", markup=False, soft_wrap=True)
    if measured.step:
        _print_step(console, measured.step)
    if args.json:
        record: dict[str, Any] = {"folder": str(args.folder), "machine": machine.describe(args.threads)}
        record |= {key: getattr(args, key) for key in ("prompt_tokens", "new_tokens", "warmup")}
        record |= {"weight_bytes": read, "engine_unavailable": measured.reason}
        record["prefill_ms"] = {name: spread.values for name, spread in measured.prefill_ms.items()}
        record["step_microseconds"] = {name: spread.values for name, spread in measured.step_us.items()}
        record["engine_step"] = asdict(measured.step) if measured.step else None
        output.write(record, args.json)


@dataclass
class Measured:
    prefill_ms: dict[str, Spread]
    step_us: dict[str, Spread]
    """Time of one decoded token, by the decoder."""
    step: Breakdown | None
    reason: str | None
    """Why the engine cannot decode this model."""


def _measure(model: Any, args: argparse.Namespace) -> Measured:
    from engine import decoder
    from engine.architectures import check_length, reads_speech
    from engine.bench import bandwidth, machine
    from engine.bench.breakdown import breakdown
    from engine.bench.decoding import EngineRunner, TransformersRunner
    from engine.bench.rounds import Spread, interleave
    from engine.errors import EngineError

    if reads_speech(model.config):
        raise EngineError(
            f"{args.folder} holds a speech model, which reads audio and no prompt of tokens; measure it with the "
            "benchmark of the pipeline"
        )
    context = args.prompt_tokens + args.new_tokens
    check_length(model.config, context)
    prompt = _random_prompt(model, args.prompt_tokens)
    contenders = [_contender("transformers", TransformersRunner(model), prompt, args.new_tokens)]
    native = None
    if not (reason := decoder.unsupported(model)):
        native = decoder.of(model, context)
        contenders.append(_contender("engine", EngineRunner(native), prompt, args.new_tokens))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("bench", total=(args.warmup + args.rounds) * len(contenders))
        for number, contender in interleave(contenders, args.warmup, args.rounds):
            progress.advance(task)
            if native and number == -1 and contender.name == "engine":
                native.profile()  # forgets the warm-up
    prefill_ms = {c.name: Spread([1e3 * prefill_s for prefill_s, _ in c.rounds]) for c in contenders}
    step_us = {c.name: Spread([1e6 * step_s for _, step_s in c.rounds]) for c in contenders}
    step = None
    if native:
        memory = bandwidth.measure(args.threads, machine.default_flush_bytes())
        mean_s = {name: 1e-6 * spread.mean for name, spread in step_us.items()}
        step = breakdown(native.profile(), mean_s["engine"], mean_s["transformers"], memory)
    return Measured(prefill_ms, step_us, step, reason)


def _random_prompt(model: Any, length: int) -> Prompt:
    """Returns the same tokens on every call; if there is an encoder, it reads them."""
    import torch

    from engine.bench.decoding import Prompt

    ids_1T = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    if not model.config.is_encoder_decoder:
        return Prompt(ids_1T)
    start_11 = torch.tensor([[model.generation_config.decoder_start_token_id]])
    return Prompt(start_11, {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)})


def _contender(name: str, runner: Runner, prompt: Prompt, steps: int) -> Contender[tuple[float, float]]:
    """Returns a contender whose rounds are the seconds of the prompt, and those of one step."""
    from engine.bench.decoding import greedy
    from engine.bench.rounds import Contender

    def measure() -> tuple[float, float]:
        times, _ = greedy(runner, prompt, steps)
        return times[1] - times[0], (times[-1] - times[1]) / steps

    return Contender(name=name, measure=measure)


def _rates(measured: Measured, read: int) -> Table:
    from engine.bench.rounds import Spread

    made = output.table("steps by", "prefill ms", "decode tokens/s", "MB read", "GB/s")
    for name, spread in measured.step_us.items():
        rate = Spread([1e6 / value for value in spread.values])
        prefill_ms = str(measured.prefill_ms[name])
        made.add_row(name, prefill_ms, str(rate), f"{read / 1e6:.1f}", f"{read * rate.median / 1e9:.1f}")
    return made


def _print_step(console: Console, step: Breakdown) -> None:
    table = output.table("of a step", "µs", "%", "MB read", "GB/s")
    for phase in step.phases:
        table.add_row(
            phase.name,
            f"{phase.microseconds:.1f}",
            f"{phase.percent:.1f}",
            "" if phase.weight_bytes is None else f"{phase.weight_bytes / 1e6:.2f}",
            "" if phase.gigabytes_per_second is None else f"{phase.gigabytes_per_second:.1f}",
        )
    rate = step.weight_bytes / step.microseconds / 1e3
    table.add_row("all", f"{step.microseconds:.1f}", "100.0", f"{step.weight_bytes / 1e6:.2f}", f"{rate:.1f}")
    console.print(f"\nthe engine's step, mean of {step.steps}:")
    console.print(table)
    more = step.transformers_microseconds - step.microseconds
    console.print(
        f"a step by transformers takes {step.transformers_microseconds:.0f} µs, {more:+.0f} µs: Python and torch "
        "around the converted products, and what was not converted",
        soft_wrap=True,
    )
    console.print(
        f"reading {step.weight_bytes / 1e6:.1f} MB from memory at {step.memory.gigabytes_per_second:.1f} GB/s "
        f"({step.memory.method}) takes {step.limit_microseconds:.0f} µs: the step takes "
        f"{step.microseconds / step.limit_microseconds:.2f} times that (below 1: caches hold a part)",
        soft_wrap=True,
    )
