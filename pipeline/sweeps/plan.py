"""All jobs of a sweep, composed and planned before the first of them runs: what each would run, and what they share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline.credentials import public
from pipeline.plan import Plan, Planned, Stores, make_plan
from pipeline.recipes import build
from pipeline.resolve import resolve
from pipeline.schema import Config, parse
from pipeline.sweeps.sweep import SweepJob, dials, name_of
from stages.contracts import UserError


@dataclass(frozen=True)
class JobPlan:
    job: SweepJob
    config: Config | None
    """None where `job.error` says why."""
    plan: Plan = field(default_factory=dict)
    threads: int = 0
    """Asked for; 0: none were, and `config` has its share of the machine's."""


def is_listed(master: DictConfig) -> bool:
    """Whether the jobs are known beforehand. Other sweepers than Hydra's own think of them on the way."""
    return str(master.hydra.sweeper._target_).endswith(".BasicSweeper")


def deal(master: DictConfig) -> list[list[str]]:
    """The overrides of each job, in order, as Hydra's sweeper deals them out."""
    params = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    asked = parser.parse_overrides([*params, *master.hydra.overrides.task])
    (batch,) = BasicSweeper.split_arguments(asked, None)
    return [list(overrides) for overrides in batch]


def plan_jobs(master: DictConfig, dealt: Sequence[list[str]], parallel: int) -> list[JobPlan]:
    """Every job (`deal`) with its plan, or with why it has none: that one alone fails.

    Raises HydraException for overrides that name no option: with those, nothing runs.
    """
    common = [line for line in dealt[0] if all(line in overrides for overrides in dealt)]
    plans = []
    for num, (overrides, composed) in enumerate(zip(dealt, _compose(master, dealt), strict=True)):
        try:
            parsed = parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
            config = resolve(parsed, parallel)
            plan = make_plan(config, build(config), Stores.of(config), reasons=False)
        except (UserError, OmegaConfBaseException) as error:
            plans.append(JobPlan(sweep_job(num, overrides, common, {}, error=public(str(error).splitlines()[0])), None))
            continue
        plans.append(JobPlan(sweep_job(num, overrides, common, plan), config, plan, parsed.threads))
    return plans


def skip_validation() -> None:
    """Hydra's sweeper composes every job before the first, only to see that it can: `plan_jobs` has just seen that."""

    def validated(sweeper: BasicSweeper, batch: Sequence[Sequence[str]]) -> None:
        pass

    BasicSweeper.validate_batch_is_legal = validated


def sweep_job(num: int, overrides: list[str], common: Sequence[str], plan: Plan, error: str = "") -> SweepJob:
    """A job for the record of its sweep, named by what is not `common` to its jobs."""
    chosen = dials(overrides, common)
    nodes = {name: {"stage": item.node.stage, "fingerprint": item.fingerprint} for name, item in plan.items()}
    return SweepJob(num, name_of(chosen), overrides, chosen, nodes, error)


def distinct(plans: Sequence[JobPlan]) -> dict[str, Planned]:
    """What all jobs come to, each result once, by fingerprint; to run, if any of them needs it run."""
    found: dict[str, Planned] = {}
    for item in (item for job in plans for item in job.plan.values()):
        if item.fingerprint not in found or found[item.fingerprint].status == "unneeded":
            found[item.fingerprint] = item
    return found


def _compose(master: DictConfig, dealt: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """The configuration of each job. Jobs that choose the same options of all groups are composed from the same
    files, which takes nearly all of the time; so that is done once for them, and then each one's values are set."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    chosen: dict[tuple[str, ...], DictConfig] = {}
    for overrides in dealt:
        parsed = parser.parse_overrides(list(overrides))
        groups = tuple(str(line.input_line) for line in parsed if _chooses(line, loader))
        if groups not in chosen:
            chosen[groups] = loader.load_sweep_config(master, list(groups))
            with open_dict(chosen[groups]):
                del chosen[groups]["hydra"]
        composed = copy.deepcopy(chosen[groups])
        ConfigLoaderImpl._apply_overrides_to_config([line for line in parsed if not _chooses(line, loader)], composed)
        yield composed


def _chooses(override: Override, loader: ConfigLoaderImpl) -> bool:
    """Whether it chooses an option of a group, where others set a value; Hydra's own rule."""
    return loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
