"""Models come in checked and whole, from local files, packages and a hub; or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from stages.model import run as model
from stages.sources.identity import identity
from tests import tiny, tiny_hub, tiny_packages
from tests.running import PROJECT
from tests.tiny_sources import a_model, logits, made, problems, questions_of, refused, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")

# ---- model ----


def test_a_local_model_comes_back_with_equal_logits(llama, tmp_path):
    log = made(model, a_model(str(llama)), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(llama))
    text = tiny.sentences(1, 3)[0]
    ours, theirs = (AutoTokenizer.from_pretrained(folder)(text).input_ids for folder in (tmp_path / "out", llama))
    assert ours == theirs
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    facts = log.found
    assert facts["label"] == "tiny-llama"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["context"] == tiny.CONTEXT
    assert facts["vocabulary"] == tiny.VOCABULARY
    assert facts["source"] == identity(str(llama), "", "model.path")
    assert facts["parameters"] == facts["metrics"]["parameters"] == sum(p.numel() for p in tiny.build().parameters())


def test_a_model_is_stored_in_the_dtype_asked_for(llama, tmp_path):
    config = a_model(str(llama), dtype="bfloat16")
    made(model, config, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def spoilt(llama: Path, folder: Path, case: str) -> None:
    shutil.copytree(llama, folder)
    settings = json.loads((folder / "config.json").read_text())
    if case == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif case == "remote code":
        settings |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "modeling_strange.Strange"}}
        (folder / "modeling_strange.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    elif case == "quantized":
        settings["quantization_config"] = {"quant_method": "gptq"}
    elif case == "weights missing":
        settings["num_hidden_layers"] = 3
    elif case == "truncated":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-100])
    elif case == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(settings))
    if case == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("pickle", "pytorch_model.bin, and pickled weights are never opened"),
        ("remote code", "remote code, which is never run"),
        ("quantized", "quantized already"),
        ("weights missing", "weights are missing from its files, first model.layers.2"),
        ("truncated", "cannot load its weights"),
        ("no tokenizer", "cannot load its tokenizer"),
        ("no config", "no config.json"),
    ],
)
def test_a_model_that_cannot_be_loaded_safely_and_whole_is_refused(llama, tmp_path, case, says):
    spoilt(llama, tmp_path / "spoilt", case)
    error = refused(model, a_model(str(tmp_path / "spoilt")), tmp_path / "out")
    assert error.option == "model.path"
    assert says in error.message
    assert not (tmp_path / "spoilt" / "ran").exists()


def test_a_model_of_another_family_is_refused(tmp_path):
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    error = refused(model, a_model(str(tmp_path / "t5")), tmp_path / "out")
    assert error.option == "model.family"


def test_a_gguf_in_a_package_becomes_the_same_model(index, tmp_path):
    original = tiny_packages.llama_gguf(tmp_path / "Tiny-Instruct.Q4_1.gguf")
    content = (tmp_path / "Tiny-Instruct.Q4_1.gguf").read_bytes()
    files = {"llm_tiny/__init__.py": b"raise ImportError", "llm_tiny/Tiny-Instruct.Q4_1.gguf": content}
    config = a_model(tiny_packages.wheel(index, "llm-tiny", "1.0", files))
    log = made(model, config, tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(logits(tmp_path / "out"), original(torch.arange(3, 35)[None]).logits)
    assert log.found["label"] == "Tiny-Instruct"
    assert log.found["license"] == "MIT"
    assert log.found["source"]["package"] == "llm-tiny==1.0"
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("ab").input_ids
    assert ids == [tiny_packages.TOKENS.index("ab")]


# ---- hub ----


FROM_HUB = """
import json, sys
from pathlib import Path
from stages.contracts import UserError
from stages.data import run as data
from stages.data.spec import Data
from stages.model import run as model
from stages.model.spec import Model

class Facts(dict):
    def facts(self, **found):
        self.update(found)
    def note(self, line):
        pass

questions, tiny = map(json.loads, sys.argv[2:4])
for revision in sys.argv[4:]:
    for stage, config in (
        (data, Data.model_validate({**questions, "revision": revision})),
        (model, Model.model_validate({**tiny, "revision": revision})),
    ):
        found = Facts()
        out = Path(sys.argv[1]) / revision / stage.__name__
        out.mkdir(parents=True)
        try:
            stage.run(config, {}, out, found)
        except UserError as error:
            found["error"] = str(error)
        print(json.dumps(found))
"""


def test_a_hub_is_asked_once_and_then_offline_is_enough(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "tiny")
    (tmp_path / "tiny" / "pytorch_model.bin").write_bytes(b"never fetched")
    write_rows(tmp_path / "gsm" / "main" / "train.jsonl", problems(100))
    write_rows(tmp_path / "gsm" / "main" / "test.jsonl", problems(7))
    files = [{"split": name, "path": f"main/{name}.jsonl"} for name in ("train", "test")]
    card = {"license": "mit", "configs": [{"config_name": "main", "data_files": files}]}
    (tmp_path / "gsm" / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\nProblems.\n")

    def from_hub(out: str, endpoint: str, offline: bool, revisions: tuple[str, ...]) -> list[dict]:
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_DATASETS_OFFLINE": str(int(offline))}
        configs = questions_of("owner/gsm", subset="main"), a_model("owner/tiny")
        asked = [config.model_dump_json() for config in configs]
        command = [sys.executable, "-c", FROM_HUB, str(tmp_path / out), *asked, *revisions]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=PROJECT)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with tiny_hub.serve({"datasets/owner/gsm": tmp_path / "gsm", "models/owner/tiny": tmp_path / "tiny"}) as (
        hub,
        asked,
    ):
        online = from_hub("online", hub, False, ("main",))
    assert online[0]["source"] == {"hub": "owner/gsm", "commit": tiny_hub.COMMIT}
    assert online[0]["rows"]["test"] == 7
    assert online[0]["license"] == "mit"
    assert online[1]["label"] == "tiny"
    assert not [path for path in asked if path.endswith(".bin")]
    assert torch.equal(logits(tmp_path / "online" / "main" / model.__name__), logits(llama))
    offline = from_hub("offline", hub, True, ("main", "f" * 40))
    assert offline[:2] == online
    assert ["ffffffffffff" in found["error"] for found in offline[2:]] == [True, True]
