"""Convert a checkpoint into a folder that the engine runs.

CHECKPOINT is a folder in hub format, in floating point or quantized by this project's pipeline. The engine skips zeros
among the weights of its linears. The int8 linears of a quantized checkpoint become the engine's unchanged, and no
others: layers that are in floating point, such as sensitive ones, stay so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from engine.commands import info

DTYPES = ("fp32", "bf16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument("--dtype", choices=DTYPES, required=True, help="of the weights; int8: activations too")
    parser.add_argument("--head", choices=DTYPES, default="fp32", help="of the output head (default: %(default)s)")
    parser.add_argument("--keep-dense", action="store_true", help="store zeros too: what sparsity is compared with")


def run(args: argparse.Namespace) -> None:
    console = Console(stderr=True)
    with console.status("importing"):
        from transformers.utils import logging

        from engine.checkpoints import read_checkpoint, read_feature_extractor, read_tokenizer
        from engine.conversion import convert
        from engine.files import check_out, save

    logging.disable_progress_bar()
    check_out(args.out)
    with console.status(f"reading {args.checkpoint}"):
        model, quantized = read_checkpoint(args.checkpoint)
        tokenizer, extractor = read_tokenizer(args.checkpoint), read_feature_extractor(args.checkpoint)
    with console.status("packing"):
        model = convert(
            model,
            dtype=args.dtype,
            head=args.head,
            quantized=quantized,
            keep_dense=args.keep_dense,
            names=list(quantized) or None,
        )
    with console.status(f"writing {args.out}"):
        save(model, args.out, tokenizer, extractor)
    info.show(args.out)
