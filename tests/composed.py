"""Configurations composed as the command line composes them."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pipeline.graph import resolve
from pipeline.schema import Config, parse

CONF = Path(__file__).resolve().parent.parent / "conf"


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """As Hydra composes it; `with_hydra`: with its own section."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)


def config(*overrides: str) -> Config:
    """Parsed and resolved."""
    return resolve(parse(OmegaConf.to_container(composed(*overrides), resolve=True)))  # type: ignore[arg-type]
