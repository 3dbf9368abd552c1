"""Manifests that must be accepted, and a table of such that must be refused: for the Python validator and, in tests/cluster,
for the API server."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DROP = object()
"""In a change: remove the field."""


def minimal() -> dict[str, Any]:
    """What examples/minimal.yaml says."""
    return {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": "digits"},
        "spec": {
            "workload": {"template": {"spec": {"containers": [{"name": "server", "image": "lab/model:1"}]}}},
            "service": {"ports": [{"port": 80, "targetPort": 8080}]},
            "analysis": {"metrics": [errors()]},
        },
    }


def errors(**more: Any) -> dict[str, Any]:
    """A ratio metric."""
    return {"name": "errors", "ratio": {"bad": 'r{code=~"5.."}', "total": "r"}, **more}


def latency(**more: Any) -> dict[str, Any]:
    """A latency metric."""
    return {"name": "latency", "latency": {"histogram": "d", "slo": "250ms", **more}}


def score(**more: Any) -> dict[str, Any]:
    """A score metric."""
    return {"name": "quality", "score": {"sum": "q_sum", "count": "q_count", **more}}


def guardrail(**more: Any) -> dict[str, Any]:
    """A guardrail metric."""
    return {"name": "gpu", "guardrail": {"query": "max(g)", **more}}


def gateway(**more: Any) -> dict[str, Any]:
    """A gatewayAPI member of traffic."""
    return {"gatewayAPI": {"parentRefs": [{"name": "public"}], **more}}


CONTAINERS = {"spec": {"containers": [{"name": "server", "image": "lab/model:1"}]}}


def own_services(
    candidate: str | None = "fraud-v2", *, kinds: tuple[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A workload of the user's own Services, or of these kinds."""
    stable, second = ({"kind": kind} for kind in kinds) if kinds else ({}, {})
    found: dict[str, Any] = {"stable": {"name": "fraud-v1", **stable}}
    if candidate:
        found["candidate"] = {"name": candidate, **second}
    return {"services": found, **more}


POOLS = ("InferencePool", "InferencePool")


ROUTED = {"spec.traffic": {"gatewayAPI": {"parentRefs": [{"name": "public"}]}}}
TWO_PORTS = [{"name": "http", "port": 80}, {"name": "grpc", "port": 9000}]


@dataclass(frozen=True)
class Bad:
    """A change to the minimal manifest, the field that the message must name, and where Python finds it."""

    why: str
    change: Mapping[str, Any]
    names: str
    at: str

    def manifest(self) -> dict[str, Any]:
        obj = copy.deepcopy(minimal())
        for path, value in self.change.items():
            _put(obj, path.split("."), copy.deepcopy(value) if value is not DROP else DROP)
        return obj


def _put(obj: Any, path: list[str], value: Any) -> None:
    for name in path[:-1]:
        obj = obj.setdefault(name, {})
    if value is DROP:
        del obj[path[-1]]
    else:
        obj[path[-1]] = value


def bad(
    why: str, path: str, value: Any, *, at: str | None = None, names: str | None = None, **more: Any
) -> Bad:
    where = at or path
    return Bad(
        why, {path: value, **more.get("also", {})}, names or where.rpartition(".")[2].partition("[")[0], where
    )


def hook(**more: Any) -> dict[str, Any]:
    """A gate that asks by HTTP."""
    return {"name": "hook", "webhook": {"url": "https://ci.example.com/gates", **more}}


def job(**more: Any) -> dict[str, Any]:
    """A gate that runs a Job."""
    return {"name": "evaluation", "job": {"template": CONTAINERS, **more}}


METRICS = "spec.analysis.metrics"
STEPS = "spec.strategy.canary.steps"
ROUTED = {"spec.traffic": gateway()}
TEST = "spec.strategy.abTest"
CHOSEN = [{"headers": [{"name": "x-tester", "value": "yes"}]}]


def cookie(value: str) -> dict[str, Any]:
    """A match by the value of a cookie."""
    return {"cookie": {"name": "bucket", "value": value}}


WITH_MIRROR = {"canary": {"steps": [{"weight": 0, "mirror": 10}, {"weight": 5}]}}

BAD: tuple[Bad, ...] = (
    # the name
    bad("a name of 53 characters leaves no room for a revision", "metadata.name", "a" * 53),
    bad("a name with a dot is no name of a Service", "metadata.name", "fraud.v2"),
    bad("a name that starts with a digit is no name of a Service", "metadata.name", "2fraud"),
    # workload
    bad("there is no spec", "spec", DROP),
    bad("there is no workload", "spec.workload", DROP),
    bad("a workload has no template", "spec.workload.template", DROP),
    bad(
        "a template has no spec", "spec.workload.template", {"metadata": {}}, at="spec.workload.template.spec"
    ),
    bad("a template has no containers", "spec.workload.template.spec.containers", []),
    bad(
        "labels of pods are no list",
        "spec.workload.template",
        {**CONTAINERS, "metadata": {"labels": ["team=ml"]}},
        at="spec.workload.template.metadata.labels",
    ),
    bad(
        "annotations of pods are no text",
        "spec.workload.template",
        {**CONTAINERS, "metadata": {"annotations": "a: b"}},
        at="spec.workload.template.metadata.annotations",
    ),
    bad(
        "environment variables are no object",
        "spec.workload.template",
        {"spec": {"containers": [{"name": "server", "image": "lab/model:1", "env": {"A": "b"}}]}},
        at="spec.workload.template.spec.containers[0].env",
    ),
    bad(
        "there is no number of init containers",
        "spec.workload.template",
        {"spec": {**CONTAINERS["spec"], "initContainers": 1}},
        at="spec.workload.template.spec.initContainers",
    ),
    bad(
        "a template is given twice",
        "spec.workload",
        {"template": CONTAINERS, "deploymentRef": {"name": "fraud"}},
        at="spec.workload.template",
    ),
    bad(
        "Services and a template exclude each other",
        "spec.workload",
        own_services(template=CONTAINERS),
        at="spec.workload.template",
        also=ROUTED,
    ),
    bad(
        "a Deployment has no name",
        "spec.workload",
        {"deploymentRef": {}},
        at="spec.workload.deploymentRef.name",
    ),
    bad(
        "a Deployment is scaled down at some time only",
        "spec.workload",
        {"deploymentRef": {"name": "fraud", "scaleDown": "Always"}},
        at="spec.workload.deploymentRef.scaleDown",
    ),
    bad(
        "there is no Service to begin with",
        "spec.workload",
        {"services": {"candidate": {"name": "fraud-v2"}}},
        at="spec.workload.services.stable",
        also=ROUTED,
    ),
    bad(
        "both sides are one Service",
        "spec.workload",
        own_services("fraud-v1"),
        at="spec.workload.services.candidate",
        also=ROUTED,
    ),
    bad(
        "both sides are one pool",
        "spec.workload",
        own_services("fraud-v1", kinds=POOLS),
        at="spec.workload.services.candidate",
        also=ROUTED,
    ),
    bad(
        "a kind of backends that nobody knows",
        "spec.workload",
        own_services(kinds=("Service", "Backend")),
        at="spec.workload.services.candidate.kind",
        also=ROUTED,
    ),
    bad("pods of others make no ratio", "spec.workload", own_services(), at="spec.traffic"),
    bad(
        "a GRPCRoute names no pools",
        "spec.workload",
        own_services(kinds=("Service", "InferencePool")),
        at="spec.traffic",
        also={"spec.traffic": {"grpcRoute": {"name": "fraud"}}},
    ),
    bad(
        "a VirtualService names no pools",
        "spec.workload",
        own_services(None, kinds=POOLS),
        at="spec.traffic",
        also={"spec.traffic": {"istio": {"virtualService": {"name": "fraud"}}}},
    ),
    bad(
        "a pool gets no copies",
        "spec.workload",
        own_services(kinds=POOLS),
        at="spec.strategy",
        also={**ROUTED, "spec.strategy": {"canary": {"steps": [{"weight": 5, "mirror": 10}]}}},
    ),
    bad(
        "a pool has no shadow",
        "spec.workload",
        own_services(kinds=("InferencePool", "Service")),
        at="spec.strategy",
        also={**ROUTED, "spec.strategy": {"shadow": {"mirror": 10, "duration": "1m"}}},
    ),
    bad(
        "pods of others do not shrink",
        "spec.workload",
        own_services(elastic=True),
        at="spec.workload.elastic",
        also=ROUTED,
    ),
    bad(
        "configuration of others is not tracked",
        "spec.workload",
        own_services(trackConfig=True),
        at="spec.workload.trackConfig",
        also=ROUTED,
    ),
    bad(
        "a third Service has no pods",
        "spec.workload",
        own_services(),
        at="spec.service.name",
        also={**ROUTED, "spec.service.name": "front"},
    ),
    bad("no replicas could serve nothing", "spec.workload.replicas", 0),
    bad("replicas in quotes are no number", "spec.workload.replicas", "4"),
    bad("seconds are not negative", "spec.workload.minReadySeconds", -1),
    bad("a word is no boolean", "spec.workload.elastic", "yes"),
    bad("a version without quotes is a number", "spec.model", {"version": 20261120}, at="spec.model.version"),
    # service
    bad("there is no service", "spec.service", DROP),
    bad("a service has no ports", "spec.service.ports", []),
    bad("a name of a Service has no capitals", "spec.service.name", "Fraud"),
    bad(
        "callers and those who preview would share a Service",
        "spec.service.name",
        "digits-preview",
        also={**ROUTED, "spec.strategy": {"blueGreen": {"approval": True}}},
    ),
    bad("port 0 does not exist", "spec.service.ports", [{"port": 0}], at="spec.service.ports[0].port"),
    bad("a port has no number", "spec.service.ports", [{"name": "http"}], at="spec.service.ports[0].port"),
    bad(
        "a port in quotes is no number",
        "spec.service.ports",
        [{"port": "80"}],
        at="spec.service.ports[0].port",
    ),
    bad("two ports have one number", "spec.service.ports", [{"port": 80}, {"name": "b", "port": 80}]),
    bad(
        "two ports have one name",
        "spec.service.ports",
        [{"port": 80}, {"port": 81}],
        at="spec.service.ports[1].name",
    ),
    bad(
        "a target port is no sentence",
        "spec.service.ports",
        [{"port": 80, "targetPort": "the port"}],
        at="spec.service.ports[0].targetPort",
    ),
    bad(
        "a target port in quotes is no name of a port",
        "spec.service.ports",
        [{"port": 80, "targetPort": "8080"}],
        at="spec.service.ports[0].targetPort",
    ),
    bad(
        "a name of a container's port has no two hyphens in a row",
        "spec.service.ports",
        [{"port": 80, "targetPort": "my--port"}],
        at="spec.service.ports[0].targetPort",
    ),
    bad(
        "target port 0 does not exist",
        "spec.service.ports",
        [{"port": 80, "targetPort": 0}],
        at="spec.service.ports[0].targetPort",
    ),
    # traffic
    bad("two routers split the same traffic", "spec.traffic", {**gateway(), "podRatio": {}}),
    bad(
        "a route has no parents",
        "spec.traffic",
        gateway(parentRefs=[]),
        at="spec.traffic.gatewayAPI.parentRefs",
    ),
    bad("parents are left out", "spec.traffic", {"gatewayAPI": {}}, at="spec.traffic.gatewayAPI.parentRefs"),
    bad(
        "a parent has no name",
        "spec.traffic",
        gateway(parentRefs=[{"namespace": "gateways"}]),
        at="spec.traffic.gatewayAPI.parentRefs[0].name",
    ),
    bad(
        "a host name has an underscore",
        "spec.traffic",
        gateway(hostnames=["my_host"]),
        at="spec.traffic.gatewayAPI.hostnames[0]",
    ),
    bad(
        "a host name stands twice",
        "spec.traffic",
        gateway(hostnames=["a.example", "a.example"]),
        at="spec.traffic.gatewayAPI.hostnames[1]",
    ),
    bad(
        "a path does not start with a slash",
        "spec.traffic",
        gateway(matches=[{"path": {"value": "predict"}}]),
        at="spec.traffic.gatewayAPI.matches[0].path.value",
    ),
    bad(
        "a kind of path match is unknown",
        "spec.traffic",
        gateway(matches=[{"path": {"type": "Prefix"}}]),
        at="spec.traffic.gatewayAPI.matches[0].path.type",
    ),
    bad(
        "a header is matched twice",
        "spec.traffic",
        gateway(matches=[{"headers": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]}]),
        at="spec.traffic.gatewayAPI.matches[0].headers[1].name",
        names="headers",
    ),
    *(
        bad(
            f"a filter lists a header twice to {verb}",
            "spec.traffic",
            gateway(filters=[{"requestHeaderModifier": {verb: [value, value]}}]),
            at=f"spec.traffic.gatewayAPI.filters[0].requestHeaderModifier.{verb}[1]{key}",
            names=verb,
        )
        for verb, value, key in (
            ("set", {"name": "a", "value": "1"}, ".name"),
            ("add", {"name": "a", "value": "1"}, ".name"),
            ("remove", "a", ""),
        )
    ),
    bad(
        "which of two ports is routed is not said",
        "spec.traffic",
        gateway(),
        at="spec.traffic.gatewayAPI.port",
        also={"spec.service.ports": TWO_PORTS},
    ),
    bad(
        "a port that does not exist is routed",
        "spec.traffic",
        gateway(port="https"),
        at="spec.traffic.gatewayAPI.port",
        also={"spec.service.ports": TWO_PORTS},
    ),
    bad(
        "a filter changes two things at once",
        "spec.traffic",
        gateway(filters=[{"requestHeaderModifier": {"remove": ["a"]}, "urlRewrite": {"hostname": "b"}}]),
        at="spec.traffic.gatewayAPI.filters[0]",
        names="filters",
    ),
    bad(
        "a filter mirrors, which is the strategy's",
        "spec.traffic",
        gateway(filters=[{"requestMirror": {}}]),
        at="spec.traffic.gatewayAPI.filters[0].requestMirror",
    ),
    bad(
        "a path is rewritten by the other field",
        "spec.traffic",
        gateway(filters=[{"urlRewrite": {"path": {"type": "ReplaceFullPath", "replacePrefixMatch": "/"}}}]),
        at="spec.traffic.gatewayAPI.filters[0].urlRewrite.path",
    ),
    bad(
        "one attempt may take longer than the request",
        "spec.traffic",
        gateway(timeouts={"request": "1s", "backendRequest": "2s"}),
        at="spec.traffic.gatewayAPI.timeouts.backendRequest",
    ),
    bad(
        "an annotation is one of the operator's own",
        "spec.traffic",
        gateway(annotations={"modelrollout.dev/steered-by": "me"}),
        at="spec.traffic.gatewayAPI.annotations",
    ),
    bad(
        "a route of the user's has no name",
        "spec.traffic",
        {"httpRoute": {}},
        at="spec.traffic.httpRoute.name",
    ),
    bad(
        "two routes of the user's are split",
        "spec.traffic",
        {"httpRoute": {"name": "a"}, "grpcRoute": {"name": "b"}},
    ),
    bad(
        "a VirtualService is left out",
        "spec.traffic",
        {"istio": {}},
        at="spec.traffic.istio.virtualService",
    ),
    # strategy
    bad("a list of steps is empty", STEPS, []),
    bad("a step has no weight", STEPS, [{"duration": "5m"}], at=f"{STEPS}[0].weight"),
    bad("a step of weight 0 compares nothing", STEPS, [{"weight": 0}], at=f"{STEPS}[0].weight"),
    bad("a step of weight 100 leaves no baseline", STEPS, [{"weight": 100}], at=f"{STEPS}[0].weight"),
    bad("a weight has a fraction", STEPS, [{"weight": 2.5}], at=f"{STEPS}[0].weight"),
    bad("weights fall", STEPS, [{"weight": 50}, {"weight": 10}]),
    bad("two steps have one name", STEPS, [{"name": "a", "weight": 1}, {"name": "a", "weight": 2}]),
    bad("a duration has no unit", STEPS, [{"weight": 1, "duration": 300}], at=f"{STEPS}[0].duration"),
    bad(
        "a duration is written in words",
        STEPS,
        [{"weight": 1, "duration": "5 minutes"}],
        at=f"{STEPS}[0].duration",
    ),
    bad(
        "fewer than no requests are awaited",
        STEPS,
        [{"weight": 1, "minRequests": -1}],
        at=f"{STEPS}[0].minRequests",
    ),
    bad(
        "requests are awaited and analysis is off",
        STEPS,
        [{"weight": 1}, {"weight": 5, "minRequests": 200}],
        at="spec.strategy",
        names="minRequests",
        also={"spec.analysis": {"mode": "Off"}},
    ),
    bad(
        "requests are awaited and only a guardrail looks",
        METRICS,
        [guardrail(max="1")],
        at="spec.strategy",
        names="minRequests",
        also={"spec.strategy": {"rolling": {"minRequests": 200}}},
    ),
    bad("a step field is misspelt", STEPS, [{"weight": 1, "durration": "5m"}], at=f"{STEPS}[0].durration"),
    bad("planned steps would end without a baseline", "spec.strategy.canary.maxWeight", 100),
    # analysis
    bad("a mode is unknown", "spec.analysis.mode", "Sometimes"),
    bad("YAML made a boolean of On", "spec.analysis.mode", True),
    bad("there is no analysis", "spec.analysis", DROP, at="spec.analysis.metrics"),
    bad("nothing is compared although mode is On", METRICS, []),
    bad("metrics are given although mode is Off", "spec.analysis.mode", "Off", at=METRICS),
    bad("looks are more frequent than scrapes", "spec.analysis.interval", "5s"),
    bad("looks without a pause", "spec.analysis.interval", "0s", also={"spec.analysis.scrapeInterval": "0s"}),
    bad("scrapes without a pause", "spec.analysis.scrapeInterval", "10ms"),
    bad("an interval is a bare number", "spec.analysis.interval", 15),
    bad("a probability is a float", "spec.analysis.falseRollback", 0.01),
    bad("a probability is 0", "spec.analysis.falseRollback", "0"),
    bad("a probability has a comma", "spec.analysis.falsePromotion", "0,05"),
    bad("a probability is above one half", "spec.analysis.falsePromotion", "0.95"),
    bad("a deadline is over before the first look", "spec.analysis.deadline", "10s"),
    bad("one failed look is called an outage", "spec.analysis.outage", "1s"),
    bad("an end is unknown", "spec.analysis.onInconclusive", "Rollforward"),
    bad(
        "a label name has a dash", "spec.analysis.arms", {"label": "pod-name"}, at="spec.analysis.arms.label"
    ),
    bad("a name of a server has a slash", "spec.analysis.prometheus", "http://prometheus"),
    # metrics
    bad("a metric has no name", METRICS, [{"ratio": errors()["ratio"]}], at=f"{METRICS}[0].name"),
    bad(
        "a name of a metric has a space",
        METRICS,
        [{**errors(), "name": "my errors"}],
        at=f"{METRICS}[0].name",
    ),
    bad(
        "two metrics have one name",
        METRICS,
        [errors(), errors()],
        at=f"{METRICS}[1].name",
        names="metrics[1]",
    ),
    bad("a metric has no kind", METRICS, [{"name": "errors"}], at=f"{METRICS}[0]"),
    bad("a metric has two kinds", METRICS, [{**errors(), **score(), "name": "both"}], at=f"{METRICS}[0]"),
    bad("a metric has no weight", METRICS, [errors(weight=0)], at=f"{METRICS}[0].weight"),
    bad(
        "a rate is no series selector",
        METRICS,
        [errors(ratio={"bad": "rate(r[5m])", "total": "r"})],
        at=f"{METRICS}[0].ratio.bad",
    ),
    bad(
        "a sum is no series selector",
        METRICS,
        [errors(ratio={"bad": "r", "total": "a + b"})],
        at=f"{METRICS}[0].ratio.total",
    ),
    bad("a ratio has no total", METRICS, [errors(ratio={"bad": "r"})], at=f"{METRICS}[0].ratio.total"),
    bad("a range is no series selector", METRICS, [score(sum="q[1m]")], at=f"{METRICS}[0].score.sum"),
    bad("a count is a function", METRICS, [score(count="count(q)")], at=f"{METRICS}[0].score.count"),
    bad("a score has no range", METRICS, [score(min="1")], at=f"{METRICS}[0].score.max"),
    bad("a direction is unknown", METRICS, [score(better="Up")], at=f"{METRICS}[0].score.better"),
    bad(
        "a histogram is a function",
        METRICS,
        [latency(histogram="sum(d)")],
        at=f"{METRICS}[0].latency.histogram",
    ),
    bad(
        "a histogram has its suffix",
        METRICS,
        [latency(histogram='d_bucket{a="b"}')],
        at=f"{METRICS}[0].latency.histogram",
    ),
    bad("requests take no time", METRICS, [latency(slo="0s")], at=f"{METRICS}[0].latency.slo"),
    bad(
        "a latency has no SLO",
        METRICS,
        [{"name": "latency", "latency": {"histogram": "d"}}],
        at=f"{METRICS}[0].latency.slo",
    ),
    bad("a guardrail has no bound", METRICS, [guardrail()], at=f"{METRICS}[0].guardrail"),
    bad(
        "a guardrail can't be kept", METRICS, [guardrail(min="2", max="1")], at=f"{METRICS}[0].guardrail.max"
    ),
    bad("a bound is a number", METRICS, [guardrail(max=70000)], at=f"{METRICS}[0].guardrail.max"),
    bad(
        "a guardrail never acts",
        METRICS,
        [guardrail(max="1", failures=0)],
        at=f"{METRICS}[0].guardrail.failures",
    ),
    bad(
        "a guardrail has a margin",
        METRICS,
        [{**guardrail(max="1"), "margin": {"harm": {"ratio": "1.1"}}}],
        at=f"{METRICS}[0].margin",
    ),
    bad(
        "harm is above what is accepted",
        METRICS,
        [errors(margin={"harm": {"ratio": "1.5"}, "accept": {"ratio": "1.2"}})],
        at=f"{METRICS}[0].margin.harm.ratio",
    ),
    bad(
        "harm is above what is accepted by default",
        METRICS,
        [errors(margin={"harm": {"absolute": "0.01"}})],
        at=f"{METRICS}[0].margin.harm.absolute",
    ),
    bad(
        "harm of a latency is above what is accepted by default",
        METRICS,
        [{**latency(), "margin": {"harm": {"ratio": "1.51"}}}],
        at=f"{METRICS}[0].margin.harm.ratio",
    ),
    bad(
        "harm of a score is above what is accepted by default",
        METRICS,
        [{**score(), "margin": {"harm": {"ratio": "1.01"}}}],
        at=f"{METRICS}[0].margin.harm.ratio",
    ),
    bad(
        "a better model than the baseline is demanded",
        METRICS,
        [errors(margin={"accept": {"ratio": "0.9"}})],
        at=f"{METRICS}[0].margin.accept.ratio",
    ),
    bad(
        "a margin is negative",
        METRICS,
        [errors(margin={"accept": {"absolute": "-0.1"}})],
        at=f"{METRICS}[0].margin.accept.absolute",
    ),
    bad(
        "an equal model could never be proven",
        METRICS,
        [errors(margin={"accept": {"ratio": "1", "absolute": "0"}})],
        at=f"{METRICS}[0].margin.accept",
    ),
    # the rest
    bad("an old revision keeps most requests", "spec.watch.holdback", 60),
    bad("a standby is larger than what it stands by for", "spec.watch.standby", 101),
    bad("an alarm does something unknown", "spec.watch.onAlarm", "Page"),
    bad("a watch never ends", "spec.watch.duration", "forever"),
    bad("pods have no time to start", "spec.progressDeadline", "0s"),
    bad("a delay is negative", "spec.drainDelay", "-30s"),
    bad("fewer than no revisions are kept", "spec.revisionHistoryLimit", -1),
    bad("a boolean is in quotes", "spec.paused", "true"),
    bad("a field of another API is written", "spec.replicas", 3),
    bad("a member that is not served is written", "spec.strategy.bandit", {}),
    # strategies
    bad("a weight of 0 shows nothing", STEPS, [{"weight": 0}, {"weight": 5}], at=f"{STEPS}[0].weight"),
    bad("a batch is no share", "spec.strategy.rolling", {"batch": "25"}, at="spec.strategy.rolling.batch"),
    bad(
        "a batch is everything", "spec.strategy.rolling", {"batch": "100%"}, at="spec.strategy.rolling.batch"
    ),
    bad("a batch is empty", "spec.strategy.rolling", {"batch": 0}, at="spec.strategy.rolling.batch"),
    bad(
        "a router's share and all of the baseline's pods are no batches",
        "spec.strategy.rolling",
        {"batch": 1},
        at="spec.workload.elastic",
        also=ROUTED,
    ),
    bad("two strategies are written", "spec.strategy", {"rolling": {}, "canary": {}}),
    bad(
        "steps follow a shadow that stops",
        "spec.strategy.shadow",
        {"canary": {"maxWeight": 20}},
        at="spec.strategy.shadow.canary",
        also=ROUTED,
    ),
    bad("pods can't copy requests", "spec.strategy", {"shadow": {}}, names="podRatio"),
    bad("pods can't copy the requests of a step", "spec.strategy", WITH_MIRROR, names="podRatio"),
    bad("nobody can shadow nothing", "spec.strategy.shadow", {"mirror": 0}, at="spec.strategy.shadow.mirror"),
    bad("pods can't switch at once", "spec.strategy.blueGreen", {"approval": True}, names="podRatio"),
    bad("nothing decides on the switch", "spec.strategy.blueGreen", {}, also=ROUTED),
    # gates
    bad(
        "a gate asks nothing",
        "spec.gates.start",
        [{"name": "a"}],
        at="spec.gates.start[0]",
        names="webhook and job",
    ),
    bad(
        "a gate asks twice",
        "spec.gates.promotion",
        [hook() | job()],
        at="spec.gates.promotion[0]",
        names="webhook and job",
    ),
    bad(
        "a gate of a step asks nothing",
        STEPS,
        [{"weight": 5, "gates": [{"name": "a"}]}],
        at=f"{STEPS}[0].gates[0]",
        names="webhook and job",
    ),
    bad(
        "two gates have one name",
        "spec.gates.start",
        [hook(), hook()],
        at="spec.gates.start[1].name",
        names="start",
    ),
    bad(
        "a gate has no name",
        "spec.gates.start",
        [{"webhook": {"url": "https://a/"}}],
        at="spec.gates.start[0].name",
    ),
    bad(
        "a webhook is no URL",
        "spec.gates.start",
        [hook(url="ci.example.com/gates")],
        at="spec.gates.start[0].webhook.url",
    ),
    bad(
        "a URL holds a password",
        "spec.gates.start",
        [hook(url="https://me:secret@ci.example.com/")],
        at="spec.gates.start[0].webhook.url",
    ),
    bad(
        "a webhook may take an hour",
        "spec.gates.start",
        [hook(timeout="1h")],
        at="spec.gates.start[0].webhook.timeout",
    ),
    bad(
        "a webhook may take no time",
        "spec.gates.start",
        [hook(timeout="0s")],
        at="spec.gates.start[0].webhook.timeout",
    ),
    bad(
        "a webhook is asked for ever",
        "spec.gates.start",
        [hook(retries=101)],
        at="spec.gates.start[0].webhook.retries",
    ),
    bad(
        "a Job has no template",
        "spec.gates.start",
        [{"name": "a", "job": {}}],
        at="spec.gates.start[0].job.template",
    ),
    bad(
        "a Job has no containers",
        "spec.gates.start",
        [job(template={"spec": {"containers": []}})],
        at="spec.gates.start[evaluation].job.template.spec.containers",
    ),
    bad("a Job has no time", "spec.gates.start", [job(deadline="0s")], at="spec.gates.start[0].job.deadline"),
    bad(
        "a result without a bound",
        "spec.gates.start",
        [job(result={})],
        at="spec.gates.start[0].job.result",
    ),
    bad(
        "bounds that no result meets",
        "spec.gates.start",
        [job(result={"min": "2", "max": "1"})],
        at="spec.gates.start[0].job.result.max",
    ),
    bad(
        "a shadow that stops promotes nothing",
        "spec.gates.promotion",
        [hook()],
        names="gates.promotion",
        also={**ROUTED, "spec.strategy": {"shadow": {}}},
    ),
    bad(
        "nothing can be counted before the switch",
        "spec.strategy.blueGreen",
        {"approval": True, "minRequests": 5},
        at="spec.strategy.blueGreen.minRequests",
        also=ROUTED,
    ),
    bad(
        "a header needs a route of ours",
        "spec.strategy.blueGreen",
        {"approval": True, "previewHeader": {"name": "x-preview", "value": "1"}},
        at="spec.strategy.blueGreen.previewHeader",
        also={"spec.traffic": {"httpRoute": {"name": "fraud"}}},
    ),
    bad(
        "two full sides are not elastic",
        "spec.strategy.blueGreen",
        {"approval": True},
        at="spec.workload.elastic",
        also=ROUTED | {"spec.workload.elastic": True},
    ),
    bad(
        "labels never arrive for copies",
        METRICS,
        [score(), errors(dryRun=True)],
        at="spec.strategy",
        names="analysis.metrics",
        also=ROUTED | {"spec.strategy": {"shadow": {}}},
    ),
    bad(
        "a size is no weight where pods are the weight",
        STEPS,
        [{"weight": 5, "size": 100}],
        at="spec.strategy",
        names="size",
    ),
    # A/B tests
    *(
        bad(name, TEST, {"duration": "1h", **test}, at=f"{TEST}{field}", also=ROUTED)
        for name, field, test in (
            ("a test both draws and chooses", "", {"weight": 10, "matches": CHOSEN}),
            ("a draw is said of a draw", ".randomized", {"randomized": True}),
            ("chosen users are no sample", ".reward", {"matches": CHOSEN, "reward": "errors"}),
            ("who is chosen stays anyway", ".stickiness", {"matches": CHOSEN, "stickiness": {"cookie": "v"}}),
            ("a reward is not measured", ".reward", {"reward": "revenue"}),
            ("a test has no time", ".duration", {"duration": "0s"}),
            ("a test that all requests match", ".matches[0]", {"matches": [{}]}),
            (
                "a parameter of the query is compared twice",
                ".matches[0].queryParams[1].name",
                {"matches": [{"queryParams": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]}]},
            ),
            ("a cookie has two values", ".matches[0].cookie.value", {"matches": [cookie("a; b=c")]}),
            (
                "a cookie lasts no time",
                ".stickiness.lifetime",
                {"stickiness": {"cookie": "v", "lifetime": "0s"}},
            ),
            ("a test with all of the requests", ".weight", {"weight": 100}),
            ("a test does something unknown", ".otherwise", {"otherwise": "Canary"}),
        )
    ),
    bad("a test does not end", TEST, {}, at=f"{TEST}.duration"),
    bad(
        "pods can't choose requests",
        TEST,
        {"duration": "1h", "matches": CHOSEN},
        at="spec.strategy",
        names="matches",
    ),
    bad(
        "a route of the user's gets no rule more",
        STEPS,
        [{"weight": 0, "matches": CHOSEN}, {"weight": 5}],
        at="spec.strategy",
        names="gatewayAPI",
        also={"spec.traffic": {"httpRoute": {"name": "fraud"}}},
    ),
    bad(
        "the steps after a shadow choose requests in a route of the user's",
        "spec.strategy",
        {
            "shadow": {
                "then": "Canary",
                "canary": {"steps": [{"weight": 0, "matches": CHOSEN}, {"weight": 5}]},
            }
        },
        names="gatewayAPI",
        also={"spec.traffic": {"httpRoute": {"name": "fraud"}}},
    ),
    bad(
        "Istio keeps a user on a pod and not on a version",
        TEST,
        {"duration": "1h", "stickiness": {"cookie": "v"}},
        at=f"{TEST}.stickiness",
        names="consistentHash",
        also={"spec.traffic": {"istio": {"virtualService": {"name": "fraud"}}}},
    ),
    bad(
        "a reward is a time",
        TEST,
        {"duration": "1h", "reward": "latency"},
        at=f"{TEST}.reward",
        also={METRICS: [errors(), latency()]},
    ),
    bad(
        "a reward decides nothing",
        TEST,
        {"duration": "1h", "reward": "quality"},
        at=f"{TEST}.reward",
        also={METRICS: [errors(), {**score(), "dryRun": True}]},
    ),
    bad("a test compares nothing", TEST, {"duration": "1h"}, also={"spec.analysis": {"mode": "Off"}}),
    bad(
        "chosen users want room beside the baseline",
        TEST,
        {"duration": "1h", "matches": CHOSEN},
        at="spec.workload.elastic",
        also=ROUTED | {"spec.workload.elastic": True},
    ),
    bad(
        "chosen users of a step want room beside the baseline",
        STEPS,
        [{"weight": 0, "matches": CHOSEN}, {"weight": 5}],
        at="spec.workload.elastic",
        also=ROUTED | {"spec.workload.elastic": True},
    ),
    bad(
        "a test has a size where pods are the weight",
        TEST,
        {"duration": "1h", "size": 50},
        at="spec.strategy",
    ),
    bad(
        "a step both draws and chooses",
        STEPS,
        [{"weight": 5, "matches": CHOSEN}, {"weight": 5}],
        at=f"{STEPS}[0].matches",
        also=ROUTED,
    ),
    bad(
        "a step both copies and chooses",
        STEPS,
        [{"weight": 0, "mirror": 5, "matches": CHOSEN}, {"weight": 5}],
        at=f"{STEPS}[0].matches",
        also=ROUTED,
    ),
    bad("steps end with chosen users", STEPS, [{"weight": 0, "matches": CHOSEN}], at=STEPS, also=ROUTED),
)

_TOLERANT = {"harm": {"ratio": "1", "absolute": "0"}, "accept": {"ratio": "1", "absolute": "0.001"}}

GOOD: dict[str, Mapping[str, Any]] = {
    "the minimal manifest": {},
    "a name of 52 characters": {"metadata.name": "a" * 52},
    "the pod ratio": {"spec.traffic": {"podRatio": {}}},
    "a route to the only port": {"spec.traffic": gateway()},
    "a route to one of two ports": {"spec.traffic": gateway(port="grpc"), "spec.service.ports": TWO_PORTS},
    "a path by regular expression": {
        "spec.traffic": gateway(matches=[{"path": {"type": "RegularExpression", "value": ".*"}}])
    },
    "the template of a Deployment": {"spec.workload": {"deploymentRef": {"name": "fraud"}}},
    "a Deployment that is scaled down": {
        "spec.workload": {"deploymentRef": {"name": "fraud", "scaleDown": "OnceHealthy"}, "trackConfig": True}
    },
    "two Services of the user's": {"spec.workload": own_services(), **ROUTED},
    "one Service of the user's": {"spec.workload": own_services(None, replicas=3), **ROUTED},
    "two Services in a GRPCRoute of the user's": {
        "spec.workload": own_services(),
        "spec.traffic": {"grpcRoute": {"name": "fraud"}},
    },
    "two Services in a VirtualService of the user's": {
        "spec.workload": own_services(),
        "spec.traffic": {"istio": {"virtualService": {"name": "fraud"}}},
    },
    "two pools of the user's": {"spec.workload": own_services(kinds=POOLS), **ROUTED},
    "two pools in an HTTPRoute of the user's": {
        "spec.workload": own_services(kinds=POOLS),
        "spec.traffic": {"httpRoute": {"name": "fraud"}},
    },
    "from a Service to a pool of the same name": {
        "spec.workload": own_services("fraud-v1", kinds=("Service", "InferencePool")),
        **ROUTED,
    },
    "a route with filters, timeouts and annotations": {
        "spec.traffic": gateway(
            filters=[
                {
                    "requestHeaderModifier": {
                        "set": [{"name": "x-model", "value": "fraud"}],
                        "remove": ["x-debug"],
                    }
                },
                {"urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v1"}}},
                {"extensionRef": {"group": "gateway.example.com", "kind": "RateLimit", "name": "slow"}},
            ],
            timeouts={"request": "30s", "backendRequest": "10s"},
            annotations={"external-dns.alpha.kubernetes.io/target": "fraud.example.com"},
        )
    },
    "a time-out of the request that never ends": {
        "spec.traffic": gateway(timeouts={"request": "0s", "backendRequest": "10s"})
    },
    "an HTTPRoute of the user's": {"spec.traffic": {"httpRoute": {"name": "fraud"}}},
    "a GRPCRoute of the user's": {"spec.traffic": {"grpcRoute": {"name": "fraud.v1"}}},
    "a VirtualService of the user's": {
        "spec.traffic": {"istio": {"virtualService": {"name": "fraud", "route": "primary"}}}
    },
    "planned steps": {"spec.strategy": {"canary": {"maxWeight": 20}}},
    "equal weights": {STEPS: [{"weight": 5}, {"weight": 5, "approval": True}]},
    "batches of two pods": {"spec.strategy": {"rolling": {"batch": 2, "duration": "1m"}}},
    "batches with a router": {
        **ROUTED,
        "spec.strategy": {"rolling": {"batch": "10%", "approval": True}},
        "spec.workload.elastic": True,
    },
    "a shadow": {**ROUTED, "spec.strategy": {"shadow": {}}},
    "a shadow and then steps": {
        "spec.traffic": {"httpRoute": {"name": "fraud"}},
        "spec.strategy": {"shadow": {"mirror": 5, "then": "Canary", "canary": {"steps": [{"weight": 5}]}}},
    },
    "a blue-green switch on mirrored requests": {**ROUTED, "spec.strategy": {"blueGreen": {"mirror": 20}}},
    "a blue-green switch by approval, with a header": {
        **ROUTED,
        "spec.strategy": {
            "blueGreen": {"approval": True, "previewHeader": {"name": "x-preview", "value": "1"}}
        },
    },
    "a blue-green switch without analysis": {
        **ROUTED,
        "spec.strategy": {"blueGreen": {}},
        "spec.analysis": {"mode": "Off"},
    },
    "a blue-green switch by a gate": {
        **ROUTED,
        "spec.strategy": {"blueGreen": {}},
        "spec.gates": {"promotion": [job(result={"min": "0.9"})]},
    },
    "gates all around": {
        "spec.gates": {"start": [hook(secretRef={"name": "ci", "key": "hmac"}, timeout="1m"), job()]},
        STEPS: [{"weight": 5, "gates": [job(deadline="30m", retries=2) | {"onFailure": "Pause"}]}],
    },
    "a gate before a shadow": {
        **ROUTED,
        "spec.strategy": {"shadow": {}},
        "spec.gates": {"start": [hook()], "promotion": []},
    },
    "a canary that begins with copies": {**ROUTED, "spec.strategy": WITH_MIRROR},
    "a canary of full size": {**ROUTED, STEPS: [{"weight": 5, "size": 100, "mirror": 10}]},
    "a canary that begins with chosen users": {
        **ROUTED,
        STEPS: [{"weight": 0, "matches": CHOSEN, "size": 10, "duration": "1h"}, {"weight": 5}],
    },
    "a test of half of the requests without a router": {"spec.strategy": {"abTest": {"duration": "1h"}}},
    "a test that a reward ends, with a cookie that keeps users on one side": {
        **ROUTED,
        "spec.strategy": {
            "abTest": {
                "reward": "errors",
                "weight": 20,
                "duration": "6h",
                "minRequests": 1000,
                "stickiness": {"cookie": "fraud-side", "lifetime": "24h"},
                "otherwise": "Promote",
            }
        },
    },
    "a test of chosen users": {
        **ROUTED,
        "spec.strategy": {"abTest": {"matches": CHOSEN, "duration": "1h", "size": 50}},
    },
    "a test of users who were drawn by lot": {
        **ROUTED,
        "spec.strategy": {
            "abTest": {"matches": [cookie("b")], "randomized": True, "reward": "errors", "duration": "1h"}
        },
    },
    "an analysis that is off": {"spec.analysis": {"mode": "Off"}},
    "only a guardrail": {METRICS: [guardrail(max="70000")]},
    "requests that are counted by a metric that does not gate": {
        METRICS: [guardrail(max="1"), score() | {"dryRun": True}],
        STEPS: [{"weight": 1, "minRequests": 200}],
    },
    "no least number of requests, and nothing that counts": {
        METRICS: [guardrail(max="1")],
        STEPS: [{"weight": 1, "minRequests": 0}],
    },
    "all kinds of metrics": {METRICS: [errors(), latency(), score(), guardrail(min="-1.5")]},
    "the strictest margins": {METRICS: [errors(margin=_TOLERANT)]},
    "an accept margin below the default harm margin": {
        METRICS: [errors(margin={"accept": {"ratio": "1.01"}})]
    },
    "a selector without a name": {METRICS: [errors(ratio={"bad": '{__name__="r",code="5"}', "total": "r"})]},
    "a selector with a brace in its value": {
        METRICS: [errors(ratio={"bad": 'r{path="/a/{id}"}', "total": "r"})]
    },
    "no watch": {"spec.watch": {"duration": "0s", "holdback": 0}},
    "unknown fields inside of the pod template": {
        "spec.workload.template.spec.containers": [{"name": "a", "image": "b", "somethingNew": {"x": 1}}]
    },
}


def good(name: str) -> dict[str, Any]:
    """The minimal manifest with the changes of `GOOD[name]`."""
    return Bad(name, GOOD[name], "", "").manifest()
