"""Hydra's side of the command: where the configuration is, what its resolvers are, and what it calls with a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline import CONF, credentials
from pipeline.command import arguments
from pipeline.command.errors import EXPECTED, JobFailedError, report_bug
from pipeline.command.options_help import group_options
from stages.contracts import UserError


def _runs_folder(runs: str) -> str:
    if not runs.strip():  # the folders below would lie at the root of the file system
        raise UserError("expected the name of a folder, got nothing", "runs")
    return runs


OmegaConf.register_new_resolver("either", lambda condition, one, other: one if condition else other, replace=True)
OmegaConf.register_new_resolver("runs_folder", _runs_folder, replace=True)
OmegaConf.register_new_resolver("group_options", group_options, replace=True)


class JobFunction:
    """Function that Hydra calls with each composed configuration, possibly in a process of a launcher."""

    error: Exception | None = None
    """The error of a single job. Hydra would print its own line for an error that it sees, before ours."""

    def __call__(self, composed: DictConfig) -> float | None:
        from pipeline.command.job import run_job  # not needed for --help

        try:
            return run_job(composed)
        except (JobFailedError, *EXPECTED) as error:
            self._fail(error)
        except Exception as error:
            if composed.dry_run:
                raise
            report_bug(error)
            self._fail(JobFailedError())
        return None

    def _fail(self, error: Exception) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise error  # the sweeper handles it
        self.error = error


def composed_for_python(overrides: Sequence[str]) -> tuple[dict[str, Any], Any, Path]:
    """Composes a job outside of the command line. Returns its configuration, Hydra's own section of it, and the folder
    of its record. Raises what `EXPECTED` names."""
    credentials.refuse_elsewhere(overrides)
    arguments.check_groups(overrides)
    public = credentials.withdraw_from(overrides)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        composed = hydra.compose("config", overrides=public, return_hydra_config=True)
    if composed.hydra.job.chdir:
        raise UserError("Python stays in its working directory; expected false", "hydra.job.chdir")
    values = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    found: dict[str, Any] = OmegaConf.to_container(values, resolve=True)  # type: ignore[assignment]
    return found, composed.hydra, Path(composed.hydra.run.dir).absolute()


def run() -> None:
    """Runs what the command line asks for. Raises what `EXPECTED` names, and JobFailedError."""
    job = JobFunction()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    if job.error:
        raise job.error
