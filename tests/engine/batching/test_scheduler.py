"""The scheduler under random traffic: nothing starves, nothing is lost, capacity holds."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twig.engine.api.event import State
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.job import DENOISING, TERMINAL, Job, Trajectory
from twig.engine.batching.pacing import Pace
from twig.engine.batching.scheduler import BatchKind, ContinuousPolicy, Limits, Scheduler, StaticPolicy, kind_of
from twig.engine.sampling.rows import plan_rows, shallow_steps


class Shop:
    """Moves jobs as the engine does, without networks; a judged job is accepted with a coin's toss.

    Some finals are in search of places first, for a number of steps.
    """

    def __init__(self, limits=None, policy=None, seed=0, each=None):
        """each: what a row of a step costs where a pace chooses how many there are, of a step that costs 1."""
        limits = limits or Limits()
        self.pace = None if each is None else Pace(range(1, limits.rows + 1), lambda: self.now)
        self.scheduler = Scheduler(limits, policy or ContinuousPolicy(), self.pace)
        self.each = each
        self.random = random.Random(seed)
        self.now = 0.0
        self.next_id = 0
        self.finished = []
        self.batches = []
        self.served = {}
        self.placing = {}

    def submit(
        self, *, steps=4, draft_steps=3, guidance=5.0, priority=0, retries=1, shape=(16, 16), timeout=None, interval=1
    ):
        request = GenerationRequest(
            prompt="a star",
            draft=Stage(steps=draft_steps, cache_interval=interval),
            final=Stage(steps=steps, guidance_scale=guidance, cache_interval=interval),
            priority=priority,
            timeout=timeout,
            similarity=SimilarityPolicy(retries=retries),
        )
        job = Job(self.next_id, self.next_id, request, shape, self.now)
        self.next_id += 1
        self.scheduler.submit(job)
        return job

    def start(self, job):
        stage = job.request.draft if job.state is State.ENCODED else job.request.final
        job.trajectory = Trajectory(plan_rows(stage), (0.0,) * stage.steps)
        job.trajectory.shallow = shallow_steps(job.trajectory.plan, stage)
        job.move(State.DRAFTING if job.state is State.ENCODED else State.FINALISING)

    def place(self, job):
        if self.random.random() < 0.5:
            job.move(State.PLACING)
            self.placing[job.id] = self.now + self.random.randint(1, 6)
        else:
            self.start(job)

    def finish(self, job, state):
        job.move(state)
        self.scheduler.finish(job)
        self.finished.append(job)

    def step(self):
        self.now += 1
        for job in self.scheduler.expired(self.now):
            self.finish(job, State.EXPIRED)
        for job in [job for job in self.scheduler.jobs.values() if job.state is State.PLACING]:
            if self.placing[job.id] <= self.now:
                self.start(job)
        for job in self.scheduler.admit():
            self.start(job)
        batch = self.scheduler.next_batch()
        if batch is not None:
            self.batches.append(batch)
            self.check(batch)
            if batch.kind is BatchKind.DENOISE and self.pace is not None:
                rows = sum(len(job.trajectory.rows) for job in batch.jobs)
                self.pace.stepped(kind_of(batch.jobs), rows, rows, 0, 1 + self.each * rows)
            for job in batch.jobs:
                self.advance(batch.kind, job)
        return batch

    def check(self, batch):
        limits = self.scheduler.limits
        assert len({job.id for job in batch.jobs}) == len(batch.jobs) > 0
        if batch.kind is BatchKind.DENOISE:
            assert sum(len(job.trajectory.rows) for job in batch.jobs) <= limits.rows
            assert len({job.shape for job in batch.jobs}) == 1
            assert all(job.slot is not None for job in batch.jobs)
        else:
            assert len(batch.jobs) <= limits.boundary

    def advance(self, kind, job):
        match kind:
            case BatchKind.ENCODE:
                job.move(State.ENCODED)
            case BatchKind.DENOISE:
                assert job.deadline >= self.now, "an expired job spent rows"
                self.served.setdefault(job.id, []).append(self.scheduler.iteration)
                job.trajectory.advance()
                if job.trajectory.done:
                    job.move(State.SEGMENTING if job.state is State.DRAFTING else State.JUDGING)
            case BatchKind.SEGMENT:
                job.move(State.SEGMENTED)
                self.place(job)
            case BatchKind.JUDGE:
                self.judge(job)

    def judge(self, job):
        if self.random.random() < 0.5:
            self.finish(job, State.ACCEPTED)
        elif job.attempt < job.request.similarity.retries:
            job.attempt += 1
            self.place(job)
        else:
            self.finish(job, State.REFUSED)

    def run(self, most=100_000):
        for _ in range(most):
            if not self.scheduler.jobs:
                return
            if self.step() is None and (left := self.scheduler.jobs.values()):
                assert any(job.state is State.PLACING for job in left), "jobs are left but nothing runs"
        raise AssertionError("did not finish")


requests = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 12),
        "draft_steps": st.integers(1, 6),
        "guidance": st.sampled_from([1.0, 5.0]),
        "priority": st.integers(-2, 2),
        "retries": st.integers(0, 2),
        "shape": st.sampled_from([(16, 16), (24, 16)]),
    }
)


EACH = st.sampled_from([None, 0.01, 10.0])


class Traffic(RuleBasedStateMachine):
    """Random arrivals, steps and cancellations on a small engine."""

    @initialize(
        slots=st.integers(1, 5), rows=st.integers(2, 7), boundary=st.integers(1, 3), static=st.booleans(), each=EACH
    )
    def begin(self, slots, rows, boundary, static, each):
        policy = StaticPolicy() if static else ContinuousPolicy()
        self.shop = Shop(Limits(slots=slots, rows=rows, boundary=boundary), policy, each=each)
        self.jobs = []

    @rule(request=requests)
    def arrive(self, request):
        self.jobs.append(self.shop.submit(**request))

    @rule(count=st.integers(1, 8))
    def steps(self, count):
        for _ in range(count):
            self.shop.step()

    @rule(data=st.data())
    def cancel(self, data):
        live = list(self.shop.scheduler.jobs.values())
        if live:
            self.shop.finish(data.draw(st.sampled_from(live)), State.CANCELLED)

    @invariant()
    def nothing_is_lost_or_twice(self):
        if not hasattr(self, "shop"):
            return
        live = list(self.shop.scheduler.jobs.values())
        assert sorted(j.id for j in [*live, *self.shop.finished]) == [j.id for j in self.jobs]
        slots = [job.slot for job in live if job.slot is not None]
        assert len(set(slots)) == len(slots)
        assert len(slots) + self.shop.scheduler.free_slots == self.shop.scheduler.limits.slots
        assert all(job.slot is not None for job in live if job.state in DENOISING)

    def teardown(self):
        if hasattr(self, "shop"):
            self.shop.run()
            assert self.shop.scheduler.free_slots == self.shop.scheduler.limits.slots


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(requests, min_size=1, max_size=30), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_resident_job_waits_longer_than_the_others_need(batch, seed):
    shop = Shop(Limits(slots=6, rows=4, aging=2), seed=seed)
    for request in batch:
        shop.submit(**request)
    shop.run()
    # Six residents at two rows each over four rows: a job is passed over for a few steps, plus what priority buys.
    for iterations in shop.served.values():
        gaps = [b - a for a, b in itertools.pairwise(iterations)]
        assert max(gaps, default=0) <= 40


def test_jobs_of_equal_priority_get_slots_in_order_of_arrival():
    shop = Shop(Limits(slots=2, rows=4))
    jobs = [shop.submit() for _ in range(7)]
    shop.run()
    first_served = [shop.served[job.id][0] for job in jobs]
    assert first_served == sorted(first_served)


def test_a_higher_priority_gets_the_next_slot():
    shop = Shop(Limits(slots=1, rows=2))
    shop.submit(steps=3)
    for _ in range(4):
        shop.step()
    low, high = shop.submit(), shop.submit(priority=5)
    shop.run()
    assert shop.served[high.id][0] < shop.served[low.id][0]


@given(
    priority=st.integers(-3, 2), levels=st.integers(1, 4), aging=st.integers(1, 6), slots=st.integers(1, 3),
    steps=st.integers(1, 4), static=st.booleans(), company=st.sampled_from([None, 0, 2]), each=EACH,
)  # fmt: skip
@settings(max_examples=90, deadline=None)
def test_no_stream_of_higher_priorities_starves_a_waiting_job(
    priority, levels, aging, slots, steps, static, company, each
):
    """What came more than `levels * aging` steps later is behind it, and what came before is done in the end."""
    policy = StaticPolicy() if static else ContinuousPolicy()
    shop = Shop(Limits(slots=slots, rows=2 * slots, aging=aging, company=company), policy, each=each)
    high = {"priority": priority + levels, "steps": steps, "draft_steps": steps, "retries": 0}
    for _ in range(2 * slots):
        shop.submit(**high)
    low = shop.submit(priority=priority, steps=steps, draft_steps=steps, retries=0)
    ahead = 2 * slots + levels * aging
    for _ in range(40 + 12 * steps * ahead):
        shop.submit(**high)
        shop.step()
        if low.state is State.ACCEPTED or low.state is State.REFUSED:
            return
    raise AssertionError(f"it stands in {low.state} at iteration {shop.scheduler.iteration}")


def test_waiting_outweighs_a_level_of_priority_in_the_batch_too():
    """Room for one of two: the higher priority runs until the other has waited long enough, then they take turns."""
    shop = Shop(Limits(slots=2, rows=2, aging=5))
    low = shop.submit(steps=40, draft_steps=40, retries=0)
    high = shop.submit(steps=40, draft_steps=40, retries=0, priority=1)
    while len(shop.served.get(high.id, ())) < 20:
        shop.step()
    assert len(shop.served[low.id]) >= 3
    gaps = [b - a for a, b in itertools.pairwise(shop.served[low.id])]
    assert max(gaps) <= 7


def test_a_higher_priority_has_as_little_company_as_is_said():
    """Four of the lowest priority denoise; what those beside the higher one take is what `company` leaves them."""
    taken = {}
    for company in (None, 4, 0):
        shop = Shop(Limits(slots=8, rows=8, company=company))
        for _ in range(4):
            shop.submit(steps=30, draft_steps=30, retries=0)
        for _ in range(6):
            shop.step()
        high = shop.submit(priority=2, retries=0)
        before = len(shop.batches)
        while high.state not in TERMINAL:
            shop.step()
        beside = [batch.jobs for batch in shop.batches[before:] if high in batch.jobs and batch.kind == "denoise"]
        taken[company] = {len(jobs) - 1 for jobs in beside}
        shop.run()
        assert len(shop.finished) == 5, "what was held up goes on"
    assert taken == {None: {3}, 4: {2}, 0: {0}}


def test_a_job_that_lacks_what_else_it_needs_keeps_its_place():
    scheduler = Scheduler(Limits(slots=3, rows=6))
    shop = Shop(Limits(slots=3, rows=6))
    jobs = [shop.submit() for _ in range(3)]
    for job in jobs:
        scheduler.submit(job)
        job.move(State.ENCODED)
    assert scheduler.admit(lambda job: job is not jobs[1]) == [jobs[0]]
    assert scheduler.free_slots == 2
    assert scheduler.admit() == jobs[1:]


def test_a_short_request_is_not_held_up_by_long_ones():
    shop = Shop(Limits(slots=8, rows=8))
    for _ in range(4):
        shop.submit(draft_steps=50, steps=50, retries=0)
    for _ in range(10):
        shop.step()
    short = shop.submit(draft_steps=8, steps=8, retries=0)
    shop.run()
    assert shop.finished[0] is short


def taught(each, **limits):
    """A shop whose pace has seen steps of every size."""
    shop = Shop(Limits(slots=8, rows=8, **limits), each=each)
    for rows in (*range(1, 9),) * 5:
        shop.now += 1 + each * rows
        shop.pace.stepped(((16, 16), False), rows, rows, 0, 1 + each * rows)
    return shop


def denoised(shop):
    """Jobs of each denoise batch."""
    return [[job.id for job in batch.jobs] for batch in shop.batches if batch.kind is BatchKind.DENOISE]


def test_where_rows_cost_all_jobs_are_done_one_after_the_other_and_where_they_cost_nothing_together():
    for each, at_once in ((100.0, 1), (0.001, 4)):
        shop = taught(each)
        for _ in range(4):
            shop.submit(steps=6, draft_steps=6, retries=0)
        shop.run()
        assert {len(jobs) for jobs in denoised(shop)[:6]} == {at_once}
        assert [job.id for job in shop.finished] == sorted(job.id for job in shop.finished)


def test_a_batch_that_is_waited_for_as_a_whole_takes_all_rows_that_fit():
    shop = taught(100.0)
    jobs = [shop.submit(steps=6, draft_steps=6, retries=0) for _ in range(4)]
    jobs[-1].together = True
    shop.run()
    assert {len(ids) for ids in denoised(shop)[:6]} == {4}


def test_of_jobs_done_one_after_the_other_one_with_little_left_goes_before_long_ones():
    shop = taught(100.0)
    long = shop.submit(draft_steps=50, steps=50, retries=0)
    for _ in range(10):
        shop.step()
    short = shop.submit(draft_steps=8, steps=8, retries=0)
    late = shop.submit(draft_steps=8, steps=100, retries=0)
    shop.run()
    assert shop.finished == [short, long, late]


def test_a_higher_priority_goes_first_where_jobs_are_done_one_after_the_other_and_a_lower_one_is_not_forgotten():
    shop = taught(100.0, aging=20)
    low = shop.submit(draft_steps=30, steps=30, retries=0)
    for _ in range(40):
        shop.step()
    high = shop.submit(draft_steps=50, steps=50, retries=0, priority=1)
    before = len(shop.served[low.id])
    while high.state not in TERMINAL:
        shop.step()
    assert low.state not in TERMINAL
    assert 2 <= len(shop.served[low.id]) - before <= 10, "a step in twenty, and what it had while the other was encoded"


def test_shapes_take_turns_where_jobs_are_done_one_after_the_other():
    shop = taught(100.0)
    for _ in range(3):
        shop.submit(draft_steps=10, steps=10, retries=0)
    other = shop.submit(draft_steps=10, steps=10, retries=0, shape=(24, 16))
    while other.state not in TERMINAL:
        shop.step()
    served = [number for number, jobs in enumerate(denoised(shop)) if other.id in jobs]
    gaps = [b - a for a, b in itertools.pairwise(served)]
    assert max(gaps) <= 3


def test_an_expired_job_spends_no_more_rows():
    shop = Shop()
    job = shop.submit(steps=50, timeout=10.0)
    shop.run()
    assert job.state is State.EXPIRED


def test_a_boundary_batch_waits_to_grow_but_not_for_long():
    shop = Shop(Limits(slots=8, rows=16, boundary=8, patience=3))
    first = shop.submit(draft_steps=5, steps=30, retries=0)
    others = [shop.submit(draft_steps=d, steps=30, retries=0) for d in (6, 7, 20)]
    shop.run()
    segmented = [batch.jobs for batch in shop.batches if batch.kind is BatchKind.SEGMENT]
    assert set(segmented[0]) == {first, *others[:2]}


def test_static_policy_lets_nobody_join_a_running_gang():
    static, continuous = Shop(Limits(slots=4, rows=8), StaticPolicy()), Shop(Limits(slots=4, rows=8))
    for shop in (static, continuous):
        shop.submit(draft_steps=20, steps=20, retries=0)
        for _ in range(5):
            shop.step()
        shop.submit(draft_steps=2, steps=2, retries=0)
        shop.run()
    assert [job.id for job in static.finished] == [0, 1]
    assert [job.id for job in continuous.finished] == [1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", [ContinuousPolicy, StaticPolicy])
def test_two_thousand_poisson_arrivals_all_finish(policy):
    shop = Shop(Limits(slots=16, rows=16), policy(), seed=3)
    rng = random.Random(5)
    due = 0.0
    for _ in range(2000):
        due += rng.expovariate(0.35)
        while shop.now < due:
            shop.step()
            if not shop.scheduler.jobs:
                shop.now = due
        shop.submit(steps=rng.randint(8, 20), draft_steps=rng.choice([4, 8]), priority=rng.choice([0, 0, 1]))
    shop.run()
    assert len(shop.finished) == 2000
    assert shop.scheduler.free_slots == 16


@pytest.mark.parametrize("interval", [2, 3])
def test_whole_and_shallow_steps_of_jobs_that_came_apart_come_together(interval):
    """Jobs that joined at different steps soon share calls: whole and shallow ones, each as full as can be."""
    shop = Shop(Limits(slots=6, rows=12, patience=0))
    for _ in range(6):
        shop.submit(draft_steps=100, interval=interval)
        for _ in range(4):
            shop.step()
    shop.batches.clear()
    for _ in range(24):
        shop.step()
    sizes = [len(batch.jobs) for batch in shop.batches if batch.kind == BatchKind.DENOISE]
    assert sum(sizes) / len(sizes) > 5.5


def test_shallow_jobs_are_served_beside_many_that_compute_in_full():
    shop = Shop(Limits(slots=8, rows=12))
    few = [shop.submit(draft_steps=8, interval=2) for _ in range(2)]
    for _ in range(6):
        shop.submit(draft_steps=40)
    for _ in range(22):
        shop.step()
    assert all(job.state is not State.DRAFTING for job in few)
