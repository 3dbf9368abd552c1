"""Objects of the user's come into the store as long as a rollout needs them, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelrollout.cluster.errors import ClusterError, Forbidden, Unavailable
from modelrollout.cluster.kinds import CONFIG_MAP, DEPLOYMENT, HTTP_ROUTE, SECRET, SERVICE, Kind, Object
from modelrollout.cluster.references import DATA_HASH, Interest, References
from modelrollout.cluster.store import Key, Store
from tests.fakes.cluster import FakeCluster

FRAUD, OTHER = Key("ml", "fraud"), Key("ml", "other")
APP = {"app": "legacy"}
SIZED = {
    "selector": {"matchLabels": APP},
    "template": {
        "metadata": {"labels": APP},
        "spec": {"containers": [{"name": "model", "image": "model"}]},
    },
}
LEGACY = Interest(DEPLOYMENT, "ml", name="legacy")


def make(kind: Kind, name: str, labels: dict[str, str] | None = None, **rest: Any) -> Object:
    metadata = {"name": name, "namespace": "ml", "labels": labels or {}}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **rest}


@dataclass
class World:
    cluster: FakeCluster = field(default_factory=lambda: FakeCluster(absent=frozenset({"HTTPRoute"})))
    store: Store = field(default_factory=Store)
    told: list[Key] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.references = References(self.cluster, self.store, self._changed)
        self._news = asyncio.Event()

    def _changed(self, keys: Collection[Key]) -> None:
        self.told += keys
        self._news.set()

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not check():
                self._news.clear()
                await self._news.wait()

    def replicas(self) -> int | None:
        found = self.store.get(DEPLOYMENT, "ml", "legacy")
        return found["spec"]["replicas"] if found else None


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.references.close()


async def test_what_is_needed_is_there_when_need_returns(world: World) -> None:
    world.cluster.seed(make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": 3}))
    world.cluster.seed(make(DEPLOYMENT, "stranger", spec=SIZED | {"replicas": 1}))
    await world.references.need(FRAUD, [LEGACY])
    assert world.replicas() == 3
    assert world.store.get(DEPLOYMENT, "ml", "stranger") is None


async def test_changes_and_deletions_are_told_to_whom_they_concern(world: World) -> None:
    world.cluster.seed(make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": 3}))
    await world.references.need(FRAUD, [LEGACY])
    await world.references.need(OTHER, [Interest(DEPLOYMENT, "ml", name="another")])
    await asyncio.sleep(0)
    world.cluster.seed(make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": 4}))
    await world.until(lambda: world.replicas() == 4)
    world.cluster.erase(DEPLOYMENT, "ml", "legacy")
    await world.until(lambda: world.replicas() is None)
    assert set(world.told) == {FRAUD}


class Deaf(FakeCluster):
    """Its watches are on connections that are dead without a word."""

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[tuple[str, Object]]:
        await asyncio.Event().wait()
        yield "never", {}


async def test_what_is_too_old_is_listed_anew_before_a_round_goes_on() -> None:
    world = World(cluster=Deaf())
    world.cluster.seed(make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": 3}))
    await world.references.need(FRAUD, [LEGACY])
    world.cluster.seed(make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": 4}))
    await world.references.need(FRAUD, [LEGACY])
    assert (world.replicas(), world.told) == (3, []), "the watch does not tell"
    world.references.refresh()
    assert world.told == [FRAUD]
    await world.references.need(FRAUD, [LEGACY])
    assert world.replicas() == 4
    await world.references.close()


async def test_what_nobody_needs_is_neither_watched_nor_kept(world: World) -> None:
    world.cluster.seed(make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": 3}))
    await world.references.need(FRAUD, [LEGACY])
    await world.references.need(OTHER, [LEGACY])
    world.references.forget(FRAUD)
    assert (len(world.references), world.replicas()) == (1, 3)
    await world.references.need(OTHER, [])
    assert (len(world.references), world.replicas()) == (0, None)


async def test_a_selector_brings_what_it_matches(world: World) -> None:
    for name, app in (("a", "fraud"), ("b", "fraud"), ("c", "else")):
        world.cluster.seed(make(SERVICE, name, {"app": app}, spec={}))
    await world.references.need(FRAUD, [Interest(SERVICE, "ml", selector="app=fraud")])
    assert [bool(world.store.get(SERVICE, "ml", name)) for name in "abc"] == [True, True, False]


@pytest.mark.parametrize("kind", [CONFIG_MAP, SECRET], ids=lambda kind: kind.kind)
async def test_of_configuration_only_a_hash_is_kept(world: World, kind: Kind) -> None:
    def stored() -> Object:
        found = world.store.get(kind, "ml", "settings")
        assert found is not None
        return found

    world.cluster.seed(make(kind, "settings", data={"password": "aHVudGVyMg=="}))
    await world.references.need(FRAUD, [Interest(kind, "ml", name="settings")])
    before = stored()
    assert "aHVudGVyMg==" not in str(before)
    world.cluster.seed(make(kind, "settings", {"team": "risk"}, data={"password": "aHVudGVyMg=="}))
    await world.until(lambda: stored()["metadata"]["labels"] == {"team": "risk"})
    assert stored()[DATA_HASH] == before[DATA_HASH]
    world.cluster.seed(make(kind, "settings", data={"password": "b3RoZXI="}))
    await world.until(lambda: stored()[DATA_HASH] != before[DATA_HASH])


async def test_a_kind_that_is_not_served_has_no_objects(world: World) -> None:
    await world.references.need(FRAUD, [Interest(HTTP_ROUTE, "ml", name="fraud")])
    assert world.store.get(HTTP_ROUTE, "ml", "fraud") is None


async def test_a_kind_that_is_installed_later_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelrollout.cluster.references.UNSERVED_PAUSE", 0.01)
    await world.references.need(FRAUD, [Interest(HTTP_ROUTE, "ml", name="fraud")])
    assert world.references.unserved == {"HTTPRoute"}
    world.cluster.serve(HTTP_ROUTE)
    world.cluster.seed(make(HTTP_ROUTE, "fraud", spec={}))
    await world.until(lambda: world.store.get(HTTP_ROUTE, "ml", "fraud") is not None)
    assert world.references.unserved == set()
    assert world.told


def seen(what: str, version: int, replicas: int = 3) -> tuple[str, Object]:
    obj = make(DEPLOYMENT, "legacy", spec=SIZED | {"replicas": replicas})
    obj["metadata"] |= {"uid": "u", "resourceVersion": str(version)}
    return what, obj


@dataclass
class Script:
    """A cluster whose watches end by a script, each after its events or with its error; the last one stays."""

    watches: list[list[tuple[str, Object]] | ClusterError]
    asked: list[str] = field(default_factory=list)  # in order: "list", or the version that is watched from
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def list(self, *_: Any, **__: Any) -> tuple[list[Object], str]:
        self.asked.append("list")
        return [seen("", 4)[1]], "5"

    async def watch(self, *_: Any, resource_version: str, **__: Any) -> AsyncIterator[tuple[str, Object]]:
        self.asked.append(resource_version)
        if not self.watches:
            self.done.set()
            await asyncio.Event().wait()
        script = self.watches.pop(0)
        if isinstance(script, ClusterError):
            raise script
        for event in script:
            yield event


ENDS: dict[str, tuple[list[Any], list[str]]] = {
    "goes on where it was listed": ([[]], ["list", "5", "5"]),
    "goes on from the last bookmark": ([[seen("BOOKMARK", 7)]], ["list", "5", "7"]),
    "goes on from the last change": ([[seen("BOOKMARK", 7), seen("MODIFIED", 9)]], ["list", "5", "9"]),
    "goes on from the deletion": ([[seen("DELETED", 9)], []], ["list", "5", "9", "9"]),
    "lists anew when the state is too old": (
        [[seen("MODIFIED", 9)], Unavailable("too old", status=410)],
        ["list", "5", "9", "list", "5"],
    ),
    "lists anew when the connection broke": ([Unavailable("reset")], ["list", "5", "list", "5"]),
    "lists anew now and then": ([[]] * 8, ["list", *["5"] * 8, "list", "5"]),
}


@pytest.mark.parametrize(("watches", "asked"), ENDS.values(), ids=ENDS)
async def test_a_watch_that_ended(
    watches: list[Any], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelrollout.cluster.references.LEAST_PAUSE", 0.0)
    script = Script([*watches])
    references = References(script, Store(), lambda keys: None)  # type: ignore[arg-type]
    await references.need(FRAUD, [LEGACY])
    async with asyncio.timeout(5):
        await script.done.wait()
    await references.close()
    assert script.asked == asked


async def test_what_a_selector_matches_is_known_by_name_also_if_kopf_brings_it(world: World) -> None:
    ours = {"modelrollout.dev/rollout": "fraud", "app": "model"}
    for name, labels in (("a", {"app": "model"}), ("b", ours), ("c", {"app": "other"})):
        world.cluster.seed(make(SERVICE, name, labels, spec={}))
    interest = Interest(SERVICE, "ml", selector="app=model")
    await world.references.need(FRAUD, [interest])
    assert world.references.names(interest) == {"a", "b"}
    assert world.store.get(SERVICE, "ml", "b") is None
    world.store.put(await world.cluster.get(SERVICE, "ml", "b") or {})
    world.references.forget(FRAUD)
    assert world.references.names(interest) == frozenset()
    assert world.store.get(SERVICE, "ml", "b") is not None, "it is Kopf's to remove"


async def test_a_right_that_is_missing_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise Forbidden("secrets is forbidden", status=403)

    monkeypatch.setattr(world.cluster, "list", refuse)
    monkeypatch.setattr("modelrollout.cluster.references.LISTED_WITHIN", 0.05)
    with pytest.raises(Forbidden):
        await world.references.need(FRAUD, [Interest(SECRET, "ml", name="settings")])


async def test_who_went_on_without_an_answer_is_told_when_it_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelrollout.cluster.references.LISTED_WITHIN", 0.05)
    monkeypatch.setattr("modelrollout.cluster.references.LEAST_PAUSE", 0.0)
    answers, real = asyncio.Event(), world.cluster.list

    async def late(*given: Any, **more: Any) -> Any:
        await answers.wait()
        return await real(*given, **more)

    monkeypatch.setattr(world.cluster, "list", late)
    with pytest.raises(Unavailable):
        await world.references.need(FRAUD, [LEGACY])
    # Asked again, it would time out once more if it waited, and this test with it.
    monkeypatch.setattr("modelrollout.cluster.references.LISTED_WITHIN", 60.0)
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await world.references.need(FRAUD, [LEGACY])
    assert not world.told
    answers.set()
    await world.until(lambda: world.told == [FRAUD])
    await world.references.need(FRAUD, [LEGACY])


async def test_configuration_is_the_users_whatever_its_labels(world: World) -> None:
    labels = {"modelrollout.dev/rollout": "fraud"}
    world.cluster.seed(make(CONFIG_MAP, "settings", labels, data={"a": "1"}))
    await world.references.need(FRAUD, [Interest(CONFIG_MAP, "ml", name="settings")])
    assert world.store.get(CONFIG_MAP, "ml", "settings") is not None


async def test_an_object_of_ours_is_left_to_kopf(world: World) -> None:
    labels = {"modelrollout.dev/rollout": "fraud"}
    world.cluster.seed(make(DEPLOYMENT, "legacy", labels, spec=SIZED | {"replicas": 3}))
    await world.references.need(FRAUD, [LEGACY])
    assert world.replicas() is None
