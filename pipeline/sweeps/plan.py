"""Composes and plans all jobs of a sweep before the first runs: what each would run, and what they share."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline.credentials import public
from pipeline.plan import Plan, Planned, Stores, make_plan
from pipeline.recipes import build
from pipeline.record.status import Status
from pipeline.record.sweep import SweepJob, SweepNode, name_of, swept_parameters
from pipeline.resolve import resolve
from pipeline.schema import Config, parse
from stages.contracts import UserError


@dataclass(frozen=True)
class JobPlan:
    job: SweepJob
    config: Config | None
    """The configuration; None if `job.error` says why there is none."""
    plan: Plan = field(default_factory=dict)
    threads: int = 0
    """Configured threads; 0: none were configured, and `config` has the job's share of the machine's."""


def expand_overrides(asked: Sequence[str], master: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """Returns the overrides of each job, in order: every combination of the given values."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(asked)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in _values(override, master, loader)]
        else:
            raise UserError("an interval needs a sweeper that searches, hydra/sweeper=optuna for one", key)
        if not choices[key]:
            raise UserError(f"no option of this group fits {override.get_value_string()}", key)
    return [list(job) for job in itertools.product(*choices.values())]


def _values(override: Override, master: DictConfig, loader: ConfigLoader) -> Iterable[str]:
    chosen = override.value()
    if isinstance(chosen, Glob):
        names: list[str] = chosen.filter(_options(override.key_or_group, ObjectType.CONFIG, master, loader))
        return names
    values: Iterator[str] = override.sweep_string_iterator()
    return values


def _options(group: str, kind: ObjectType | None, master: DictConfig, loader: ConfigLoader) -> list[str]:
    """Returns the options of a group, also from the user's own folders (`hydra.searchpath`); none if there is no such
    group."""
    found: list[str]
    if master.hydra.searchpath:  # Hydra reads files anew to know these
        found = loader.get_group_options(group, kind, master.hydra.job.config_name, list(master.hydra.overrides.hydra))
    else:
        found = loader.get_group_options(group, kind)
    return found


def plan_jobs(master: DictConfig, loader: ConfigLoader, jobs: Sequence[list[str]], parallel: int) -> list[JobPlan]:
    """Plans every job; a job that cannot be planned fails alone, with its reason.

    Raises HydraException for overrides that name no option: then nothing runs.
    """
    common = [line for line in jobs[0] if all(line in overrides for overrides in jobs)]
    plans = []
    for num, (overrides, composed) in enumerate(zip(jobs, _compose(master, loader, jobs), strict=True)):
        try:
            parsed = parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
            config = resolve(parsed, parallel)
            plan = make_plan(config, build(config), Stores.of(config), reasons=False)
        except (UserError, OmegaConfBaseException) as error:
            plans.append(JobPlan(sweep_job(num, overrides, common, {}, error=public(str(error).splitlines()[0])), None))
            continue
        plans.append(JobPlan(sweep_job(num, overrides, common, plan), config, plan, parsed.threads))
    return plans


def sweep_job(num: int, overrides: list[str], common: Sequence[str], plan: Plan, error: str = "") -> SweepJob:
    """Returns a job for the record of its sweep, named by the overrides that are not `common` to its jobs."""
    chosen = swept_parameters(overrides, common)
    nodes = {name: SweepNode(item.node.stage, item.fingerprint) for name, item in plan.items()}
    return SweepJob(num, name_of(chosen), overrides, chosen, nodes, error)


def distinct(plans: Sequence[JobPlan]) -> dict[str, Planned]:
    """Returns the distinct nodes of all jobs by fingerprint; a node runs if any job needs it to."""
    found: dict[str, Planned] = {}
    for item in (item for job in plans for item in job.plan.values()):
        if item.fingerprint not in found or found[item.fingerprint].status == Status.UNNEEDED:
            found[item.fingerprint] = item
    return found


MAX_NAMED = 3
"""How many repeated jobs the warning names."""


def repetitions(plans: Sequence[JobPlan]) -> str:
    """Returns one line that names jobs with the same plan as an earlier job; empty if there are none."""
    first: dict[frozenset[str], JobPlan] = {}
    same = []
    for job in plans:
        results = frozenset(item.fingerprint for item in job.plan.values())
        if results and (earlier := first.setdefault(results, job)) is not job:
            same.append(f"job {job.job.num} ({job.job.name}) is the same as job {earlier.job.num} ({earlier.job.name})")
    if not same:
        return ""
    more = f" and {len(same) - MAX_NAMED} more" if len(same) > MAX_NAMED else ""
    return f"{len(same)} of {len(plans)} jobs repeat another: {'; '.join(same[:MAX_NAMED])}{more}"


def counted(plans: Sequence[JobPlan]) -> str:
    results = distinct(plans).values()
    to_run, stored = (sum(item.status == status for item in results) for status in (Status.TO_RUN, Status.HIT))
    nodes = sum(len(item.plan) for item in plans)
    return f"{nodes} nodes in {len(plans)} jobs, {len(results)} distinct: {to_run} to run, {stored} stored"


def _compose(master: DictConfig, loader: ConfigLoader, jobs: Sequence[list[str]]) -> Iterator[DictConfig]:
    """Returns the configuration of each job. Reading files takes nearly all of the time, so jobs that choose the same
    options of all groups are composed once; then each job's own values are set."""
    parser = OverridesParser.create(config_loader=loader)
    is_group = functools.cache(lambda key: bool(_options(key, None, master, loader)))
    composed: dict[tuple[str, ...], DictConfig] = {}
    for overrides in jobs:
        parsed = parser.parse_overrides(overrides)
        values = [it for it in parsed if it.package is None and not is_group(it.key_or_group)]
        if any(it.is_add() or it.is_force_add() or it.is_delete() for it in values):
            values = []
        chosen = tuple(str(it.input_line) for it in parsed if not any(it is value for value in values))
        if chosen not in composed:
            composed[chosen] = loader.load_sweep_config(master, list(chosen))
        config = copy.deepcopy(composed[chosen])
        try:
            for override in values:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            config = loader.load_sweep_config(master, overrides)  # raises what Hydra says of it
        with open_dict(config):
            del config["hydra"]
        yield config
