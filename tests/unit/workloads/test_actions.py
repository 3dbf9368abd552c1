"""Carrying out what was decided: at the version that was seen, or not at all."""

from __future__ import annotations

import copy

import pytest

from modelrollout.cluster.actions import Apply, Create, Delete, Done, JsonPatch, NameTaken, execute
from modelrollout.cluster.errors import Conflict
from modelrollout.cluster.kinds import SERVICE, Object
from modelrollout.workloads.children import owned
from tests.fakes.cluster import FakeCluster
from tests.unit.workloads.manifests import manifest

ROLLOUT = manifest()


def service(rollout: Object = ROLLOUT, **spec: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned(rollout, "fraud"),
        "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP"}], **spec},
    }


async def created(cluster: FakeCluster) -> Object:
    (done,) = await execute(cluster, [Create(service(), "test")])
    assert done.obj is not None
    return done.obj


async def test_what_is_created_is_there() -> None:
    cluster = FakeCluster()
    assert (await created(cluster))["metadata"]["ownerReferences"][0]["uid"] == "uid-fraud"
    assert await cluster.get(SERVICE, "ml", "fraud") is not None


async def test_what_stands_there_already_and_is_somebody_elses_is_not_touched() -> None:
    cluster = FakeCluster()
    plain = service()
    del plain["metadata"]["ownerReferences"], plain["metadata"]["labels"]
    before = await cluster.create(plain)
    with pytest.raises(NameTaken, match="Service fraud exists") as raised:
        await execute(cluster, [Create(service(), "test")])
    assert raised.value.obj == before
    assert await cluster.get(SERVICE, "ml", "fraud") == before


@pytest.mark.parametrize("orphan", [False, True], ids=["ours", "an orphan of ours"])
async def test_what_the_store_has_not_seen_yet_is_a_conflict(orphan: bool) -> None:
    cluster = FakeCluster()
    there = service()
    if orphan:
        del there["metadata"]["ownerReferences"]
    await cluster.create(there)
    with pytest.raises(Conflict) as raised:
        await execute(cluster, [Create(service(), "test")])
    assert not isinstance(raised.value, NameTaken)


LABELS: dict[str, Object | None] = {
    "its label is gone": {"cost": "42"},
    "all its labels are gone": None,
    "its label says another name": {"modelrollout.dev/rollout": "other", "cost": "42"},
}


@pytest.mark.parametrize("uid", ["uid-fraud", "uid-before"], ids=["", "and it is of before a restore"])
@pytest.mark.parametrize("left", LABELS.values(), ids=LABELS)
async def test_what_lost_our_label_gets_it_back_and_is_looked_at_anew(left: Object | None, uid: str) -> None:
    """A watch by label took it for deleted: nothing else is written, for nothing else of it is known."""
    cluster = FakeCluster()
    there = service(sessionAffinity="ClientIP")
    there["metadata"]["labels"] = left
    there["metadata"]["ownerReferences"][0]["uid"] = uid
    before = await cluster.create(there)
    with pytest.raises(Conflict, match="its labels are put back") as raised:
        await execute(cluster, [Create(service(), "test")])
    assert not isinstance(raised.value, NameTaken)
    after = await cluster.get(SERVICE, "ml", "fraud")
    assert after is not None
    assert after["metadata"]["labels"] == (left or {}) | {"modelrollout.dev/rollout": "fraud"}
    assert after["spec"] == before["spec"]


async def test_a_change_is_made_only_to_what_was_seen() -> None:
    cluster = FakeCluster()
    version = (await created(cluster))["metadata"]["resourceVersion"]
    more = service(sessionAffinity="ClientIP")
    (done,) = await execute(cluster, [Apply(more, version, "test")])
    assert done.changed
    with pytest.raises(Conflict):
        await execute(cluster, [Apply(service(), version, "test")])


async def test_a_change_that_changes_nothing_says_so() -> None:
    cluster = FakeCluster()
    version = (await created(cluster))["metadata"]["resourceVersion"]
    (done,) = await execute(cluster, [Apply(service(), version, "test")])
    assert not done.changed


async def test_a_deletion_is_of_what_was_seen_and_may_find_it_gone() -> None:
    cluster = FakeCluster()
    metadata = (await created(cluster))["metadata"]
    wrong = Delete(SERVICE, "ml", "fraud", "another uid", metadata["resourceVersion"], "test")
    with pytest.raises(Conflict):
        await execute(cluster, [wrong])
    right = Delete(SERVICE, "ml", "fraud", metadata["uid"], metadata["resourceVersion"], "test")
    assert [done.changed for done in await execute(cluster, [right])] == [True]
    assert [done.changed for done in await execute(cluster, [right])] == [False]


async def test_a_patch_whose_test_fails_is_a_conflict() -> None:
    cluster = FakeCluster()
    await created(cluster)
    test = {"op": "test", "path": "/metadata/uid", "value": "another"}
    with pytest.raises(Conflict):
        await execute(cluster, [JsonPatch(SERVICE, "ml", "fraud", (test,), "test")])


async def test_what_was_written_before_a_failure_is_told() -> None:
    cluster, heard = FakeCluster(), list[Done]()
    other = copy.deepcopy(service())
    other["metadata"]["name"] = "another"
    seen = service()
    seen["metadata"]["uid"] = "of one that is gone"
    with pytest.raises(Conflict):
        await execute(
            cluster,
            [Create(other, "first"), Apply(seen, "1", "second"), Create(service(), "third")],
            done=heard.append,
        )
    assert [result.action.why for result in heard] == ["first"]
