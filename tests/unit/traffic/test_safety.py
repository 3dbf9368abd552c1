"""Whatever statuses follow one another, and wherever the operator dies: requests never point at nothing.

Effects are level-triggered, so they must stand any sequence, also one that no decision would make.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.api.status import Status
from modelrollout.cluster.kinds import SERVICE
from modelrollout.traffic import route_actions
from modelrollout.workloads import workload_actions
from tests.unit.workloads.manifests import manifest, revision_of, spec_of, status_of, with_version
from tests.unit.workloads.server import Server

NOW = 1_800_000_000.0
TRAFFIC: dict[str, Any] = {"gatewayAPI": {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}, "podRatio": {}}
VERSIONS = ("1", "2", "3")

splits = st.sampled_from([(100, 0, 0), (90, 10, 0), (0, 100, 0), (90, 0, 10)])


@st.composite
def rounds(draw: st.DrawFn) -> tuple[tuple[str, ...], tuple[int, int, int], bool, int, dict[str, int]]:
    """Versions in the roles, their weights, whether the last one retires, how many writes succeed, ready pods."""
    versions = tuple(draw(st.permutations(VERSIONS)))[: draw(st.integers(1, 3))]
    ready = {version: draw(st.integers(0, 2)) for version in VERSIONS}
    return versions, draw(splits), draw(st.booleans()), draw(st.integers(0, 6)), ready


def status(
    versions: tuple[str, ...],
    weights: tuple[int, int, int],
    retires: bool,
    names: dict[str, str],
    ready: dict[str, int],
) -> Status:
    revisions = [names[version] for version in versions]
    retiring = ((revisions.pop(), NOW + 1, 1),) if retires and len(revisions) > 1 else ()
    stable, candidate, previous = (*revisions, None, None)[:3]
    found = status_of(stable, candidate, previous, weights=weights, retiring=retiring, attempt=1)
    assert found.stable is not None
    return found.model_copy(update={"stable": found.stable.model_copy(update={"ready": ready[versions[0]]})})


def check(server: Server) -> None:
    """What callers and gateways are pointed at exists; a route has backends."""
    children = server.children()
    exists = children.services.keys() & children.deployments.keys()
    if "fraud" in children.services:
        pin = server.get(SERVICE, "fraud")["spec"]["selector"].get("modelrollout.dev/revision")
        assert pin is None or f"fraud-{pin}" in exists
    for route in children.routes.values():
        refs = route["spec"]["rules"][0]["backendRefs"]
        assert refs
        assert sum(ref["weight"] for ref in refs) > 0
        assert {ref["name"] for ref in refs} <= exists


@pytest.mark.parametrize("router", TRAFFIC)
@given(history=st.lists(rounds(), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_requests_never_point_at_nothing(router: str, history: list[Any]) -> None:
    rollouts = {version: with_version(manifest(traffic=TRAFFIC[router]), version) for version in VERSIONS}
    names = {version: revision_of(rollout) for version, rollout in rollouts.items()}
    server = Server()
    for versions, weights, retires, writes, ready in history:
        committed = status(versions, weights, retires, names, ready)
        rollout = rollouts[versions[-1]]
        spec = spec_of(rollout)
        for plan in (workload_actions, route_actions):
            for action in plan(rollout, spec, committed, server.children(), NOW)[:writes]:
                server.run([action])
                check(server)
        for version, revision in names.items():
            if f"fraud-{revision}" in server.children().deployments:
                server.pods(f"fraud-{revision}", revision, ready[version])
    for _ in range(10):
        plans = (workload_actions, route_actions)
        if not any(server.run(plan(rollout, spec, committed, server.children(), NOW)) for plan in plans):
            return
        check(server)
    raise AssertionError("it never comes to rest")
