"""Rules over several fields, each once: as CEL for the API server, and as Python for files that no API server has seen.

CEL refuses a bad manifest at `kubectl apply`; Python refuses it in the CLI, and in the operator when an older CRD let it
through. Both speak with the same sentence, which names the field and the mend. A rule that is only in one of the two forms
would drift, so they stand side by side and one table of bad manifests tests both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from modelrollout.api.spec import (
    UNION_MEMBERS,
    AbTest,
    Analysis,
    BlueGreen,
    Canary,
    Gate,
    GateJob,
    GatewayAPI,
    Guardrail,
    JobResult,
    Latency,
    Metric,
    OwnServices,
    PathMatch,
    PathModifier,
    Ratio,
    RequestMatch,
    RouteFilter,
    RouteTimeouts,
    Score,
    Service,
    Shadow,
    Spec,
    Step,
    Stickiness,
    Strategy,
    Tolerance,
    Traffic,
    Webhook,
    Workload,
)
from modelrollout.api.types import Model, format_duration

M = TypeVar("M", bound=Model)

NAME_LENGTH = 52
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MESSAGE = (
    f"metadata.name must start with a letter, have only a-z, 0-9 and -, and be at most {NAME_LENGTH} characters long, "
    "because names of Services are made from it: choose another name"
)
NAME_CEL = f"self.metadata.name.size() <= {NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')"
PREVIEW_MESSAGE = (
    "service.name is that of the Service by which the candidate of a blueGreen is previewed, and callers would reach it too: "
    "choose another name"
)
PREVIEW_CEL = (
    "!has(self.spec.service.name) || !has(self.spec.strategy) || !has(self.spec.strategy.blueGreen) || "
    "self.spec.service.name != self.metadata.name + '-preview'"
)


@dataclass(frozen=True, slots=True)
class Rule(Generic[M]):
    """One rule on a part of the spec; `field` is the camelCase path below that part that a person has to mend."""

    on: type[M]
    field: str
    message: str
    cel: str
    holds: Callable[[M], bool]


def _named(on: type[Model], field: str) -> str:
    """The field as a message names it: with the part that it belongs to, where the name alone is not clear."""
    return field if on is Spec else f"{on.__name__[0].lower()}{on.__name__[1:]}.{field}"


def _present(path: str) -> str:
    """CEL: every part of this path is there."""
    names = path.split(".")
    return " && ".join(f"has(self.{'.'.join(names[: end + 1])})" for end in range(len(names)))


def _unless_absent(path: str, cel: str) -> str:
    return f"!({_present(path)}) || ({cel})"


def _duration_at_least(on: type[M], field: str, attribute: str, least: float, why: str) -> Rule[M]:
    bound = format_duration(least)
    return Rule(
        on,
        field,
        f"{_named(on, field)} must be at least {bound}: {why}",
        _unless_absent(field, f"duration(self.{field}) >= duration('{bound}')"),
        lambda part: (length := getattr(part, attribute)) is None or bool(length >= least),
    )


def _not_shorter(field: str, attribute: str, than: str, other: str, why: str) -> Rule[Analysis]:
    return Rule(
        Analysis,
        field,
        f"analysis.{field} must not be shorter than analysis.{than}: {why}",
        f"!has(self.{field}) || !has(self.{than}) || duration(self.{field}) >= duration(self.{than})",
        lambda analysis: bool(getattr(analysis, attribute) >= getattr(analysis, other)),
    )


def _probability(field: str, attribute: str) -> Rule[Analysis]:
    return Rule(
        Analysis,
        field,
        f'analysis.{field} is a bound on a probability: it must be greater than "0" and at most "0.5"',
        _unless_absent(field, f"double(self.{field}) > 0.0 && double(self.{field}) <= 0.5"),
        lambda analysis: 0 < getattr(analysis, attribute) <= 0.5,
    )


_SELECTOR = r"^\s*([a-zA-Z_:][a-zA-Z0-9_:]*\s*(\{[\s\S]*\})?|\{[\s\S]*\})\s*$"


def _selector(on: type[M], field: str) -> Rule[M]:
    pattern = re.compile(_SELECTOR)
    return Rule(
        on,
        field,
        f"{_named(on, field)} must be a series selector like http_requests_total{{code=~'5..'}}, not an expression: "
        "leave out functions and ranges, the operator reads raw samples",
        f"self.{field}.matches(r'{_SELECTOR}')",
        lambda part: pattern.fullmatch(getattr(part, field)) is not None,
    )


def _within(field: str, least: float, most: float, meaning: str) -> Rule[Tolerance]:
    return Rule(
        Tolerance,
        field,
        f'margin: {field} {meaning}: it must be at least "{least:g}" and at most "{most:g}"',
        _unless_absent(field, f"double(self.{field}) >= {least:.1f} && double(self.{field}) <= {most:.1f}"),
        lambda part: (value := getattr(part, field)) is None or least <= value <= most,
    )


_ACCEPT_RATIO = (
    "(has(self.margin.accept) && has(self.margin.accept.ratio) ? double(self.margin.accept.ratio) : "
    "has(self.ratio) ? 1.25 : has(self.latency) ? 1.5 : 1.0)"
)
_ACCEPT_ABSOLUTE = (
    "(has(self.margin.accept) && has(self.margin.accept.absolute) ? double(self.margin.accept.absolute) : "
    "has(self.ratio) ? 0.0025 : has(self.latency) ? 0.005 : 0.01)"
)


def _harm_within_accept(part: str, accept: str) -> Rule[Metric]:
    field = f"margin.harm.{part}"
    return Rule(
        Metric,
        field,
        f"{field} must not be greater than margin.accept.{part} (or its default): what is proven harmless would be harm; "
        "lower harm or raise accept",
        _unless_absent(field, f"double(self.{field}) <= {accept}"),
        lambda metric: _ordered(metric, part),
    )


def _ordered(metric: Metric, part: str) -> bool:
    if metric.guardrail or not _one_kind(metric):
        return True
    margins = metric.margins
    return bool(getattr(margins, f"harm_{part}") <= getattr(margins, f"accept_{part}"))


def _provable(metric: Metric) -> bool:
    if metric.guardrail or not _one_kind(metric):
        return True
    return metric.margins.accept_ratio > 1 or metric.margins.accept_absolute > 0


def _one_kind(metric: Metric) -> bool:
    return (
        sum(kind is not None for kind in (metric.ratio, metric.score, metric.latency, metric.guardrail)) == 1
    )


def _port_is_known(spec: Spec) -> bool:
    port = spec.traffic.gateway_api.port if spec.traffic.gateway_api else None
    return port is None or any(port == known.name for known in spec.service.ports)


def _port_is_clear(spec: Spec) -> bool:
    route = spec.traffic.gateway_api
    return route is None or route.port is not None or len(spec.service.ports) == 1


_METRIC_NEEDED = 'analysis.metrics needs at least one metric: add one, or set analysis.mode: "Off" to release without proof'


def _set(part: Model, attributes: tuple[str, ...]) -> int:
    return sum(getattr(part, attribute) is not None for attribute in attributes)


def _one_router(traffic: Traffic) -> bool:
    return _set(traffic, UNION_MEMBERS[Traffic]) <= 1


def _one_filter(one: RouteFilter) -> bool:
    return _set(one, UNION_MEMBERS[RouteFilter]) == 1


def _step_names_differ(canary: Canary) -> bool:
    names = [step.name for step in canary.steps or () if step.name]
    return len(names) == len(set(names))


def _one_source(workload: Workload) -> bool:
    sources = (workload.template, workload.deployment_ref, workload.services)
    return sum(bool(source) for source in sources) == 1


def _one_gate(gate: Gate) -> bool:
    return _set(gate, UNION_MEMBERS[Gate]) == 1


def _one_strategy(strategy: Strategy) -> bool:
    return _set(strategy, UNION_MEMBERS[Strategy]) <= 1


# What routers can do; a test holds it against the routers themselves.
MIRRORS = ("gatewayAPI", "httpRoute", "grpcRoute", "istio")
MATCHES = ("gatewayAPI",)
STICKS = ("gatewayAPI",)


def _some_step(cel: str) -> str:
    """CEL: a written step is so. Those of a shadow need no look: a shadow itself asks for all that they could."""
    return f"({_present('strategy.canary.steps')} && self.strategy.canary.steps.exists(s, {cel}))"


_MIRRORING, _SIZED = "has(s.mirror) && s.mirror > 0", "has(s.size) && s.size > 0"
_CAN_MIRROR = f"(has(self.traffic) && ({' || '.join(f'has(self.traffic.{router})' for router in MIRRORS)}))"
_COPIES_BEFORE = (
    "(has(self.strategy.shadow) || has(self.strategy.blueGreen) && has(self.strategy.blueGreen.mirror) && "
    "self.strategy.blueGreen.mirror > 0)"
)
_TEST = "self.strategy.abTest"
_MATCHES = (
    f"({_present('strategy.abTest.matches')} || {_some_step('has(s.matches)')} || "
    f"({_present('strategy.shadow.canary.steps')} && self.strategy.shadow.canary.steps.exists(s, has(s.matches))))"
)
_TEST_SIZED = f"({_present('strategy.abTest.size')} && {_TEST}.size > 0)"
_MODE_OFF = "(has(self.analysis) && has(self.analysis.mode) && self.analysis.mode == 'Off')"


def _on_copies(spec: Spec) -> bool:
    """Whether a decision rests on copies of requests alone."""
    blue_green = spec.strategy.blue_green
    return spec.strategy.shadow is not None or (blue_green is not None and blue_green.mirror > 0)


def _requests_are_counted(spec: Spec) -> bool:
    rolling = spec.strategy.rolling
    wanted = any(step.min_requests for step in spec.strategy.steps) or (rolling and rolling.min_requests)
    return not wanted or any(metric.guardrail is None for metric in spec.analysis.metrics)


def _judged_on_copies(spec: Spec) -> bool:
    metrics = [m for m in spec.analysis.metrics if m.ratio is not None or m.latency is not None]
    return not _on_copies(spec) or any(metric.gating for metric in metrics)


def _switch_is_decided(spec: Spec) -> bool:
    blue_green = spec.strategy.blue_green
    if blue_green is None or blue_green.mirror > 0 or blue_green.approval:
        return True
    return bool(spec.gates.promotion) or spec.analysis.mode == "Off"


def _preview_is_routed(spec: Spec) -> bool:
    blue_green = spec.strategy.blue_green
    return blue_green is None or blue_green.preview_header is None or spec.traffic.gateway_api is not None


def _may_win(test: AbTest) -> bool:
    return test.reward is None or test.matches is None or test.randomized


def _reward_is_measured(spec: Spec) -> bool:
    reward = spec.strategy.ab_test.reward if spec.strategy.ab_test else None
    measured = [m.name for m in spec.analysis.metrics if (m.ratio or m.score) and m.gating]
    return reward is None or reward in measured


def _sticks(spec: Spec) -> bool:
    test = spec.strategy.ab_test
    return test is None or test.stickiness is None or spec.traffic.router in STICKS


def _of_strategies(cel: str) -> str:
    return f"!has(self.strategy) || ({cel})"


def _is_pool(path: str) -> str:
    """CEL: one of the user's Services is an InferencePool."""
    return f"{_present(f'{path}.kind')} && self.{path}.kind == 'InferencePool'"


_SOME_POOL = f"{_is_pool('workload.services.stable')} || {_is_pool('workload.services.candidate')}"


def _some_pool(spec: Spec) -> bool:
    return spec.workload.services is not None and spec.workload.services.pooled


POOLS_TAKE_NO_COPIES = (
    "strategy copies requests (mirror), and gateways do not ask the endpoint picker of an InferencePool for copies: remove "
    "mirror and shadow, or name Services in workload.services"
)


RULES: tuple[Rule[Any], ...] = (
    Rule(
        Workload,
        "template",
        "workload takes exactly one of template, deploymentRef and services: write the pod template of the model server, "
        "as in a Deployment, or name what you run, and remove the others",
        "[has(self.template), has(self.deploymentRef), has(self.services)].filter(source, source).size() == 1",
        _one_source,
    ),
    Rule(
        Workload,
        "trackConfig",
        "workload.trackConfig is not for workload.services, whose pods the operator does not make: remove it",
        "!has(self.services) || !has(self.trackConfig) || !self.trackConfig",
        lambda workload: workload.services is None or not workload.track_config,
    ),
    Rule(
        Workload,
        "elastic",
        "workload.elastic is not for workload.services, whose pods the operator does not scale: remove it",
        "!has(self.services) || !has(self.elastic) || !self.elastic",
        lambda workload: workload.services is None or not workload.elastic,
    ),
    Rule(
        OwnServices,
        "candidate",
        "workload.services.candidate must be another Service than stable: one Service can't be split",
        f"!has(self.candidate) || self.candidate.name != self.stable.name || ({_is_pool('candidate')}) != "
        f"({_is_pool('stable')})",
        lambda own: own.candidate is None or own.candidate != own.stable,
    ),
    Rule(
        Spec,
        "traffic",
        "traffic needs a router with workload.services, as without one the split is made by pods of the operator's own: "
        f"choose one of {', '.join(MIRRORS)}",
        f"!has(self.workload.services) || {_CAN_MIRROR}",
        lambda spec: spec.workload.services is None or spec.traffic.router in MIRRORS,
    ),
    Rule(
        Spec,
        "traffic",
        "traffic must be gatewayAPI or httpRoute with an InferencePool in workload.services: only an HTTPRoute can name one",
        f"!({_SOME_POOL}) || (has(self.traffic) && (has(self.traffic.gatewayAPI) || has(self.traffic.httpRoute)))",
        lambda spec: not _some_pool(spec) or spec.traffic.router in ("gatewayAPI", "httpRoute"),
    ),
    Rule(
        Spec,
        "strategy",
        POOLS_TAKE_NO_COPIES,
        _of_strategies(f"!({_SOME_POOL}) || !({_COPIES_BEFORE} || {_some_step(_MIRRORING)})"),
        lambda spec: not _some_pool(spec) or not spec.strategy.mirrors,
    ),
    Rule(
        Spec,
        "service.name",
        "service.name is not for workload.services, where callers use the route and no further Service is made: remove it",
        "!has(self.workload.services) || !has(self.service.name)",
        lambda spec: spec.workload.services is None or spec.service.name is None,
    ),
    Rule(
        Service,
        "ports",
        "service.ports must have different numbers: change one of the equal ports",
        "self.ports.all(p, self.ports.exists_one(q, q.port == p.port))",
        lambda service: len({port.port for port in service.ports}) == len(service.ports),
    ),
    Rule(
        Spec,
        "traffic.gatewayAPI.port",
        "traffic.gatewayAPI.port is needed when service.ports has several: name the one that is routed",
        "!has(self.traffic) || !has(self.traffic.gatewayAPI) || has(self.traffic.gatewayAPI.port) "
        "|| self.service.ports.size() == 1",
        _port_is_clear,
    ),
    Rule(
        Spec,
        "traffic.gatewayAPI.port",
        "traffic.gatewayAPI.port must be the name of one of service.ports: correct it or add the port",
        _unless_absent(
            "traffic.gatewayAPI.port", "self.service.ports.exists(p, p.name == self.traffic.gatewayAPI.port)"
        ),
        _port_is_known,
    ),
    Rule(
        Traffic,
        "",
        "traffic takes only one of gatewayAPI, httpRoute, grpcRoute, istio and podRatio: remove the others",
        "[has(self.gatewayAPI), has(self.httpRoute), has(self.grpcRoute), has(self.istio), has(self.podRatio)]"
        ".filter(member, member).size() <= 1",
        _one_router,
    ),
    Rule(
        GatewayAPI,
        "annotations",
        "gatewayAPI.annotations must not begin with modelrollout.dev/, which the operator keeps for itself: rename them",
        "!has(self.annotations) || self.annotations.all(key, !key.startsWith('modelrollout.dev/'))",
        lambda gateway: not any(key.startswith("modelrollout.dev/") for key in gateway.annotations),
    ),
    Rule(
        RouteFilter,
        "",
        "gatewayAPI.filters: each takes exactly one of requestHeaderModifier, responseHeaderModifier, urlRewrite and "
        "extensionRef: add one or remove the others",
        "[has(self.requestHeaderModifier), has(self.responseHeaderModifier), has(self.urlRewrite), has(self.extensionRef)]"
        ".filter(member, member).size() == 1",
        _one_filter,
    ),
    Rule(
        PathModifier,
        "",
        "urlRewrite.path needs the field that its type names, and not the other: write replaceFullPath for "
        "ReplaceFullPath, replacePrefixMatch for ReplacePrefixMatch",
        "has(self.replaceFullPath) == (self.type == 'ReplaceFullPath') && "
        "has(self.replacePrefixMatch) == (self.type == 'ReplacePrefixMatch')",
        lambda path: (
            (path.replace_full_path is not None) == (path.type == "ReplaceFullPath")
            and (path.replace_prefix_match is not None) == (path.type == "ReplacePrefixMatch")
        ),
    ),
    Rule(
        RouteTimeouts,
        "backendRequest",
        "timeouts.backendRequest must not be longer than timeouts.request: the request would be over before",
        "!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || "
        "duration(self.backendRequest) <= duration(self.request)",
        lambda timeouts: (
            not timeouts.request
            or timeouts.backend_request is None
            or timeouts.backend_request <= timeouts.request
        ),
    ),
    Rule(
        PathMatch,
        "value",
        "matches.path.value must start with / unless matches.path.type is RegularExpression: put a / in front",
        "(has(self.type) && self.type == 'RegularExpression') || !has(self.value) || self.value.startsWith('/')",
        lambda path: path.type == "RegularExpression" or path.value.startswith("/"),
    ),
    Rule(
        Canary,
        "steps",
        "canary.steps must have weights that do not fall: sort the steps by weight",
        "!has(self.steps) || self.steps.map(step, step.weight).isSorted()",
        lambda canary: all(one.weight <= two.weight for one, two in pairwise(canary.steps or ())),
    ),
    Rule(
        Canary,
        "steps",
        "canary.steps must have different names: rename one of the steps or leave its name out",
        "!has(self.steps) || self.steps.all(s, !has(s.name) || "
        "self.steps.exists_one(t, has(t.name) && t.name == s.name))",
        _step_names_differ,
    ),
    Rule(
        Canary,
        "steps",
        "canary.steps must not end with matches: what matches is no sample of all requests, so nothing could be proven by it; "
        "add a step with a weight, or choose abTest",
        "!has(self.steps) || self.steps.size() == 0 || !has(self.steps[self.steps.size() - 1].matches)",
        lambda canary: not canary.steps or canary.steps[-1].matches is None,
    ),
    Rule(
        Step,
        "weight",
        "canary.steps: a weight of 0 needs mirror or matches, or nothing could be seen of the candidate: raise the weight or "
        "add one of them",
        "self.weight > 0 || (has(self.mirror) && self.mirror > 0) || has(self.matches)",
        lambda step: step.weight > 0 or step.mirror > 0 or step.matches is not None,
    ),
    Rule(
        Step,
        "matches",
        "canary.steps: matches choose requests in place of a share of them or of copies: set the weight to 0 and remove mirror, "
        "or make two steps of it",
        "!has(self.matches) || (self.weight == 0 && (!has(self.mirror) || self.mirror == 0))",
        lambda step: step.matches is None or (step.weight == 0 and step.mirror == 0),
    ),
    Rule(
        RequestMatch,
        "",
        "matches: each needs headers, cookie or queryParams, or every request would match: add one of them",
        "has(self.headers) || has(self.cookie) || has(self.queryParams)",
        lambda match: any((match.headers, match.cookie, match.query_params)),
    ),
    Rule(
        Strategy,
        "",
        "strategy takes only one of canary, rolling, blueGreen, shadow and abTest: remove the others",
        "[has(self.canary), has(self.rolling), has(self.blueGreen), has(self.shadow), has(self.abTest)]"
        ".filter(member, member).size() <= 1",
        _one_strategy,
    ),
    Rule(
        AbTest,
        "",
        "abTest takes only one of weight and matches: a share of all requests, or those that match; remove the other",
        "!(has(self.weight) && has(self.matches))",
        lambda test: test.weight is None or test.matches is None,
    ),
    Rule(
        AbTest,
        "randomized",
        "abTest.randomized says how it was drawn who matches, and a weight always is a random split: remove it, or use matches",
        "!has(self.randomized) || !self.randomized || has(self.matches)",
        lambda test: not test.randomized or test.matches is not None,
    ),
    Rule(
        AbTest,
        "reward",
        "abTest.reward needs a random split, as users who match may differ from others: set randomized: true if it was drawn by "
        "lot who matches, or use weight in place of matches, or remove reward",
        "!has(self.reward) || !has(self.matches) || (has(self.randomized) && self.randomized)",
        _may_win,
    ),
    Rule(
        AbTest,
        "stickiness",
        "abTest.stickiness is for weight: who matches stays on one side by that; remove it",
        "!has(self.stickiness) || !has(self.matches)",
        lambda test: test.stickiness is None or test.matches is None,
    ),
    _duration_at_least(AbTest, "duration", "duration", 1.0, "it is the end of the test"),
    _duration_at_least(
        Stickiness, "lifetime", "lifetime", 1.0, "a user would be on another side with the next request"
    ),
    Rule(
        Spec,
        "strategy.abTest.reward",
        "strategy.abTest.reward must be the name of one of analysis.metrics that is a ratio or a score without dryRun: correct "
        "it or add the metric",
        _unless_absent(
            "strategy.abTest.reward",
            "has(self.analysis) && has(self.analysis.metrics) && self.analysis.metrics.exists(m, "
            f"m.name == {_TEST}.reward && (has(m.ratio) || has(m.score)) && !(has(m.dryRun) && m.dryRun))",
        ),
        _reward_is_measured,
    ),
    Rule(
        Spec,
        "strategy.abTest",
        'strategy.abTest compares, and analysis.mode: "Off" says not to: set it to "On" with metrics, or choose another strategy',
        f"!({_present('strategy.abTest')}) || !{_MODE_OFF}",
        lambda spec: spec.strategy.ab_test is None or spec.analysis.mode == "On",
    ),
    Rule(
        Spec,
        "strategy",
        "strategy chooses requests by matches, which only a route of the operator's own can: choose "
        f"{', '.join(MATCHES)} in traffic, or use weight",
        f"!{_MATCHES} || (has(self.traffic) && has(self.traffic.gatewayAPI))",
        lambda spec: not spec.strategy.matches or spec.traffic.router in MATCHES,
    ),
    Rule(
        Spec,
        "strategy.abTest.stickiness",
        "strategy.abTest.stickiness needs a router that keeps a user on one version (Istio's consistentHash chooses the pod, not "
        f"the version): choose {', '.join(STICKS)} in traffic, or remove it",
        _unless_absent("strategy.abTest.stickiness", "has(self.traffic) && has(self.traffic.gatewayAPI)"),
        _sticks,
    ),
    Rule(
        Shadow,
        "canary",
        "shadow.canary has steps that follow only with shadow.then: Canary: set it, or remove them",
        "!has(self.canary) || (has(self.then) && self.then == 'Canary')",
        lambda shadow: shadow.canary is None or shadow.then == "Canary",
    ),
    Rule(
        BlueGreen,
        "minRequests",
        "blueGreen.minRequests counts copies, as users' requests come after the switch: add blueGreen.mirror, or remove it",
        "!has(self.minRequests) || self.minRequests == 0 || (has(self.mirror) && self.mirror > 0)",
        lambda blue_green: not blue_green.min_requests or blue_green.mirror > 0,
    ),
    Rule(
        Spec,
        "strategy",
        f"strategy copies requests (mirror), which traffic.podRatio can't: choose one of {', '.join(MIRRORS)} in traffic",
        _of_strategies(f"!({_COPIES_BEFORE} || {_some_step(_MIRRORING)}) || {_CAN_MIRROR}"),
        lambda spec: not spec.strategy.mirrors or spec.traffic.router in MIRRORS,
    ),
    Rule(
        Spec,
        "strategy.blueGreen",
        "strategy.blueGreen needs a router, as traffic.podRatio makes shares of pods and not of requests: "
        f"choose one of {', '.join(MIRRORS)} in traffic",
        _of_strategies(f"!has(self.strategy.blueGreen) || {_CAN_MIRROR}"),
        lambda spec: spec.strategy.blue_green is None or spec.traffic.router in MIRRORS,
    ),
    Rule(
        Spec,
        "strategy.blueGreen.previewHeader",
        "strategy.blueGreen.previewHeader needs traffic.gatewayAPI, whose route the operator owns: choose it, or remove the "
        "header and use the Service <name>-preview",
        _unless_absent(
            "strategy.blueGreen.previewHeader", "has(self.traffic) && has(self.traffic.gatewayAPI)"
        ),
        _preview_is_routed,
    ),
    Rule(
        Spec,
        "workload.elastic",
        "workload.elastic keeps no more than replicas + 1 pods, and strategy wants more (blueGreen, mirror, matches or size): set "
        "it to false, or choose rolling or a canary without them",
        _of_strategies(
            f"!(has(self.workload.elastic) && self.workload.elastic) || !({_COPIES_BEFORE} || "
            f"has(self.strategy.blueGreen) || {_MATCHES} || {_TEST_SIZED} || "
            f"{_some_step(f'({_MIRRORING}) || ({_SIZED})')})"
        ),
        lambda spec: not spec.workload.elastic or not spec.strategy.needs_room,
    ),
    Rule(
        Spec,
        "strategy",
        "strategy: size needs a router, as with traffic.podRatio the pods are the weight: "
        f"choose one of {', '.join(MIRRORS)} in traffic, or remove size",
        _of_strategies(f"!({_some_step(_SIZED)} || {_TEST_SIZED}) || {_CAN_MIRROR}"),
        lambda spec: not spec.strategy.sized or spec.traffic.router in MIRRORS,
    ),
    Rule(
        Spec,
        "workload.elastic",
        "strategy.rolling replaces pods batch by batch: with a router in traffic set workload.elastic: true, or choose canary",
        _of_strategies(
            f"!has(self.strategy.rolling) || !{_CAN_MIRROR} || (has(self.workload.elastic) && self.workload.elastic)"
        ),
        lambda spec: (
            spec.strategy.rolling is None or spec.workload.elastic or spec.traffic.router == "podRatio"
        ),
    ),
    Rule(
        Spec,
        "strategy",
        "strategy judges copies of requests, for which no labels arrive: analysis.metrics needs a ratio or latency metric "
        "without dryRun: add one",
        _of_strategies(
            f"!{_COPIES_BEFORE} || (has(self.analysis) && has(self.analysis.metrics) && self.analysis.metrics.exists(m, "
            "(has(m.ratio) || has(m.latency)) && !(has(m.dryRun) && m.dryRun)))"
        ),
        _judged_on_copies,
    ),
    Rule(
        Spec,
        "strategy",
        "strategy: minRequests is counted by a metric, and a guardrail counts nothing: add a ratio, score or latency metric to "
        "analysis.metrics (dryRun: true is enough), or remove minRequests",
        _of_strategies(
            f"!({_some_step('has(s.minRequests) && s.minRequests > 0')} || "
            f"({_present('strategy.rolling.minRequests')} && self.strategy.rolling.minRequests > 0)) || "
            "(has(self.analysis) && has(self.analysis.metrics) && self.analysis.metrics.exists(m, !has(m.guardrail)))"
        ),
        _requests_are_counted,
    ),
    Rule(
        Spec,
        "strategy.blueGreen",
        "strategy.blueGreen has nothing that decides on the switch: add mirror, to judge copies of requests, or approval: true, "
        'or gates.promotion, or set analysis.mode: "Off" to switch as soon as the pods are ready',
        _of_strategies(
            "!has(self.strategy.blueGreen) || (has(self.strategy.blueGreen.mirror) && self.strategy.blueGreen.mirror > 0) || "
            f"(has(self.strategy.blueGreen.approval) && self.strategy.blueGreen.approval) || {_MODE_OFF} || "
            "(has(self.gates) && has(self.gates.promotion) && self.gates.promotion.size() > 0)"
        ),
        _switch_is_decided,
    ),
    Rule(
        Spec,
        "analysis",
        _METRIC_NEEDED,
        "has(self.analysis)",
        lambda spec: (
            True
        ),  # in memory an analysis that is left out is an empty one, which the next rule refuses
    ),
    Rule(
        Analysis,
        "metrics",
        _METRIC_NEEDED,
        "(has(self.mode) && self.mode == 'Off') || (has(self.metrics) && self.metrics.size() > 0)",
        lambda analysis: analysis.mode == "Off" or len(analysis.metrics) > 0,
    ),
    Rule(
        Analysis,
        "metrics",
        'analysis.metrics must be empty when analysis.mode is "Off": remove them, or set it to "On" and mark them dryRun: true',
        "!has(self.mode) || self.mode != 'Off' || !has(self.metrics) || self.metrics.size() == 0",
        lambda analysis: analysis.mode == "On" or not analysis.metrics,
    ),
    _duration_at_least(Analysis, "interval", "interval", 1.0, "a look at Prometheus is not free"),
    _duration_at_least(
        Analysis, "scrapeInterval", "scrape_interval", 1.0, "write what Prometheus is configured with"
    ),
    _not_shorter(
        "interval", "interval", "scrapeInterval", "scrape_interval", "there is nothing new to see sooner"
    ),
    _not_shorter("deadline", "deadline", "interval", "interval", "nothing could ever be proven"),
    _not_shorter("outage", "outage", "interval", "interval", "one failed look is no outage"),
    _probability("falseRollback", "false_rollback"),
    _probability("falsePromotion", "false_promotion"),
    Rule(
        Metric,
        "",
        "metrics: each takes exactly one of ratio, score, latency and guardrail: add one or remove the others",
        "[has(self.ratio), has(self.score), has(self.latency), has(self.guardrail)].filter(kind, kind).size() == 1",
        _one_kind,
    ),
    Rule(
        Metric,
        "margin",
        "margin is not for a guardrail, which has only min and max: remove the margin",
        "!(has(self.guardrail) && has(self.margin))",
        lambda metric: metric.guardrail is None or metric.margin == type(metric.margin)(),
    ),
    _harm_within_accept("ratio", _ACCEPT_RATIO),
    _harm_within_accept("absolute", _ACCEPT_ABSOLUTE),
    Rule(
        Metric,
        "margin.accept",
        'margin.accept of ratio "1" and absolute "0" can never be proven, not even for an equal model: raise one of them',
        f"!has(self.margin) || has(self.guardrail) || {_ACCEPT_RATIO} > 1.0 || {_ACCEPT_ABSOLUTE} > 0.0",
        _provable,
    ),
    _within("ratio", 1, 100, "is a factor on the baseline's share of bad requests"),
    _within("absolute", 0, 0.5, "is a share of the requests"),
    _selector(Ratio, "bad"),
    _selector(Ratio, "total"),
    _selector(Score, "sum"),
    _selector(Score, "count"),
    _selector(Latency, "histogram"),
    Rule(
        Latency,
        "histogram",
        "latency.histogram must be named without its suffix _bucket: remove the suffix",
        r"!self.histogram.matches(r'^\s*[^{]*_bucket\s*(\{|$)')",
        lambda latency: not latency.histogram.partition("{")[0].strip().endswith("_bucket"),
    ),
    _duration_at_least(
        Latency, "slo", "slo", 0.001, "it is the time within which a request should be answered"
    ),
    Rule(
        Score,
        "max",
        "score.max must be greater than score.min: they bound the value that one request can have",
        "double(has(self.min) ? self.min : '0') < double(has(self.max) ? self.max : '1')",
        lambda score: score.min < score.max,
    ),
    Rule(
        Guardrail,
        "",
        "guardrail needs min or max: write the greatest or least number that is fine",
        "has(self.min) || has(self.max)",
        lambda guardrail: guardrail.min is not None or guardrail.max is not None,
    ),
    Rule(
        Guardrail,
        "max",
        "guardrail.max must not be less than guardrail.min: no number would be fine",
        "!has(self.min) || !has(self.max) || double(self.min) <= double(self.max)",
        lambda guardrail: guardrail.min is None or guardrail.max is None or guardrail.min <= guardrail.max,
    ),
    Rule(
        Gate,
        "",
        "gates: each takes exactly one of webhook and job: add one or remove the other",
        "has(self.webhook) != has(self.job)",
        _one_gate,
    ),
    Rule(
        GateJob,
        "template",
        "job.template is needed: write the pod that is to run, as in a Job",
        "has(self.template)",
        lambda job: bool(job.template),
    ),
    _duration_at_least(GateJob, "deadline", "deadline", 1.0, "a pod needs time to start"),
    Rule(
        JobResult,
        "",
        "result needs min or max: write the least or greatest number that passes",
        "has(self.min) || has(self.max)",
        lambda result: result.min is not None or result.max is not None,
    ),
    Rule(
        JobResult,
        "max",
        "result.max must not be less than result.min: no number would pass",
        "!has(self.min) || !has(self.max) || double(self.min) <= double(self.max)",
        lambda result: result.min is None or result.max is None or result.min <= result.max,
    ),
    Rule(
        Webhook,
        "timeout",
        "webhook.timeout must be at least 100ms and at most 2m: for what takes longer, answer at once and use a job, or retries",
        _unless_absent(
            "timeout",
            "duration(self.timeout) >= duration('100ms') && duration(self.timeout) <= duration('2m')",
        ),
        lambda webhook: 0.1 <= webhook.timeout <= 120.0,
    ),
    Rule(
        Spec,
        "gates.promotion",
        "gates.promotion is not for a shadow that stops, which promotes nothing: remove it, or set shadow.then: Canary",
        "!has(self.gates) || !has(self.gates.promotion) || self.gates.promotion.size() == 0 || !has(self.strategy) || "
        "!has(self.strategy.shadow) || (has(self.strategy.shadow.then) && self.strategy.shadow.then == 'Canary')",
        lambda spec: (
            not spec.gates.promotion or spec.strategy.shadow is None or spec.strategy.shadow.then == "Canary"
        ),
    ),
    _duration_at_least(Spec, "progressDeadline", "progress_deadline", 1.0, "pods need time to start"),
)


def rules_of(part: type[Model]) -> tuple[Rule[Any], ...]:
    """The rules on exactly this class, in the order in which they are reported."""
    return tuple(rule for rule in RULES if rule.on is part)
