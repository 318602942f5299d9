"""One denoising step as the host plans it: which row reads what, and how predictions combine."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ...kernels import NO_ADAPTER, ScalarColumn
from ..api.event import State
from ..api.mechanisms import Repulsion
from ..api.settings import MAX_ADAPTERS
from ..avoidance.conditioning import attention_scalars
from ..avoidance.initial_noise import PROBES_PER_STEP
from ..models.adapters import padded
from ..sampling.rows import KEPT_ROWS, MAX_ROWS, Branch, Row, guidance_pair
from .columns import Column
from .controls import KINDS, column_of
from .job import Job
from .slots import NUM_BRANCHES, NUM_HINTS

UNUSED = -1
"""Slot index of a padding row or job: kernels read zeros for it and write nothing."""


def _integers(*axes: str | int, padding: int | str = 0) -> Column:
    return Column(axes, torch.int64, padding)


def _floats(*axes: str | int) -> Column:
    return Column(axes, torch.float32)


COLUMNS = {
    "row_slots": _integers("rows", padding=UNUSED),
    "row_contexts": _integers("rows"),
    "row_steps": _integers("rows"),
    "timesteps": _floats("rows"),
    "guidances": _floats("rows"),
    "scalars": _floats("rows", "layers", len(ScalarColumn)),
    "row_adapters": _integers("rows", MAX_ADAPTERS, padding=NO_ADAPTER),
    "row_adapter_weights": _floats("rows", MAX_ADAPTERS),
    "row_kept": _integers("rows", padding="kept"),
    "job_slots": _integers("rows", padding=UNUSED),
    "job_steps": _integers("rows"),
    "job_rows": _integers("rows", MAX_ROWS),
    "job_weights": _floats("rows", MAX_ROWS),
    "pair_slots": _integers("rows", padding="slots"),
    "job_pairs": _integers("rows", 2),
    "job_rescales": _floats("rows"),
    "control_rows": _integers("control_rows", padding="control_rows"),
    "control_scales": _floats("control_rows"),
    "control_hints": _integers("control_rows"),
    "control_slots": _integers("control_rows", padding=UNUSED),
    "control_contexts": _integers("control_rows"),
    "control_steps": _integers("control_rows"),
    "control_timesteps": _floats("control_rows"),
    "halves": _integers("slots"),
    "probe_slots": _integers("rows"),
    "push_slots": _integers("rows"),
    "push_steps": _integers("rows"),
    "push_radii": _floats("rows"),
    "push_strengths": _floats("rows"),
}
"""What a step reads of its plan, with a value for each row, controlled row, job or slot.

Rows have a slot, a context of their texts (`slot * 2 + branch`), a step and timestep, the guidance that a network is
told (less 1), the scalars of attention, adapters with their weights, and where their deep part is kept
(`slot * 2 + row`, the last place where it is not).
Jobs have a slot (`UNUSED` while they probe their noise), a step, and rows that are combined by weights. job_pairs:
their rows of the unconditional and the conditional prediction, where both ran; pair_slots: the slot then, else the
place behind the last; job_rescales: how much of the guided prediction's deviation is brought back there.
Controlled rows are indices into the rows, with a scale and a hint (`slot * 2 + hint`), and again what those rows have;
padding rows scatter behind the last row that can be used.
halves: which half of a sharpness step, 1 or 2, a slot's noise is due for, else 0; probe_slots: those slots.
Of a further ControlNet each is a column of its own, and a hint is a slot.
push_...: slot, step, radius and strength of jobs that protected works repel.
"""

_Scalars = tuple[tuple[float, ...], ...]
"""Of a row, `ScalarColumn` by layer: numbers that compare, for a column that says the same is not written again."""

StepPlan = dict[str, list[Any]]
"""One denoising step on the host: the values of each of `COLUMNS`."""


def columns_with(further: Iterable[str]) -> dict[str, Column]:
    """`COLUMNS`, and those of controlled rows once more for each of the `further` ControlNets."""

    def own(column: Column, name: str) -> Column:
        padding = column.padding if isinstance(column.padding, int) else column_of(column.padding, name)
        return replace(column, axes=(column_of(str(column.axes[0]), name), *column.axes[1:]), padding=padding)

    return COLUMNS | {column_of(kind, name): own(COLUMNS[kind], name) for name in further for kind in KINDS}


def empty_plan(further: Iterable[str] = ()) -> StepPlan:
    """A step of nobody, to capture graphs with."""
    return {name: [] for name in columns_with(further)}


def planned(jobs: Sequence[Job], groups: Sequence[str], slots: int, further: Iterable[str] = ()) -> StepPlan:
    """The next step of `jobs`. groups: of each cross-attention layer; slots: of the arena; further: ControlNets."""
    plan = empty_plan(further)
    for job in jobs:
        _add(plan, job, groups, slots)
        _add_after(plan, job, slots)
    return plan


def _add(plan: StepPlan, job: Job, groups: Sequence[str], slots: int) -> None:
    trajectory, slot = job.trajectory, job.slot
    assert trajectory is not None
    assert slot is not None
    off = _off(len(groups))
    scalars = _scalars(job, groups) or off
    first = len(plan["row_slots"])
    adapters, weights = padded(trajectory.adapters)
    kept = keeps(job) and len(trajectory.rows) <= KEPT_ROWS
    for number, row in enumerate(trajectory.rows):
        context, timestep = slot * NUM_BRANCHES + row.branch, trajectory.timesteps[trajectory.step]
        place, at = len(plan["row_slots"]), (slot, context, trajectory.step, timestep)
        if not trajectory.is_shallow:  # its residuals are kept
            _add_controls(plan, row, place, slot, at)
        plan["row_kept"].append((slot if kept else slots) * KEPT_ROWS + (number if kept else 0))
        plan["row_slots"].append(slot)
        plan["row_contexts"].append(context)
        plan["row_steps"].append(trajectory.step)
        plan["timesteps"].append(timestep)
        plan["row_adapters"].append(adapters)
        plan["row_adapter_weights"].append(weights)
        plan["guidances"].append(row.embedded)
        # The rule speaks of the prompt's tokens, so the unconditional row never obeys it.
        plan["scalars"].append(scalars if row.branch is Branch.CONDITIONAL else off)
    padding = MAX_ROWS - len(trajectory.rows)
    plan["job_slots"].append(UNUSED if trajectory.probes else slot)
    plan["job_steps"].append(trajectory.step)
    plan["job_rows"].append([*range(first, len(plan["row_slots"])), *[0] * padding])
    plan["job_weights"].append([*(row.weight for row in trajectory.rows), *[0.0] * padding])
    pair = guidance_pair(trajectory.rows)
    plan["pair_slots"].append(slots if pair is None else slot)
    plan["job_pairs"].append((0, 0) if pair is None else (first + pair[0], first + pair[1]))
    plan["job_rescales"].append(0.0 if pair is None else trajectory.rescale)


def _scalars(job: Job, groups: Sequence[str]) -> _Scalars | None:
    """`attention_scalars` of the job's coming step, None where no rule acts."""
    run = job.trajectory
    if run is None or run.probes or job.state is not State.FINALISING:
        return None
    rule = job.avoidance.masked_attention
    if rule is None or not rule.active(run.step, len(run.plan)):
        return None
    return tuple(map(tuple, attention_scalars(rule, run.step, len(run.plan), groups).tolist()))


@lru_cache
def _off(layers: int) -> _Scalars:
    return ((0.0,) * len(ScalarColumn),) * layers


def keeps(job: Job) -> bool:
    """Whether what a step of the job computes in full is taken over by one after it."""
    return job.trajectory is not None and bool(job.trajectory.shallow) and not job.trajectory.probes


def _add_controls(plan: StepPlan, row: Row, place: int, slot: int, at: tuple[float, ...]) -> None:
    if row.control:
        _add_control(plan, None, (place, row.control, slot * NUM_HINTS + row.hint, *at))
    for name, scale in row.further:
        _add_control(plan, name, (place, scale, slot, *at))


def _add_control(plan: StepPlan, name: str | None, values: tuple[float, ...]) -> None:
    """A row of a ControlNet's call, its values in the order of `KINDS`."""
    for kind, value in zip(KINDS, values, strict=True):
        plan[column_of(kind, name)].append(value)


def _add_after(plan: StepPlan, job: Job, slots: int) -> None:
    """What the mechanisms read that act on what the solver leaves."""
    trajectory, slot = job.trajectory, job.slot
    assert trajectory is not None
    assert slot is not None
    if trajectory.probes:
        plan["halves"] = plan["halves"] or [0] * slots
        plan["halves"][slot] = 1 + trajectory.probes % PROBES_PER_STEP
        plan["probe_slots"].append(slot)
    if (policy := repulsion_at(job)) is not None:
        plan["push_slots"].append(slot)
        plan["push_steps"].append(trajectory.step)
        plan["push_radii"].append(policy.radius)
        plan["push_strengths"].append(policy.strength)


def repulsion_at(job: Job) -> Repulsion | None:
    """The repulsion that acts on the job's step, if any."""
    policy, run = job.avoidance.repulsion, job.trajectory
    if policy is None or run is None or job.state is not State.FINALISING or run.probes:
        return None
    return policy if policy.active(run.step, len(run.plan)) else None


def is_shallow(jobs: Sequence[Job]) -> bool:
    """Whether the step of `jobs` takes the deep part over."""
    found = {job.trajectory.is_shallow for job in jobs if job.trajectory is not None}
    assert len(found) == 1, "a batch is shallow, or is computed in full"
    return found.pop()


def is_compared(job: Job) -> bool:
    """Whether how far apart the branches of the job are is asked: by the gate of a draft, and to move noise."""
    return job.state is not State.FINALISING or bool(job.trajectory and job.trajectory.probes)


def is_controlled(jobs: Sequence[Job]) -> bool:
    """Whether any row of the step follows a ControlNet, whose residuals were kept."""
    rows = [row for job in jobs if job.trajectory is not None for row in job.trajectory.rows]
    return any(row.control or row.further for row in rows)
