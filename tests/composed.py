"""Configurations composed as the command line composes them."""

from __future__ import annotations

import functools

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from pipeline import CONF
from pipeline.resolve import resolve
from pipeline.schema import Config, parse


def composed(*overrides: str, with_hydra: bool = False) -> DictConfig:
    """As Hydra composes it; `with_hydra`: with its own section."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides), return_hydra_config=with_hydra)


def config_of(*overrides: str) -> Config:
    """The same as `config` in a fraction of its time: only groups are composed, once for each choice of them; values
    are put in, unchecked whether Hydra would take them for an option that there is."""
    groups = tuple(line for line in overrides if (CONF / line.partition("=")[0].partition("@")[0]).is_dir())
    made = _grouped(groups).copy()
    for override in OverridesParser.create().parse_overrides([line for line in overrides if line not in groups]):
        OmegaConf.update(made, override.key_or_group, override.value(), force_add=True)
    return resolve(parse(OmegaConf.to_container(made, resolve=True)))  # type: ignore[arg-type]


@functools.cache
def _grouped(groups: tuple[str, ...]) -> DictConfig:
    return composed(*groups)


def config(*overrides: str) -> Config:
    """Parsed and resolved."""
    return resolve(parse(OmegaConf.to_container(composed(*overrides), resolve=True)))  # type: ignore[arg-type]
