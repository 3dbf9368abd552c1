"""The work queue, in virtual time."""

import asyncio

import pytest

from modelrollout.cluster.queue import QueueShutDown, WorkQueue

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


def make_queue(jitter: float = 1.0, **options: float) -> WorkQueue[str]:
    return WorkQueue(jitter=lambda: jitter, **options)


def now() -> float:
    return asyncio.get_running_loop().time()


async def nothing_comes(queue: WorkQueue[str], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            queue.done(await queue.get())
    except TimeoutError:
        return True
    return False


async def test_a_key_added_many_times_is_given_out_once():
    queue = make_queue()
    for _ in range(5):
        queue.add("a")
    assert len(queue) == 1
    queue.done(await queue.get())
    assert await nothing_comes(queue, 1000)


async def test_keys_come_in_the_order_in_which_they_were_first_added():
    queue = make_queue()
    for key in "abca":
        queue.add(key)
    assert [await queue.get() for _ in range(3)] == ["a", "b", "c"]


async def test_two_workers_never_hold_the_same_key_and_a_key_added_meanwhile_comes_again():
    queue = make_queue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    assert await nothing_comes(queue, 100)
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert await nothing_comes(queue, 100)


async def test_many_workers_hold_each_key_once_while_adders_keep_adding():
    queue = make_queue()
    held: set[str] = set()
    worked: dict[str, int] = {}

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in held
            held.add(key)
            await asyncio.sleep(0.3)
            worked[key] = worked.get(key, 0) + 1
            held.remove(key)
            queue.done(key)

    async def add() -> None:
        for turn in range(200):
            queue.add(f"k{turn % 7}")
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(4)]
        await add()
        await asyncio.sleep(10)
        for worker in workers:
            worker.cancel()
    assert set(worked) == {f"k{n}" for n in range(7)}
    assert queue.processing == 0
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        pytest.param([5.0], 5.0, id="one wish is granted at its time"),
        pytest.param([5.0, 2.0, 9.0], 2.0, id="of several wishes the earliest wins"),
        pytest.param([5.0, 0.0], 0.0, id="no delay means now"),
        pytest.param([5.0, -3.0], 0.0, id="a time that has passed means now"),
        pytest.param([float("nan")], 0.0, id="a delay that is no number means now, not never"),
    ],
)
async def test_delays(wishes: list[float], expected: float):
    queue = make_queue()
    for seconds in wishes:
        queue.add_after("a", seconds)
    assert await queue.get() == "a"
    assert now() == pytest.approx(expected)
    queue.done("a")
    assert await nothing_comes(queue, 1000), "a wish that was overtaken must not come later"


async def test_a_wish_is_dropped_when_a_worker_takes_the_key_first():
    queue = make_queue()
    queue.add_after("a", 50)
    queue.add("a")
    assert await queue.get() == "a"
    queue.add_after("a", 60)
    queue.done("a")
    assert await queue.get() == "a"
    assert now() == pytest.approx(60)


async def test_a_wish_that_falls_due_while_the_key_is_worked_on_is_granted_afterwards():
    queue = make_queue()
    queue.add("a")
    await queue.get()
    queue.add_after("a", 1)
    await asyncio.sleep(10)
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    assert now() == pytest.approx(10)


async def test_wishes_of_different_keys_come_in_order_of_time():
    queue = make_queue()
    for key, seconds in (("late", 30), ("soon", 1), ("later", 31), ("mid", 10)):
        queue.add_after(key, seconds)
    assert [await queue.get() for _ in range(4)] == ["soon", "mid", "late", "later"]
    assert now() == pytest.approx(31)


async def test_endless_rescheduling_does_not_fill_the_memory():
    queue = make_queue()
    for turn in range(5000):
        queue.add_after("a", 1e6 - turn)
        queue.add("a")
        queue.done(await queue.get())
    assert queue.delayed == 0
    assert len(queue._heap) < 200


@pytest.mark.parametrize(
    ("jitter", "expected"),
    [
        pytest.param(1.0, [1, 2, 4, 8, 10, 10], id="the pause doubles up to the cap"),
        pytest.param(0.0, [0.5, 1, 2, 4, 5, 5], id="jitter shortens it by up to a half"),
    ],
)
async def test_failures_back_off(jitter: float, expected: list[float]):
    queue = make_queue(jitter, base=1.0, cap=10.0)
    queue.add("a")
    for pause in expected:
        key = await queue.get()
        began = now()
        assert queue.add_failed(key) == pytest.approx(pause)
        queue.done(key)
        assert await queue.get() == "a"
        assert now() - began == pytest.approx(pause)
        queue.add("a")
        queue.done("a")


async def test_a_success_makes_the_next_failure_a_first_one():
    queue = make_queue()
    for _ in range(4):
        queue.add_failed("a")
    assert queue.failures("a") == 4
    queue.forget("a")
    assert queue.add_failed("a") == pytest.approx(1)


async def test_what_has_failed_can_be_had_at_once_and_only_that():
    queue = make_queue()
    for _ in range(8):
        queue.add_failed("failed")
    queue.add_after("resting", 50)
    queue.retry_failed()
    assert (await queue.get(), now()) == ("failed", 0)
    queue.done("failed")
    assert queue.failures("failed") == 8, "another failure goes on where it was"
    assert (await queue.get(), now()) == ("resting", 50)


async def test_the_servers_retry_after_is_kept():
    assert make_queue().add_failed("a", at_least=30.0) == pytest.approx(30)


async def test_a_thousand_failures_in_a_row_do_not_overflow_and_it_is_tried_again_within_half_a_minute():
    queue = make_queue()
    assert [queue.add_failed("a") for _ in range(1500)][-1] == pytest.approx(30)


async def test_a_shutdown_ends_waiting_workers_and_drops_what_waits():
    queue = make_queue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add_after("a", 5)
    queue.shutdown()
    queue.add("b")
    queue.add_after("c", 1)
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert [type(result) for result in results] == [QueueShutDown] * 3
    with pytest.raises(QueueShutDown):
        await queue.get()


async def test_drained_waits_for_the_workers():
    queue = make_queue()
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.shutdown()
    waiting = asyncio.create_task(queue.drained())
    await asyncio.sleep(3)
    assert not waiting.done()
    queue.done("a")
    await waiting
    assert len(queue) == 0


async def test_a_cancelled_worker_hands_its_wake_up_on():
    queue = make_queue()
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    async with asyncio.timeout(5):
        assert await second == "a"


async def test_done_without_get_is_a_mistake():
    with pytest.raises(ValueError, match="not being worked on"):
        make_queue().done("a")


async def test_a_stuck_worker_and_a_starving_key_can_be_seen():
    queue = make_queue()
    queue.add("stuck")
    await queue.get()
    await asyncio.sleep(2)
    queue.add("starving")
    await asyncio.sleep(40)
    assert queue.longest_work() == pytest.approx(42)
    assert queue.longest_wait() == pytest.approx(40)
