"""The same release has the same name, always; another one has another."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from modelrollout.api.revision import hash_revision
from modelrollout.api.spec import Spec

TEMPLATE = {
    "metadata": {"labels": {"app": "fraud", "tier": "gold"}},
    "spec": {
        "containers": [{"name": "server", "image": "lab/model:1", "env": [{"name": "A", "value": "ä"}]}],
        "terminationGracePeriodSeconds": 30,
    },
}
FULL = {
    "model": {"name": "fraud", "version": "2026-11-20", "uri": "s3://models/fraud"},
    "workload": {"template": TEMPLATE},
    "service": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
}
SMALL = {
    "workload": {"template": {"spec": {"containers": [{"name": "server", "image": "lab/model:1"}]}}},
    "service": {"ports": [{"port": 80}]},
}


def name(data: dict[str, Any]) -> str:
    return hash_revision(Spec.from_wire(data))


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(item, rng) for key, item in items}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("data", "expected"), [(FULL, "aqv2v6p55c"), (SMALL, "5kohv64xwn")], ids=["full", "small"]
)
def test_golden_names_never_change(data: dict[str, Any], expected: str) -> None:
    """If this fails, every rollout of every user starts anew after an upgrade: raise the version of the format instead."""
    assert name(data) == expected


def test_a_name_fits_into_a_dns_label_and_the_request_annotations() -> None:
    assert re.fullmatch(r"[a-z2-7]{10}", name(FULL))


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_keys_does_not_matter(seed: int) -> None:
    assert name(shuffled(FULL, random.Random(seed))) == name(FULL)


SAME: dict[str, dict[str, Any]] = {
    "replicas, steps and pauses are no part of it": {
        "paused": True,
        "workload": SMALL["workload"] | {"replicas": 7},
    },
    "an empty model": {"model": {}},
    "the default name of a port": {"service": {"ports": [{"name": "http", "port": 80}]}},
    "a target port that is the port": {"service": {"ports": [{"port": 80, "targetPort": 80}]}},
    "the name of the Service": {"service": {"name": "front", "ports": [{"port": 80}]}},
    "the empty metadata that Go clients write": {
        "workload": {"template": {**SMALL["workload"]["template"], "metadata": {"creationTimestamp": None}}}
    },
}
OTHER: dict[str, dict[str, Any]] = {
    "a version": {"model": {"version": "2"}},
    "an image": {
        "workload": {"template": {"spec": {"containers": [{"name": "server", "image": "lab/model:2"}]}}}
    },
    "a port": {"service": {"ports": [{"port": 81}]}},
    "a target port": {"service": {"ports": [{"port": 80, "targetPort": 8080}]}},
    "an empty directory": {
        "workload": {
            "template": {"spec": {**SMALL["workload"]["template"]["spec"], "volumes": [{"emptyDir": {}}]}}
        }
    },
}


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_pod_changes_no_name(change: str) -> None:
    assert name(SMALL | SAME[change]) == name(SMALL)


def test_what_changes_pods_changes_the_name() -> None:
    names = [name(SMALL), *(name(SMALL | change) for change in OTHER.values())]
    assert len(set(names)) == len(names)


def test_the_order_of_containers_matters_and_that_of_ports_does_not() -> None:
    two = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    assert name(SMALL | {"service": {"ports": two}}) == name(SMALL | {"service": {"ports": two[::-1]}})
    containers = [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]
    one, other = (
        {"workload": {"template": {"spec": {"containers": order}}}}
        for order in (containers, containers[::-1])
    )
    assert name(SMALL | one) != name(SMALL | other)


def test_a_number_has_one_name_however_json_wrote_it() -> None:
    def with_grace(seconds: float) -> dict[str, Any]:
        pod = {**SMALL["workload"]["template"]["spec"], "terminationGracePeriodSeconds": seconds}
        return SMALL | {"workload": {"template": {"spec": pod}}}

    assert name(with_grace(30)) == name(with_grace(30.0)) != name(with_grace(31))
