"""Continue a prompt, or answer it as text-to-text models do, greedily, and stream the text to the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="OUT", help="what `export` has written")
    parser.add_argument("--prompt", required=True, help="as it is, without a chat template or prefix")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: as many as torch takes")


def run(args: argparse.Namespace) -> None:
    from transformers import TextStreamer

    from engine.architectures import check_length, reads_speech
    from engine.checkpoints import read_tokenizer
    from engine.errors import EngineError
    from engine.files import load
    from engine.generation import growing_cache

    tokenizer = read_tokenizer(args.folder)
    if tokenizer is None:
        raise EngineError(f"there is no tokenizer in {args.folder}; export a checkpoint that has one")
    if args.max_new_tokens < 1:
        raise EngineError(f"--max-new-tokens is {args.max_new_tokens}, expected at least 1")
    inputs = tokenizer(args.prompt, return_tensors="pt", return_token_type_ids=False)
    if not (length := inputs["input_ids"].shape[1]):
        raise EngineError("--prompt has no tokens; give it some text")
    model = load(args.folder, threads=args.threads)
    if reads_speech(model.config):
        raise EngineError(
            f"{args.folder} holds a speech model, which reads audio and no --prompt; from Python: "
            "engine.load(folder).generate(input_features=...)"
        )
    encodes = model.config.is_encoder_decoder
    if encodes and (hasattr(tokenizer, "src_lang") or getattr(tokenizer, "supported_language_codes", None)):
        raise EngineError(
            f"{args.folder} holds a model that needs language tokens, which --prompt cannot give; from Python: "
            "engine.load(folder).generate(..., forced_bos_token_id=...)"
        )
    check_length(model.config, max(args.max_new_tokens, length) if encodes else args.max_new_tokens + length)
    model.generate(
        **inputs,
        **({"past_key_values": growing_cache()} if encodes else {}),
        max_new_tokens=args.max_new_tokens,
        do_sample=False,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
    )
    sys.stdout.flush()
