"""Leader election between candidates that share an in-memory cluster, in virtual time."""

import asyncio
from collections.abc import Callable

import pytest

from modelrollout.cluster.errors import Unavailable
from modelrollout.cluster.kinds import LEASE, Object
from modelrollout.cluster.lease import LeaderElection
from modelrollout.cluster.port import Hooks, Write
from tests.fakes.cluster import FakeCluster

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


def now() -> float:
    return asyncio.get_running_loop().time()


class Faults:
    """Lets writes fail, or hang, while a flag is set."""

    def __init__(self) -> None:
        self.refuse = False
        self.hang = False

    async def before(self, _: Write) -> None:
        if self.hang:
            await asyncio.Event().wait()
        if self.refuse:
            raise Unavailable("the API server is away")


class Candidate:
    """An election with a log of what was called, and when."""

    def __init__(self, cluster: FakeCluster, identity: str) -> None:
        self.election = LeaderElection(
            cluster,
            namespace="ops",
            name="modelrollout",
            identity=identity,
            jitter=lambda: 0.5,
            now=lambda: 1.7e9 + now(),
        )
        self.stop = asyncio.Event()
        self.started: list[float] = []
        self.lost: list[float] = []
        self.task = asyncio.create_task(
            self.election.run(
                stop=self.stop,
                on_started=lambda: self.started.append(now()),
                on_lost=lambda: self.lost.append(now()),
            )
        )

    async def end(self) -> None:
        self.stop.set()
        await self.task


def spec_of(cluster: FakeCluster) -> Object:
    lease = cluster.look(LEASE, "ops", "modelrollout")
    assert lease is not None
    return lease["spec"]


async def until(condition: Callable[[], object], seconds: float = 200.0) -> None:
    """Virtual time is stepped, so it is never missed by more than 0.1 s and takes no real time."""
    deadline = now() + seconds
    while not condition() and now() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert condition()


async def test_the_first_candidate_leads_at_once_and_the_second_waits_as_long_as_it_renews():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    second = Candidate(cluster, "second")
    await asyncio.sleep(300)
    assert first.started == [pytest.approx(0)]
    assert first.election.leading
    assert not second.started
    assert not second.election.leading
    assert second.election.holder == "first"
    assert spec_of(cluster)["leaseTransitions"] == 0
    await first.end()
    await second.end()


async def test_a_released_lease_is_taken_at_the_next_try():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    second = Candidate(cluster, "second")
    await asyncio.sleep(60)
    await first.end()
    released = now()
    assert "holderIdentity" not in spec_of(cluster)
    assert not first.lost, "a stop is no loss"
    await until(lambda: second.started)
    assert second.started[0] - released < 4
    assert spec_of(cluster)["holderIdentity"] == "second"
    assert spec_of(cluster)["leaseTransitions"] == 1
    await second.end()


async def test_a_dead_holder_is_replaced_only_after_its_lease_has_been_seen_unchanged_for_its_duration():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    second = Candidate(cluster, "second")
    await asyncio.sleep(30)
    first.task.cancel()
    died = now()
    await until(lambda: second.started)
    assert 13 <= second.started[0] - died <= 15 + 2 * 3.2
    await second.end()


@pytest.mark.parametrize("fault", ["refuse", "hang"])
async def test_a_holder_that_cannot_renew_stops_before_another_can_lead(fault: str):
    faults = Faults()
    cluster = FakeCluster(hooks=Hooks(before_write=faults.before))
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    await asyncio.sleep(30)
    setattr(faults, fault, True)
    broken = now()
    await until(lambda: first.lost)
    assert 8 <= first.lost[0] - broken <= 10 + 0.2
    assert not first.election.leading
    await first.task
    setattr(faults, fault, False)
    second = Candidate(cluster, "second")
    await until(lambda: second.started)
    assert second.started[0] > first.lost[0]
    await second.end()


async def test_a_short_outage_costs_no_lease():
    faults = Faults()
    cluster = FakeCluster(hooks=Hooks(before_write=faults.before))
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    faults.refuse = True
    await asyncio.sleep(7)
    faults.refuse = False
    await asyncio.sleep(60)
    assert not first.lost
    assert first.election.leading
    await first.end()


async def test_a_lease_taken_by_another_is_lost_at_the_next_renewal():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    lease = cluster.look(LEASE, "ops", "modelrollout")
    assert lease is not None
    cluster.seed(lease | {"spec": lease["spec"] | {"holderIdentity": "thief"}})
    stolen = now()
    await until(lambda: first.lost)
    assert first.lost[0] - stolen <= 2.1
    assert spec_of(cluster)["holderIdentity"] == "thief"


async def test_an_edit_of_the_lease_by_someone_who_does_not_take_it_is_survived():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    lease = cluster.look(LEASE, "ops", "modelrollout")
    assert lease is not None
    lease["metadata"]["labels"] = {"seen": "yes"}
    cluster.seed(lease)
    await asyncio.sleep(60)
    assert not first.lost
    lease = cluster.look(LEASE, "ops", "modelrollout")
    assert lease is not None
    assert lease["metadata"]["labels"] == {"seen": "yes"}
    await first.end()


async def test_a_deleted_lease_is_made_anew():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    cluster.erase(LEASE, "ops", "modelrollout")
    await asyncio.sleep(20)
    assert not first.lost
    assert spec_of(cluster)["holderIdentity"] == "first"
    await first.end()


async def test_the_same_identity_takes_its_own_lease_back_at_once_after_a_restart():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    first.task.cancel()
    again = Candidate(cluster, "first")
    await until(lambda: again.started)
    assert again.started[0] < 1
    assert spec_of(cluster)["leaseTransitions"] == 0
    await again.end()


async def test_of_many_candidates_never_two_lead_at_a_time_while_holders_keep_dying():
    cluster = FakeCluster()
    candidates = [Candidate(cluster, f"c{n}") for n in range(5)]
    for _ in range(4):
        await until(lambda: any(c.election.leading for c in candidates))
        for _ in range(100):
            leading = [c for c in candidates if c.election.leading]
            assert len(leading) <= 1
            await asyncio.sleep(0.25)
        leading[0].task.cancel()
        candidates.remove(leading[0])
        for _ in range(60):
            assert len([c for c in candidates if c.election.leading]) <= 1
            await asyncio.sleep(0.1)
    for candidate in candidates:
        await candidate.end()


async def test_leading_ends_by_the_clock_even_if_no_task_has_run():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    first.task.cancel()
    await asyncio.sleep(10.5)
    assert not first.election.leading


async def test_a_renewal_is_one_request():
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await until(lambda: first.started)
    before = len(cluster.requests)
    await asyncio.sleep(20)
    assert 9 <= len(cluster.requests) - before <= 10
    await first.end()


async def test_periods_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="must exceed"):
        LeaderElection(FakeCluster(), namespace="a", name="b", identity="c", duration=5, renew_deadline=10)
