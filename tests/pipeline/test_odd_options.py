"""Odd values of options, credentials, and what the operating system refuses: one line each, which names the option."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from engine import cpu
from pipeline.command import arguments
from pipeline.credentials import public, public_values, refuse_elsewhere, reveal, withdraw_from
from pipeline.os_errors import explained
from pipeline.recipes import build
from pipeline.resolve import resolve
from pipeline.schema import parse
from pipeline.sweeps.launchers import parallel
from stages.contracts import UserError
from tests.composed import config, config_of
from tests.running import call

SECRET = "s3cretPW"
ODD = [
    *(f"{option}={value}" for option in ("finetune.lr", "dense.training.lr", "prune.damping", "distill.temperature")
      for value in ("inf", "-inf", "nan")),
    *(f"{option}=inf" for option in ("finetune.clip_norm", "finetune.weight_decay", "finetune.divergence", "sparsity",
      "quantize.smooth", "prune.max_damping", "finetune.epochs", "distill.eps", "finetune.teacher_cache_gb")),
    *(f"{option}=true" for option in ("threads", "benchmark.threads", "finetune.steps", "sparsity", "calibrate.samples",
      "finetune.lr", "seed")),
    *(f"{option}=-1" for option in ("threads", "finetune.steps", "calibrate.samples", "benchmark.rounds", "seed",
      "evaluate.perplexity.windows", "quantize.skip_sensitive", "data.size")),
    *(f"{option}=2.5" for option in ("threads", "calibrate.samples", "finetune.batch_size", "benchmark.warmup")),
    *(f"{option}=100000" for option in ("threads", "benchmark.threads")),
    *(f"{option}=many" for option in ("threads", "finetune.lr", "benchmark.enabled", "prune.method", "device")),
    "distill.kd=1e300", "finetune.betas.0=2", "finetune.betas.1=true", "finetune.betas.1=inf",
    "tracking.experiment=''", f"tracking.experiment={'x' * 3000}", "cache.folder=''", "runs=''",
    "prune.skip.0='('", "quantize.skip.0='['", "benchmark.backends=[]", "benchmark.backends=[torch_fp64]",
    "prune.pattern='0:4'", "prune.pattern='4:4'",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_value_is_refused_in_one_line_by_the_name_that_the_user_gave(odd: str) -> None:
    option, _, _ = odd.partition("=")
    override = odd
    for number in ("0", "1"):
        if option.endswith(f".{number}"):
            option = option.removesuffix(f".{number}")
            value = odd.partition("=")[2]
            override = f"{option}=[{value if number == '0' else '0.9'}, {'0.9' if number == '0' else value}]"
    with pytest.raises(UserError) as caught:
        build(config_of(override))
    assert caught.value.option.startswith(option)
    assert "\n" not in str(caught.value)


def test_a_cluster_may_have_more_cores_than_the_machine_that_plans() -> None:
    many = cpu.most_threads() + 1
    parsed = parse(config().model_dump()).model_copy(update={"threads": many})
    assert resolve(parsed, 0).threads == many
    with pytest.raises(UserError, match="threads"):
        resolve(parsed, 1)


@pytest.mark.parametrize("jobs", [0, 100_000])
def test_a_launcher_has_a_sensible_number_of_jobs(jobs: int) -> None:
    launcher = OmegaConf.create({"_target_": "x.JoblibLauncher", "n_jobs": jobs})
    with pytest.raises(UserError, match=r"hydra.launcher.n_jobs"):
        parallel(SimpleNamespace(launcher=launcher))


@pytest.mark.parametrize(
    "address",
    [
        f"http://admin:{SECRET}@host:5000/x", f"https://{SECRET}@host", f"mysql+pymysql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}/with/slash@h/db", f"postgresql://u:{SECRET}@more@h/db",
        f"http\\://admin\\:{SECRET}@host\\:5000", f"https://host/x?y=1&access_token={SECRET}",
        f"https://host/?sig={SECRET}", f"[http://one,http://a:{SECRET}@two]",
        f"https://host/#access_token={SECRET}", f"https://host/x?authorization=Bearer%20{SECRET}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3D{SECRET}%3B",
        f"http\\textbackslash{{}}://a\\textbackslash{{}}:{SECRET}@host",
        f"https://host/callback?code={SECRET}&state=1", f"https://host/x?y=1&auth_code={SECRET}",
        f"host/x?key={SECRET}",
        f"https://host/x?X-Amz-Security-Token={SECRET}", f"https://host/x?AWSAccessKeyId={SECRET}",
        f"https://host/?session_id={SECRET}", f"admin:{SECRET}@host:5000/x", f"admin:{SECRET}@127.0.0.1",
        f"admin\\:{SECRET}@host", f"admin:{SECRET}/x@host", f"[http://one,a:{SECRET}@two]",
        f"hf_{SECRET}abcdefghijklmnopqr", f"ghp_{SECRET}abcdefghijklmnopqr", f"HF_TOKEN={SECRET}",
        f"AWS_SECRET_ACCESS_KEY: {SECRET}", f"{{HF_TOKEN: {SECRET}}}", f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Basic {SECRET}'}}", f"MLFLOW_TRACKING_PASSWORD='{SECRET}'",
    ],
)  # fmt: skip
def test_credentials_are_hidden_in_texts_and_found_in_options(address: str) -> None:
    assert SECRET not in public(f"MLflow failed at '{address}', away")
    assert SECRET not in str(public_values({"a": [address], "b": (address, 1)}))
    with pytest.raises(UserError, match=r"^model.path: ") as caught:
        refuse_elsewhere(["seed=1", f"++model.path={address}"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("option", ["hydra.job.env_set.HF_TOKEN", "+hydra.job.env_set.MLFLOW_TRACKING_PASSWORD"])
def test_secrets_of_the_environment_are_set_in_the_environment(option: str) -> None:
    with pytest.raises(UserError, match="set it in the environment") as caught:
        refuse_elsewhere([f"{option}={SECRET}"])
    assert caught.value.option == option.lstrip("+")
    refuse_elsewhere(["hydra.job.env_set.OMP_NUM_THREADS=4", "benchmark.new_tokens=4", "tokens=3", "tracking.uri=x"])


@pytest.mark.parametrize(
    "address",
    [
        f"http://admin:{SECRET}@host", f"https://host/?access_token={SECRET}", f"postgresql://u:\"{SECRET}@h/db",
        f"postgresql://u:<{SECRET}>@h/db", f"http://u:two {SECRET}@h",
    ],
)  # fmt: skip
def test_the_address_of_the_server_is_used_and_not_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUAREHEAD_TRACKING_URI", "")
    (left,) = withdraw_from([f"tracking.uri='{address}'"])
    assert SECRET not in left
    assert reveal(left.partition("=")[2].strip("'")) == address
    assert SECRET not in public(f"cannot connect to {address}: refused")


@pytest.mark.parametrize(
    "address",
    ["http://host:5000/a@b", "sqlite:////x/mlflow.db?timeout=60", "pypi:name==1#sha256=ab",
     "${oc.env:MLFLOW_TRACKING_URI}", "s3://bucket/key", "a folder of 'mine'", "file:///a folder/of 'mine'",
     "git@github.com:owner/name", "/a/b:c@d", "Q: who? A: a@b.c", "https://host/?keyword=x&encoding=utf-8&author=me&lang_code=de",
     "C:/x@y", "{question}: {answer}", "image@sha256:0123", "hf_config", "the basic normaliser", "TOKENS: 5",
     "${oc.env:HF_TOKEN}", "PRIMARY KEY: id"],
)  # fmt: skip
def test_what_holds_no_credentials_is_left_alone(address: str) -> None:
    assert public(address) == address
    refuse_elsewhere([f"model.path={address}"])


def test_the_system_s_refusals_name_the_option_of_the_folder(tmp_path: Path) -> None:
    typed = [f"runs={tmp_path}/runs", f"cache.folder={tmp_path}/cache"]
    denied = explained(PermissionError(13, "Permission denied", str(tmp_path / "runs" / "jobs" / "job.json")), typed)
    assert denied.option == "runs"
    assert "Permission denied" in str(denied)
    full = explained(OSError(28, "No space left on device", str(tmp_path / "cache" / "remembered.json")), typed)
    assert full.option == "cache.folder"
    assert "is full" in str(full)


def line(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A line on data that are there and a model that is none."""
    (tmp_path / "data.jsonl").write_text('{"id": "1", "text": "a"}\n')
    (tmp_path / "taken").write_text("a file")
    flags = [word for word in overrides if word == "-m"]
    words = [*flags, f"runs={tmp_path}/runs", f"cache.folder={tmp_path}/cache", "data=text",
             f"data.path={tmp_path}/data.jsonl", f"model.path={tmp_path}", "until=data",
             *(word for word in overrides if word != "-m")]  # fmt: skip
    found = call(words, tmp_path, DATABASE=f"http://admin:{SECRET}@127.0.0.1:9")
    assert "Traceback" not in found.stdout + found.stderr
    return found


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tracking.uri=${oc.env:DATABASE}"], "tracking.uri"),
        (["-m", "seed=0,1", f"tracking.uri=http://admin:{SECRET}@127.0.0.1:9"], "tracking.uri"),
        ([f"data.path=https://{SECRET}@host/data.jsonl", "tracking=none"], "data.path"),
    ],
)
def test_credentials_are_in_no_file_and_on_no_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    found = line(tmp_path, *overrides)
    assert found.returncode == 1
    assert says in found.stderr
    assert SECRET not in found.stdout + found.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["runs=taken", "tracking=none"], "runs: "),
        (["-m", "seed=0,1", "hydra.sweep.dir=taken", "tracking=none"], "hydra.sweep.dir: "),
        (["cache.folder=taken", "tracking=none"], "cache.folder"),
        (["runs=", "tracking=none"], "runs: expected the name of a folder"),
        (["-m", "seed=0,1", "runs=", "tracking=none"], "runs: expected the name of a folder"),
        (["tracking.uri=nodialect://host/db"], "tracking.uri"),
        (["tracking.uri=sqlite://"], "tracking.uri"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    found = line(tmp_path, *overrides)
    assert found.returncode == 1
    assert says in found.stderr.strip().splitlines()[-1]


def test_a_dry_run_makes_no_folder_of_runs(tmp_path: Path) -> None:
    found = line(tmp_path, "dry_run=true", "tracking=none")
    assert found.returncode == 0, found.stderr
    assert not (tmp_path / "runs").exists()


def test_a_sweep_over_all_options_of_a_group_is_planned(tmp_path: Path) -> None:
    found = line(tmp_path, "-m", "distill=glob(*)", "dry_run=true", "tracking=none")
    assert found.returncode == 0, found.stderr
    assert "4 jobs" in found.stdout


@pytest.mark.parametrize(
    "word",
    ["task=null", "pretrain=NULL", "model=1", "+row=true", "hydra/launcher=null", "data@test_data=null", "task=a,null"],
)
def test_a_group_that_gets_no_name_is_refused_by_its_own(word: str) -> None:
    with pytest.raises(UserError, match="leaves the group out") as error:
        arguments.check_groups(["sparsity=0.5", word])
    assert error.value.option == word.lstrip("+").partition("=")[0]


def test_other_options_may_be_null_or_numbers() -> None:
    arguments.check_groups(
        ["sparsity=0", "quantize.skip=null", "distill=kd", "~task", "model=whisper", "hydra.verbose=true"]
    )
