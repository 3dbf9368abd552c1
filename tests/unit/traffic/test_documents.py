"""docs/routers.md says of each router what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelrollout.api.validate import parse
from modelrollout.cluster.kinds import STEERED_BY_ANNOTATION
from modelrollout.controller.release import FINALIZER
from modelrollout.traffic import ROUTERS, borrows, router_of
from modelrollout.traffic.borrowed import FACTOR, ORIGINAL_ANNOTATION
from modelrollout.traffic.routes import GatewayRouteShape
from tests.unit.traffic.test_contract import OWN
from tests.unit.traffic.test_contract import ROUTERS as RIGS
from tests.unit.workloads.manifests import manifest, spec_of

TEXT = (Path(__file__).parents[3] / "docs" / "routers.md").read_text()


def rows() -> dict[str, dict[str, str]]:
    """The table: what is said, by row and router."""
    lines = [line.strip("|\n").split("|") for line in TEXT.splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line] for line in lines)
    routers = [cell.strip("`") for cell in head[1:]]
    return {row[0]: dict(zip(routers, row[1:], strict=True)) for row in body}


def said(yes: bool) -> str:
    return "yes" if yes else "no"


def takes(name: str, kind: str) -> bool:
    """Whether a spec with one of the user's own of this kind is accepted; those that are have their rig in the contract."""
    stable = {"name": "fraud-v1", "kind": kind}
    refused = parse(manifest(traffic=RIGS[name]().traffic, workload={"services": {"stable": stable}}))[1]
    rigs = [rig() for rig in OWN.values()]
    tested = any(rig.own == kind and rig.traffic.keys() == RIGS[name]().traffic.keys() for rig in rigs)
    assert tested != bool(refused)
    return not refused


@pytest.mark.parametrize("name", ROUTERS)
def test_the_table_says_what_the_router_does(name: str) -> None:
    table = {row: cells[name] for row, cells in rows().items()}
    spec = spec_of(manifest(traffic=RIGS[name]().traffic))
    router = router_of(spec)
    assert router.name == name
    assert table["Copies requests to the candidate (mirror)"] == said(router.can_mirror)
    assert table["Sends requests to the candidate by header, cookie or query (`matches`)"] == said(
        router.can_match
    )
    sticks = table["Keeps a user on one version while requests are split (`stickiness`)"]
    assert sticks == ("where `sessionPersistence` is served" if router.can_stick else "no")
    exact = all(router.split(weight, 3).share == weight for weight in range(101))
    assert table["Any whole percent, whatever the number of pods"] == said(exact)
    assert table["Keeps a finalizer on the ModelRollout"] == said(borrows(spec))
    for row, kind in (("Services of your own", "Service"), ("InferencePools", "InferencePool")):
        (cell,) = (text for title, text in table.items() if title.startswith(f"Works with [{row}]"))
        assert cell == said(takes(name, kind))
    reference = router.reference(spec)
    assert table["Works in"].startswith("your ") == (reference is not None)
    if reference is not None:
        assert table["Works in"] == f"your {reference[0].kind}"


def test_the_table_has_every_router() -> None:
    assert all(cells.keys() == ROUTERS.keys() for cells in rows().values())


def test_names_and_numbers_of_the_text_are_those_of_the_code() -> None:
    for name in (FINALIZER, STEERED_BY_ANNOTATION, ORIGINAL_ANNOTATION):
        assert f"`{name}`" in TEXT
    assert f"at most {GatewayRouteShape.heaviest // FACTOR}" in TEXT
