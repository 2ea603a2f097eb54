"""The sweeper, which Hydra finds by itself: it plans all jobs of a sweep, makes what they share once and first, then
passes them to the chosen launcher.

This folder has no `__init__.py`: other packages have plugins in the same namespace. Hydra imports the module at every
start, so it imports little; and before its name is known, so annotations must not be texts.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class SquareheadSweeperConf:
    """The options of Hydra's basic sweeper."""

    _target_: str = "hydra_plugins.squarehead_sweeper.SquareheadSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="squarehead", node=SquareheadSweeperConf, provider="squarehead"
)


class SquareheadSweeper(Sweeper):  # type: ignore[misc]
    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        self.max_batch_size = max_batch_size
        """Jobs that are passed to the launcher at once; None: all."""
        self.params = params or {}
        """Options and their values from an experiment; the command line takes precedence."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from pipeline.sweeps.launch import ReportedJob

        self.hydra_context = hydra_context
        self.config = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=ReportedJob(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from pipeline.sweeps.launch import run_sweep

        asked = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        return run_sweep(asked, self.config, self.hydra_context.config_loader, self.launcher, self.max_batch_size)
