"""Every option is described once, in its section; `squarehead explain` and docs/options.md show that."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline import __main__
from pipeline.command import conf_files, options_page
from pipeline.command.explain import explain_name
from pipeline.command.option_table import NO_DEFAULT, options, sections
from stages.contracts import UserError
from tests.composed import composed


def test_the_committed_page_is_what_the_sections_say() -> None:
    committed = options_page.PAGE.read_text(encoding="utf-8")
    assert committed == options_page.page(), "python -m pipeline.command.options_page writes it anew"


def test_every_option_and_every_section_has_a_text() -> None:
    assert len(options()) > 150
    assert not [name for name, option in options().items() if not option.text]
    assert not [name for name, section in sections().items() if not section.text]


def test_defaults_are_those_that_hydra_composes() -> None:
    values = dict(conf_files.flatten(OmegaConf.to_container(composed(), resolve=False)))  # type: ignore[arg-type]
    assert values == conf_files.defaults()
    known: dict[str, Any] = {name: option.default for name, option in options().items()}
    assert {name for name in values if known.get(name, NO_DEFAULT) != values[name]} == {
        "data.columns.text", "data.columns.id",  # entries of one option
    }  # fmt: skip


def test_an_option_is_explained_with_its_type_default_and_files() -> None:
    said = explain_name(["finetune.lr"])
    assert said.startswith("finetune.lr: number > 0\n")
    assert "learning rate" in said
    assert "\ndefault: 0.0002\n" in said
    assert "  experiment=wikipedia_leads          0.0005\n" in said


def test_an_option_of_one_pruner_says_so() -> None:
    assert "only for prune.method=random" in explain_name(["prune.seed"])
    assert "prune.method=sparsegpt" in explain_name(["prune.damping"])


def test_sections_and_choices_are_explained() -> None:
    assert "  distill=squarehead (default): SquareHead" in explain_name(["distill"])
    assert "distill.kd           1" in explain_name(["distill=kd"])
    assert "experiment=quickstart: SmolLM2-135M" in explain_name(["experiment"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lr", "dense.training.lr or pretrain.lr or foundation.training.lr or finetune.lr"),
        ("finetune.learning_rate", "finetune.lr"),
        ("distil", "distill"),
    ],
)
def test_near_names_are_given_for_an_unknown_one(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*did you mean {near}"):
        explain_name([name])


def test_the_command_explains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["squarehead", "explain", "sparsity"])
    __main__.main()
    assert "Fraction of zeros" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["squarehead", "explain", "nonsense"])
    with pytest.raises(SystemExit, match="squarehead: no option, section or group 'nonsense'"):
        __main__.main()
