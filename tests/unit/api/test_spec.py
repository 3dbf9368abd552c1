"""Defaults are those of the design, and what is derived from the spec is right."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.spec import Margin, Margins, Metric, MetricKind, Spec, effective_margins
from tests.unit.api.manifests import errors, gateway, guardrail, latency, minimal, score


def spec_of(**changes: Any) -> Spec:
    return Spec.from_wire(minimal()["spec"] | changes)


def test_what_is_left_out_has_the_defaults_of_the_design() -> None:
    wire = spec_of(analysis={}).to_wire()
    del wire["workload"]["template"]
    assert wire == {
        "model": {},
        "workload": {"replicas": 1, "minReadySeconds": 0, "elastic": False, "trackConfig": False},
        "service": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        "traffic": {},
        "strategy": {},
        "gates": {"start": [], "promotion": []},
        "analysis": {
            "mode": "On",
            "prometheus": "default",
            "interval": "15s",
            "scrapeInterval": "15s",
            "settle": "30s",
            "warmup": "30s",
            "falseRollback": "0.01",
            "falsePromotion": "0.05",
            "deadline": "6h",
            "onInconclusive": "Pause",
            "outage": "30m",
            "exposureBudget": "2m",
            "arms": {"label": "pod"},
            "metrics": [],
        },
        "watch": {"duration": "1h", "holdback": 10, "standby": 100, "onAlarm": "Notify"},
        "progressDeadline": "10m",
        "drainDelay": "30s",
        "revisionHistoryLimit": 10,
        "paused": False,
    }


@pytest.mark.parametrize(
    ("kind", "margin", "expected"),
    [
        pytest.param(
            "ratio", {}, Margins(1.05, 0.00025, 1.25, 0.0025), id="a ratio has the defaults of evidence.md"
        ),
        pytest.param(
            "score", {}, Margins(1.0, 0.0025, 1.0, 0.01), id="a score has the defaults of evidence.md"
        ),
        pytest.param(
            "latency", {}, Margins(1.25, 0.0025, 1.5, 0.005), id="a latency has the defaults of evidence.md"
        ),
        pytest.param(
            "ratio",
            {"accept": {"ratio": "1.02", "absolute": "0.01"}},
            Margins(1.02, 0.001, 1.02, 0.01),
            id="harm left out is the smaller of its default and accept, a tenth of accept for absolute",
        ),
        pytest.param(
            "latency",
            {"accept": {"absolute": "0.001"}},
            Margins(1.25, 0.001, 1.5, 0.001),
            id="an accept below the default of harm lowers harm",
        ),
        pytest.param(
            "score",
            {"harm": {"absolute": "0.005"}},
            Margins(1.0, 0.005, 1.0, 0.01),
            id="harm that is given stays",
        ),
    ],
)
def test_margins(kind: MetricKind, margin: dict[str, Any], expected: Margins) -> None:
    assert effective_margins(kind, Margin.from_wire(margin)) == expected


@pytest.mark.parametrize(
    ("metric", "kind"),
    [(errors(), "ratio"), (latency(), "latency"), (score(), "score"), (guardrail(max="1"), "guardrail")],
)
def test_the_kind_is_the_member_that_is_set(metric: dict[str, Any], kind: str) -> None:
    assert Metric.from_wire(metric).kind == kind


def test_a_metric_decides_unless_it_is_a_dry_run() -> None:
    assert Metric.from_wire(errors()).gating
    assert not Metric.from_wire(errors(dryRun=True)).gating


def test_a_guardrail_has_no_margins() -> None:
    with pytest.raises(KeyError):
        _ = Metric.from_wire(guardrail(max="1")).margins


@pytest.mark.parametrize(
    ("traffic", "router"),
    [
        ({}, "podRatio"),
        ({"podRatio": {}}, "podRatio"),
        (gateway(), "gatewayAPI"),
        ({"httpRoute": {"name": "a"}}, "httpRoute"),
        ({"grpcRoute": {"name": "a"}}, "grpcRoute"),
        ({"istio": {"virtualService": {"name": "a"}}}, "istio"),
    ],
)
def test_the_router_is_the_member_that_is_set_or_the_pod_ratio(traffic: dict[str, Any], router: str) -> None:
    assert spec_of(traffic=traffic).traffic.router == router


@pytest.mark.parametrize(("port", "number"), [(None, 80), ("grpc", 9000)])
def test_the_routed_port_is_the_named_one_or_the_first(port: str | None, number: int) -> None:
    ports = [{"name": "http", "port": 80}, {"name": "grpc", "port": 9000, "targetPort": "g"}]
    spec = spec_of(traffic=gateway(port=port), service={"ports": ports})
    assert spec.routed_port.port == number


def test_a_target_port_left_out_is_the_port() -> None:
    assert spec_of(service={"ports": [{"port": 80}]}).service.ports[0].target == 80


def test_the_service_has_the_name_of_the_rollout_unless_it_is_given() -> None:
    assert spec_of().service_name("digits") == "digits"
    assert spec_of(service={"name": "front", "ports": [{"port": 80}]}).service_name("digits") == "front"


def test_the_accepted_spec_is_read_back_without_its_template() -> None:
    spec = spec_of(traffic=gateway(), paused=True)
    accepted = spec.without_template()
    assert "template" not in accepted["workload"]
    again = Spec.from_wire(accepted)
    assert again.workload.template == {}
    assert again.without_template() == accepted
    assert spec.workload.template != {}


def test_matches_of_a_route_are_written_as_the_gateway_api_reads_them() -> None:
    match = {"headers": [{"name": "x-tier", "value": "gold"}]}
    route = spec_of(traffic=gateway(matches=[match])).traffic.gateway_api
    assert route is not None
    assert route.matches[0].to_wire() == {
        "path": {"type": "PathPrefix", "value": "/"},
        "headers": [{"type": "Exact", "name": "x-tier", "value": "gold"}],
    }
