"""Configurations composed as the command line composes them."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.graph import resolve
from pipeline.schema import Config, parse

CONF = Path(__file__).resolve().parent.parent / "conf"


def config(*overrides: str) -> Config:
    """Parsed and resolved."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = compose("config", overrides=list(overrides))
    return resolve(parse(OmegaConf.to_container(composed, resolve=True)))  # type: ignore[arg-type]
