"""`spec` of a ModelRollout, v1alpha1: the only source of the CRD, of docs/api.md and of every default.

Docstrings below fields become the descriptions that `kubectl explain` prints. Inside unions (traffic, strategy, the kind
of a metric) a default exists in memory only: a default written into the stored object would make a later second member
look like "two of them". Rules over several fields stand in `rules.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from modelrollout.api.types import Bool, DecimalString, Duration, JsonObject, Model, Percent

GROUP = "modelrollout.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelRollout"
PLURAL = "modelrollouts"

MetricKind = Literal["ratio", "score", "latency", "guardrail"]
Router = Literal["gatewayAPI", "httpRoute", "grpcRoute", "istio", "podRatio"]

_SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
# A letter somewhere, and no two hyphens in a row: what Kubernetes calls an IANA_SVC_NAME.
_PORT_NAME = r"^([a-z0-9]+-)*[a-z0-9]*[a-z][a-z0-9]*(-[a-z0-9]+)*$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_HOSTNAME = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_KIND = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"
_ANNOTATION = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

ServiceName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=_SERVICE_NAME)]
DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=_LABEL)]
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=_SUBDOMAIN)]
Hostname = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=_HOSTNAME)]
LabelName = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")
]
HeaderName = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")
]
# RFC 6265: no quotes, commas, semicolons, backslashes or blanks.
CookieValue = Annotated[
    str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[!#-+\--:<-\[\]-~]+$")
]
AnnotationKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=_ANNOTATION)]
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
PortNumber = Annotated[int, Field(strict=True, ge=1, le=65535)]


def _check_target_port(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
    name = isinstance(value, str) and len(value) <= 15 and re.fullmatch(_PORT_NAME, value)
    if not number and not name:
        hint = ": remove the quotes" if isinstance(value, str) and value.isdigit() else ""
        raise ValueError(
            f"{value!r} is neither a port number from 1 to 65535 nor the name of a container's port{hint}"
        )
    return value


TargetPort = Annotated[
    int | str,
    BeforeValidator(_check_target_port),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": 65535,
            "minLength": 1,
            "maxLength": 15,
            "pattern": _PORT_NAME,
        }
    ),
]


def _check_batch(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000
    percent = isinstance(value, str) and re.fullmatch(_BATCH, value)
    if not number and not percent:
        raise ValueError(
            f"{value!r} is neither a number of pods from 1 on nor a share of them from 1% to 99%"
        )
    return value


_BATCH = r"^[1-9][0-9]?%$"
Batch = Annotated[
    int | str,
    BeforeValidator(_check_batch),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": 100_000,
            "minLength": 2,
            "maxLength": 3,
            "pattern": _BATCH,
        }
    ),
]
Selector = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=_LABEL)]
SessionName = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")
]


# Kept as it is, but without containers nothing can run, and that much the API server can say at once.
_KEPT: JsonObject = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_CONTAINER: JsonObject = {
    **_KEPT,
    "description": "A container, as in a Deployment.",
    "properties": {
        "env": {
            "type": "array",
            "description": "Environment variables.",
            "maxItems": 1000,
            "items": {**_KEPT, "description": "An environment variable."},
        }
    },
}
_TEMPLATE: JsonObject = {
    "required": ["spec"],
    "properties": {
        "metadata": {
            **_KEPT,
            "description": "Labels and annotations of the pods.",
            "properties": {
                "labels": {**_KEPT, "description": "Labels of the pods."},
                "annotations": {**_KEPT, "description": "Annotations of the pods."},
            },
        },
        "spec": {
            **_KEPT,
            "description": "The pod, as in a Deployment.",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "description": "The containers, the model server first.",
                    "minItems": 1,
                    "maxItems": 64,
                    "items": _CONTAINER,
                },
                "initContainers": {
                    "type": "array",
                    "description": "What runs before the containers.",
                    "maxItems": 64,
                    "items": _CONTAINER,
                },
            },
        },
    },
}


class ModelSource(Model):
    """Which model is released; part of the revision, so changing it starts a rollout."""

    name: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Name of the model, given to the pods as MODEL_NAME."""
    version: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Version of the model, given to the pods as MODEL_VERSION."""
    uri: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Where the model is loaded from, given to the pods as MODEL_URI."""


class DeploymentRef(Model):
    """A Deployment that the user keeps, in the namespace of the ModelRollout."""

    name: ObjectName
    """Name of the Deployment. Its pod template is what is released; its size and its pods stay its own."""
    scale_down: Literal["Never", "OnceHealthy"] = "Never"
    """OnceHealthy: the Deployment is scaled to 0, once, as soon as the first revision made from it is Healthy; whoever
    scales it up again is not fought. Its size is restored when the ModelRollout is deleted. Never: it is left alone."""


class OwnService(Model):
    """A Service or InferencePool that the user keeps, in the namespace of the ModelRollout."""

    name: ObjectName
    """Its name."""
    kind: Literal["Service", "InferencePool"] = "Service"
    """InferencePool: a pool of the Gateway API Inference Extension (inference.networking.k8s.io/v1), which needs
    traffic.gatewayAPI or traffic.httpRoute."""

    @property
    def pooled(self) -> bool:
        """Whether it is an InferencePool."""
        return self.kind == "InferencePool"


class OwnServices(Model):
    """Services (or InferencePools) that the user keeps, each in front of one version: only traffic and judgement are the
    operator's."""

    stable: OwnService
    """The one that serves when the ModelRollout is created. From then on the status says which one is stable: after a
    promotion it is the promoted one."""
    candidate: OwnService | None = None
    """The one of what is to be released: another name, or another spec.model, starts a rollout. Left out: nothing is to
    be released besides `stable`."""

    @property
    def named(self) -> OwnService:
        """The one in front of what the spec names."""
        return self.candidate or self.stable

    @property
    def pooled(self) -> bool:
        """Whether one of the two is an InferencePool."""
        return self.stable.pooled or self.named.pooled


class Workload(Model):
    """The pods that serve the model."""

    replicas: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1
    """Pods that carry all of the traffic. An autoscaler writes it through the scale subresource. During a rollout there
    are more: the baseline keeps its size while the candidate grows, unless the workload is elastic."""
    min_ready_seconds: Annotated[int, Field(strict=True, ge=0, le=86_400)] = 0
    """Seconds that a pod must be ready before it counts as available."""
    elastic: Bool = False
    """True: the baseline shrinks as the candidate grows, for scarce accelerators. The way back then waits for pods."""
    track_config: Bool = False
    """True: the data of ConfigMaps and Secrets that the pod template mounts or takes environment variables from are part
    of the revision, so changing them starts a rollout. The operator must have been installed with trackConfig: true."""
    template: JsonObject = Field(default_factory=dict, json_schema_extra=_TEMPLATE)
    """The pod template, as in a Deployment. MODEL_NAME, MODEL_VERSION and MODEL_URI are set as environment variables
    where the template does not set them. Part of the revision, so changing it starts a rollout. One of template,
    deploymentRef and services is needed."""
    deployment_ref: DeploymentRef | None = None
    """The pod template is taken from a Deployment that the user keeps, so changing it there starts a rollout."""
    services: OwnServices | None = None
    """The user runs each version behind a Service or InferencePool of its own: the operator makes no pods, only splits the
    traffic and judges. Needs a router. `replicas` then says how many ready pods must be behind one for it to carry all of
    the traffic; during a rollout it is at least what the stable one had at its start and has still."""


class ServicePort(Model):
    """A port of the Services that the operator makes."""

    name: DnsLabel = "http"
    """Name of the port; ports need different names."""
    port: PortNumber
    """Port that callers use."""
    target_port: TargetPort | None = None
    """Number or name of the container's port; left out: the same as `port`."""

    @property
    def target(self) -> int | str:
        """`target_port`, or what it means when it is left out."""
        return self.port if self.target_port is None else self.target_port


class Service(Model):
    """The Service for callers inside of the cluster, and the ports of each revision's Service."""

    name: ServiceName | None = None
    """Name of the Service that follows the stable revision; left out: the name of the ModelRollout. It may not exist
    already, unless it belongs to this ModelRollout."""
    ports: Annotated[tuple[ServicePort, ...], Field(min_length=1, max_length=16)]
    """Ports of the model server. Part of the revision."""


class ParentRef(Model):
    """A Gateway that the route is attached to."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: DnsLabel | None = None
    """Namespace of the Gateway; left out: that of the ModelRollout."""
    section_name: ObjectName | None = None
    """Name of the Gateway's listener; left out: every listener that fits."""
    port: PortNumber | None = None
    """Port of the Gateway's listeners; left out: every port."""


class PathMatch(Model):
    """How the path of a request is matched."""

    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    """Kind of comparison."""
    value: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = "/"
    """What the path is compared with."""


class HeaderMatch(Model):
    """How a header of a request is matched."""

    type: Literal["Exact", "RegularExpression"] = "Exact"
    """Kind of comparison."""
    name: HeaderName
    """Name of the header; upper and lower case are the same."""
    value: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """What the header is compared with."""


class CookieMatch(Model):
    """A cookie of a request, compared as a whole."""

    name: HeaderName
    """Name of the cookie; upper and lower case differ."""
    value: CookieValue
    """Its value."""


class QueryParamMatch(Model):
    """How a parameter of the query of a request is matched."""

    type: Literal["Exact", "RegularExpression"] = "Exact"
    """Kind of comparison."""
    name: HeaderName
    """Name of the parameter; upper and lower case differ."""
    value: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """What the parameter is compared with."""


class RequestMatch(Model):
    """Requests that the candidate answers; everything that is given must match."""

    headers: Annotated[tuple[HeaderMatch, ...], Field(min_length=1, max_length=8)] | None = None
    """Headers, all of which must match."""
    cookie: CookieMatch | None = None
    """A cookie. It is looked for in the header Cookie by a regular expression, which the gateway must support."""
    query_params: Annotated[tuple[QueryParamMatch, ...], Field(min_length=1, max_length=8)] | None = None
    """Parameters of the query, all of which must match."""

    @property
    def compared(self) -> tuple[HeaderMatch, ...]:
        """The headers that an HTTPRoute compares: the cookie is looked for in the header Cookie."""
        headers = self.headers or ()
        if self.cookie is None:
            return headers
        pair = f"{re.escape(self.cookie.name)}={re.escape(self.cookie.value)}"
        # Gateways differ in whether the whole value must match: this says the same to all.
        cookie = HeaderMatch(type="RegularExpression", name="Cookie", value=f"^(.*;\\s*)?{pair}(;.*)?$")
        return (*headers, cookie)


RequestMatches = Annotated[tuple[RequestMatch, ...], Field(min_length=1, max_length=8)]


class RouteMatch(Model):
    """Requests that the route takes; everything that is given must match."""

    path: PathMatch = Field(default_factory=PathMatch)
    """The path."""
    headers: Annotated[tuple[HeaderMatch, ...], Field(min_length=1, max_length=16)] | None = None
    """Headers, all of which must match."""
    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"] | None = (
        None
    )
    """The HTTP method; left out: every method."""


class HeaderValue(Model):
    """A header and its value."""

    name: HeaderName
    """Name of the header."""
    value: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """Its value."""


class HeaderModifier(Model):
    """Headers that are changed on their way."""

    set: Annotated[tuple[HeaderValue, ...], Field(max_length=16)] = ()
    """Headers that get this value, whatever they had."""
    add: Annotated[tuple[HeaderValue, ...], Field(max_length=16)] = ()
    """Headers that get this value besides those that they have."""
    remove: Annotated[tuple[HeaderName, ...], Field(max_length=16)] = ()
    """Headers that are taken away."""


class PathModifier(Model):
    """How the path of a request is changed."""

    type: Literal["ReplaceFullPath", "ReplacePrefixMatch"]
    """What is replaced: the whole path, or the prefix that was matched."""
    replace_full_path: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """The new path, for ReplaceFullPath."""
    replace_prefix_match: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """The new prefix, for ReplacePrefixMatch."""


class URLRewrite(Model):
    """What the model server sees in place of what the caller wrote."""

    hostname: Hostname | None = None
    """The host name that the model server sees."""
    path: PathModifier | None = None
    """The path that the model server sees."""


class ExtensionRef(Model):
    """A filter of the gateway's own, in the namespace of the ModelRollout."""

    group: ObjectName
    """API group of the filter."""
    kind: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=_KIND)]
    """Kind of the filter."""
    name: ObjectName
    """Name of the filter."""


class RouteFilter(Model):
    """A filter of the Gateway API on the route: one of its members. A mirror is not among them: that is the strategy's."""

    request_header_modifier: HeaderModifier | None = None
    """Changes headers of requests."""
    response_header_modifier: HeaderModifier | None = None
    """Changes headers of answers."""
    url_rewrite: URLRewrite | None = None
    """Changes the host name or the path of requests."""
    extension_ref: ExtensionRef | None = None
    """Names a filter of the gateway's own."""


class RouteTimeouts(Model):
    """How long the gateway waits."""

    request: Duration | None = None
    """For the whole request, retries included; 0s: without end. Not longer than analysis.settle, or requests are
    missed that end late."""
    backend_request: Duration | None = None
    """For one attempt at one pod; not longer than `request`."""


class GatewayAPI(Model):
    """The split is made by an HTTPRoute (gateway.networking.k8s.io/v1) that the operator owns."""

    parent_refs: Annotated[tuple[ParentRef, ...], Field(min_length=1, max_length=8)]
    """Gateways that carry the traffic."""
    hostnames: Annotated[tuple[Hostname, ...], Field(max_length=16)] = ()
    """Host names that the route takes; left out: those of the Gateway's listeners."""
    matches: Annotated[tuple[RouteMatch, ...], Field(max_length=8)] = ()
    """Requests that the route takes; left out: every request."""
    port: DnsLabel | None = None
    """Name of the service port that is routed to; needed when there are several."""
    filters: Annotated[tuple[RouteFilter, ...], Field(max_length=16)] = ()
    """What the gateway changes of requests and answers."""
    timeouts: RouteTimeouts | None = None
    """How long the gateway waits; left out: as the gateway is configured."""
    annotations: Annotated[dict[AnnotationKey, AnnotationValue], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Annotations of the route, for the gateway and for tools such as external-dns."""


class RouteReference(Model):
    """A route that the user keeps, in the namespace of the ModelRollout."""

    name: ObjectName
    """Name of the route. In each of its rules the backendRefs that name the Service `service.name` are replaced while
    two revisions have traffic, and restored when one has all of it; nothing else of the route is touched."""


class VirtualServiceRef(Model):
    """A route in a VirtualService that the user keeps, in the namespace of the ModelRollout."""

    name: ObjectName
    """Name of the VirtualService."""
    route: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None
    """Name of the one of its http routes that is split; left out: each that has such a destination."""


class Istio(Model):
    """The split is made by a VirtualService (networking.istio.io/v1) that the user keeps."""

    virtual_service: VirtualServiceRef
    """The VirtualService. In its http route the destinations whose host is the Service `service.name` are replaced while
    two revisions have traffic, and restored when one has all of it; nothing else of it is touched."""


class PodRatio(Model):
    """The split is made by the ratio of ready pods behind one Service; needs no router, and splits connections."""


class Traffic(Model):
    """How requests are split between baseline and candidate: one of its members; left out: podRatio."""

    gateway_api: GatewayAPI | None = Field(default=None, alias="gatewayAPI")
    """The split is made by an HTTPRoute (gateway.networking.k8s.io/v1) that the operator owns."""
    http_route: RouteReference | None = None
    """The split is made in an HTTPRoute (gateway.networking.k8s.io/v1) that the user keeps."""
    grpc_route: RouteReference | None = None
    """The split is made in a GRPCRoute (gateway.networking.k8s.io/v1) that the user keeps."""
    istio: Istio | None = None
    """The split is made in a VirtualService (networking.istio.io/v1) that the user keeps."""
    pod_ratio: PodRatio | None = None
    """The split is made by the ratio of ready pods behind one Service; needs no router, and splits connections."""

    @property
    def router(self) -> Router:
        """The member that is set, or podRatio."""
        members: tuple[tuple[Router, Model | None], ...] = (
            ("gatewayAPI", self.gateway_api),
            ("httpRoute", self.http_route),
            ("grpcRoute", self.grpc_route),
            ("istio", self.istio),
        )
        return next((name for name, member in members if member is not None), "podRatio")


_URL = r"^https?://[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[^\s#]*)?$"


class SecretKey(Model):
    """A key of a Secret in the namespace of the ModelRollout."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key in its data."""


class Webhook(Model):
    """A question by HTTP: a POST that is answered with 2xx passes. Redirects are not followed."""

    url: Annotated[str, StringConstraints(min_length=8, max_length=2048, pattern=_URL)]
    """Where the question goes. The operator must have been installed with this URL, or its beginning, among
    gates.webhooks."""
    secret_ref: SecretKey | None = None
    """The key that the question is signed with (HMAC-SHA256); left out: it is not signed. The operator must have been
    installed with gates.secrets: true."""
    timeout: Duration = 10.0
    """Time for one answer, from the name of the host to the last byte."""
    retries: Annotated[int, Field(strict=True, ge=0, le=100)] = 3
    """How often it is asked again when the answer is not 2xx, or there is none: after 1s, 2s, 4s and so on, at most 60s."""


class JobResult(Model):
    """What the number must be that a Job leaves behind."""

    min: DecimalString | None = None
    """Least number that passes; left out: none."""
    max: DecimalString | None = None
    """Greatest number that passes; left out: none."""


class GateJob(Model):
    """A Job that must succeed, such as an offline evaluation of the model."""

    template: JsonObject = Field(default_factory=dict, json_schema_extra=_TEMPLATE)
    """The pod template, as in a Job; restartPolicy is Never where it says nothing. MODEL_NAME, MODEL_VERSION, MODEL_URI,
    ROLLOUT, REVISION, BASELINE_REVISION, CANDIDATE_SERVICE, BASELINE_SERVICE and GATE are set as environment variables
    where the template does not set them."""
    deadline: Duration = 3_600.0
    """The Job must be over within this."""
    retries: Annotated[int, Field(strict=True, ge=0, le=10)] = 0
    """How many of its pods may fail before the Job has failed (backoffLimit)."""
    result: JobResult | None = None
    """Bounds on the number that the first container writes to its termination log: a decimal, or JSON like
    {"value": 0.93}. Left out: that the Job succeeds is enough."""

    @property
    def runnable(self) -> bool:
        """Whether the template is here; `status.accepted` keeps only its hash."""
        return set(self.template) != {_HASH}

    @property
    def hash(self) -> str:
        """Tells one template from another, also where only the hash is kept."""
        return template_hash(self.template)


_HASH = "hash"


def template_hash(template: JsonObject) -> str:
    """A short hash of a pod template, or the one that was kept in its place."""
    if set(template) == {_HASH}:
        return str(template[_HASH])
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


class Gate(Model):
    """Something outside of the operator that must say yes: a name and one kind."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=_LABEL)]
    """Name of the gate in messages and status."""
    webhook: Webhook | None = None
    """A question by HTTP: a POST that is answered with 2xx passes."""
    job: GateJob | None = None
    """A Job that must succeed, such as an offline evaluation of the model."""
    on_failure: Literal["Rollback", "Pause"] = "Rollback"
    """What a gate that failed for good does. Pause: the rollout waits for promote, abort or, to ask once more, resume."""


class Gates(Model):
    """Gates before the first step and before the promotion, whatever the strategy. Each list is asked one after the other.
    A first deployment has none: nothing serves that could be kept."""

    start: Annotated[tuple[Gate, ...], Field(max_length=8)] = ()
    """Asked once a first pod of the candidate is ready, before it gets any request."""
    promotion: Annotated[tuple[Gate, ...], Field(max_length=8)] = ()
    """Asked when the last step is over and the candidate is proven harmless, before it takes over."""


class Step(Model):
    """A weight, and what must have happened before the next one."""

    name: DnsLabel | None = None
    """A name for messages and events."""
    weight: Annotated[int, Field(strict=True, ge=0, le=99)]
    """Share of the requests, in percent, that the candidate gets. Not 100: without a baseline nothing can be compared,
    and the candidate is promoted by itself after the last step. 0 only with a mirror or with matches."""
    mirror: Percent = 0
    """Share of the requests, in percent, that is copied to the candidate besides; nobody sees its answers to them. Needs a
    router that can copy requests. Scores are not judged on copies alone: labels never arrive for them."""
    matches: RequestMatches | None = None
    """Requests that the candidate gets in place of a share: those that match one of these. Only with weight 0 and without a
    mirror, and not in the last step. They are no random sample, so only guardrails decide in this step. Needs
    traffic.gatewayAPI."""
    size: Percent = 0
    """Least size of the candidate, in percent of workload.replicas; left out: what weight and mirror need, and all of it
    with matches."""
    duration: Duration = 0.0
    """Least time at this weight, counted while requests really are split this way."""
    min_requests: Annotated[int, Field(strict=True, ge=0)] = 0
    """Least number of requests to the candidate in this step."""
    approval: Bool = False
    """True: at its end the step waits for the annotation modelrollout.dev/approve."""
    gates: Annotated[tuple[Gate, ...], Field(max_length=8)] = ()
    """Asked one after the other at its end, before an approval."""


class Canary(Model):
    """A growing share of the requests goes to the candidate."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=32)] | None = None
    """The steps, with weights that do not fall; left out: planned from the evidence, up to maxWeight."""
    max_weight: Annotated[int, Field(strict=True, ge=1, le=99)] = 50
    """Largest weight of planned steps, in percent. Written steps are not bound by it."""


class Rolling(Model):
    """Pods of the baseline are replaced batch by batch, and what is there is compared between batches."""

    batch: Batch = "25%"
    """Pods that are replaced before the next look: a number, or a share of workload.replicas like 25%, rounded up. At most
    32 batches are made. The last pods are replaced by the promotion."""
    duration: Duration | None = None
    """Least time after each batch; left out, and without minRequests: as long as the evidence needs."""
    min_requests: Annotated[int, Field(strict=True, ge=0)] = 0
    """Least number of requests to the candidate after each batch."""
    approval: Bool = False
    """True: after each batch the annotation modelrollout.dev/approve is waited for."""


class BlueGreen(Model):
    """A candidate of full size gets no requests of users before it is proven; then it gets them all at once."""

    mirror: Percent = 0
    """Share of the requests, in percent, that is copied to the candidate meanwhile; nobody sees its answers to them. With it
    the switch waits for the proof that the candidate is harmless. Needs a router that can copy requests."""
    duration: Duration = 0.0
    """Least time before the switch, counted while all pods of the candidate are ready."""
    min_requests: Annotated[int, Field(strict=True, ge=0)] = 0
    """Least number of requests to the candidate before the switch."""
    approval: Bool = False
    """True: the switch waits for the annotation modelrollout.dev/approve."""
    preview_header: HeaderMatch | None = None
    """Requests with this header reach the candidate before the switch, through the gateway; only with
    traffic.gatewayAPI. From inside of the cluster it is reached by the Service <name>-preview."""


class Shadow(Model):
    """A copy of the requests goes to the candidate, and its answers are dropped: users never see them."""

    mirror: Annotated[int, Field(strict=True, ge=1, le=100)] = 20
    """Share of the requests, in percent, that is copied to the candidate."""
    duration: Duration = 0.0
    """Least time of the comparison, counted while requests really are copied."""
    min_requests: Annotated[int, Field(strict=True, ge=0)] = 0
    """Least number of copies that the candidate answers."""
    approval: Bool = False
    """True: after the verdict the annotation modelrollout.dev/approve is waited for."""
    then: Literal["Stop", "Canary"] = "Stop"
    """After the proof that the candidate is harmless. Stop: it is removed, and the verdict is kept in the history.
    Canary: a growing share of the requests goes to it."""
    canary: Canary | None = None
    """The steps that follow with then: Canary; left out: planned from the evidence."""


class Stickiness(Model):
    """Keeps a user on one side, by a cookie that the gateway gives."""

    cookie: SessionName
    """Name of the cookie."""
    lifetime: Duration | None = None
    """How long it lasts; left out: until the browser is closed."""


class AbTest(Model):
    """Chosen users, or a fixed share of the requests, get the candidate; the better reward wins."""

    reward: MetricName | None = None
    """Name of the metric of analysis.metrics that decides, of kind ratio or score: the candidate wins as soon as it is proven
    better in it, with the bound analysis.falsePromotion, and proven harmless in all others that gate. Left out: the
    duration ends it. Needs a random split: weight, or randomized matches."""
    weight: Annotated[int, Field(strict=True, ge=1, le=99)] | None = None
    """Share of the requests, in percent, that the candidate gets; left out, and without matches: 50."""
    matches: RequestMatches | None = None
    """Requests that the candidate gets in place of a share: those that match one of these. All others go to the baseline.
    Needs traffic.gatewayAPI."""
    randomized: Bool = False
    """True: who matches was drawn by lot, so both sides can be compared. False: they may differ from other users, so
    metrics are reported and only guardrails decide."""
    size: Percent = 0
    """Least size of the candidate, in percent of workload.replicas; left out: what weight needs, and all of it with
    matches."""
    duration: Duration
    """The end of the test, counted while requests really are split this way."""
    min_requests: Annotated[int, Field(strict=True, ge=0)] = 0
    """The candidate does not win before it has answered this many requests."""
    stickiness: Stickiness | None = None
    """Keeps a user on one side. Needs traffic.gatewayAPI, and sessionPersistence in the HTTPRoutes of the cluster, which
    is in the experimental channel of the Gateway API. Not with matches, which keep a user on one side by themselves."""
    otherwise: Literal["Stop", "Promote"] = "Stop"
    """What the duration ends with if the candidate has not won. Stop: it is removed, and the verdict is kept in the history.
    Promote: it takes over if it is proven harmless, or if nothing that carries an error bound could be compared;
    otherwise as with Stop."""


class Strategy(Model):
    """How a candidate takes over: one of its members; left out: canary with planned steps."""

    canary: Canary | None = None
    """A growing share of the requests goes to the candidate."""
    rolling: Rolling | None = None
    """Pods of the baseline are replaced batch by batch, and what is there is compared between batches."""
    blue_green: BlueGreen | None = None
    """A candidate of full size gets no requests of users before it is proven; then it gets them all at once."""
    shadow: Shadow | None = None
    """A copy of the requests goes to the candidate, and its answers are dropped: users never see them."""
    ab_test: AbTest | None = None
    """Chosen users, or a fixed share of the requests, get the candidate; the better reward wins."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are written down; empty if they are planned."""
        canary = self.shadow.canary if self.shadow else self.canary
        return (canary.steps or ()) if canary else ()

    @property
    def mirrors(self) -> bool:
        """Whether requests are copied at some time."""
        blue_green = self.blue_green is not None and self.blue_green.mirror > 0
        return self.shadow is not None or blue_green or any(step.mirror for step in self.steps)

    @property
    def needs_room(self) -> bool:
        """Whether the candidate has more pods at some time than its share of the requests needs."""
        return self.mirrors or self.matches or self.sized or self.blue_green is not None

    @property
    def sized(self) -> bool:
        """Whether a size of the candidate is written down."""
        return any(step.size for step in self.steps) or (self.ab_test is not None and self.ab_test.size > 0)

    @property
    def matches(self) -> bool:
        """Whether requests are chosen at some time by what they are, and not at random."""
        chosen = self.ab_test is not None and self.ab_test.matches is not None
        return chosen or any(step.matches for step in self.steps)


class Arms(Model):
    """How the series of baseline and candidate are told apart."""

    label: LabelName = "pod"
    """Label of every series that names the pod it comes from."""


class Ratio(Model):
    """A share of bad requests, from two counters."""

    bad: Selector
    """PromQL series selector of the counter of bad requests, like http_requests_total{code=~"5.."}. Not an expression:
    the matchers for the namespace and the revision are added, and raw samples are read."""
    total: Selector
    """PromQL series selector of the counter of all requests."""


class Score(Model):
    """The mean of a bounded value, such as accuracy, from a sum and a count."""

    sum: Selector
    """PromQL series selector of the sum of the values."""
    count: Selector
    """PromQL series selector of the number of values."""
    min: DecimalString = 0.0
    """Least value that one request can have."""
    max: DecimalString = 1.0
    """Greatest value that one request can have."""
    better: Literal["Higher", "Lower"] = "Higher"
    """Which values are good."""


class Latency(Model):
    """How long requests take, from a classic histogram."""

    histogram: Selector
    """PromQL series selector of the histogram, without the suffix _bucket."""
    slo: Duration
    """The time within which a request should be answered. If it is no bound of a bucket, the next lower one counts."""


class Guardrail(Model):
    """A threshold on any number; it carries no error bound, so prefer the other kinds where they fit."""

    query: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    """PromQL with one number as its result. {{candidate.pods}}, {{baseline.pods}}, {{candidate.revision}}, {{namespace}}
    and {{name}} are filled in; a matcher for the namespace is added to each of its selectors."""
    min: DecimalString | None = None
    """Least number that is fine; left out: none."""
    max: DecimalString | None = None
    """Greatest number that is fine; left out: none."""
    failures: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """Polls in a row outside of the bounds that roll back."""


class Tolerance(Model):
    """How much worse than the baseline: within `baseline × ratio + absolute`."""

    ratio: DecimalString | None = None
    """Factor on the baseline's share of bad requests; at least "1"."""
    absolute: DecimalString | None = None
    """Share of requests that is added; for a score, a share of its range."""


class Margin(Model):
    """What counts as harm, and what is accepted."""

    harm: Tolerance = Field(default_factory=Tolerance)
    """Proven beyond this, the candidate is rolled back. Left out: the smaller of the kind's default and accept."""
    accept: Tolerance = Field(default_factory=Tolerance)
    """Proven within this, the candidate may be promoted. Left out: the kind's default."""


@dataclass(frozen=True, slots=True)
class Margins:
    """The tolerances of a metric with all defaults applied; ratios are factors, absolutes are shares of requests."""

    harm_ratio: float
    harm_absolute: float
    accept_ratio: float
    accept_absolute: float


@dataclass(frozen=True, slots=True)
class _DefaultMargins:
    harm_ratio: float
    harm_absolute: float | None  # None: a tenth of accept's
    accept_ratio: float
    accept_absolute: float


DEFAULT_MARGINS: dict[MetricKind, _DefaultMargins] = {
    "ratio": _DefaultMargins(1.05, None, 1.25, 0.0025),
    "score": _DefaultMargins(1.0, 0.0025, 1.0, 0.01),
    "latency": _DefaultMargins(1.25, 0.0025, 1.5, 0.005),
}


def effective_margins(kind: MetricKind, margin: Margin) -> Margins:
    """The tolerances that hold for a metric of this kind. Raises KeyError for a guardrail, which has none."""
    default = DEFAULT_MARGINS[kind]
    ratio, absolute = margin.accept.ratio, margin.accept.absolute
    accept_ratio = default.accept_ratio if ratio is None else ratio
    accept_absolute = default.accept_absolute if absolute is None else absolute
    harm_absolute = accept_absolute / 10 if default.harm_absolute is None else default.harm_absolute
    return Margins(
        harm_ratio=_given(margin.harm.ratio, otherwise=min(default.harm_ratio, accept_ratio)),
        harm_absolute=_given(margin.harm.absolute, otherwise=min(harm_absolute, accept_absolute)),
        accept_ratio=accept_ratio,
        accept_absolute=accept_absolute,
    )


def _given(value: float | None, *, otherwise: float) -> float:
    return otherwise if value is None else value


class Metric(Model):
    """Something that baseline and candidate are compared by: a name and one kind."""

    name: MetricName
    """Name of the metric in messages and status; each metric has another one."""
    ratio: Ratio | None = None
    """A share of bad requests, from two counters."""
    score: Score | None = None
    """The mean of a bounded value, such as accuracy, from a sum and a count."""
    latency: Latency | None = None
    """How long requests take, from a classic histogram."""
    guardrail: Guardrail | None = None
    """A threshold on any number; it carries no error bound, so prefer the other kinds where they fit."""
    margin: Margin = Field(default_factory=Margin)
    """How much worse the candidate may be; left out: the defaults of the metric's kind. Not for guardrails."""
    weight: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """The metric's part of the error bound falseRollback, relative to the other metrics'."""
    dry_run: Bool = False
    """True: the metric is judged and reported, and decides nothing."""

    @property
    def kind(self) -> MetricKind:
        """Which member is set. Raises ValueError if none is, which `validate.parse` refuses."""
        for kind in ("ratio", "score", "latency", "guardrail"):
            if getattr(self, kind) is not None:
                return kind
        raise ValueError(f"metric {self.name} has no kind: give it one of ratio, score, latency, guardrail")

    @property
    def gating(self) -> bool:
        """Whether the metric takes part in decisions."""
        return not self.dry_run

    @property
    def margins(self) -> Margins:
        """The tolerances with all defaults applied. Raises KeyError for a guardrail, which has none."""
        return effective_margins(self.kind, self.margin)


class Analysis(Model):
    """How the candidate is compared with the baseline."""

    mode: Literal["On", "Off"] = "On"
    """In quotes, because YAML reads On as true. "Off", which takes no metrics: nothing is compared, and what is promoted is marked as unproven."""
    prometheus: DnsLabel = "default"
    """Name of a Prometheus server that the operator was configured with."""
    interval: Duration = 15.0
    """Time between two looks; not less than scrapeInterval."""
    scrape_interval: Duration = 15.0
    """How often Prometheus scrapes the pods."""
    settle: Duration = 30.0
    """Every request has ended within this; not less than the time-out of requests (for language models 60s to 120s)."""
    warmup: Duration = 30.0
    """Samples of a pod are ignored for this long after it was ready for the first time."""
    false_rollback: DecimalString = 0.01
    """Bound on the probability to roll back a model that is within tolerance, over the whole rollout."""
    false_promotion: DecimalString = 0.05
    """Bound on the probability to promote a model that is beyond the margin."""
    deadline: Duration = 21_600.0
    """Time beside what the steps' own durations take, pauses and outages not counted, after which the comparison ends as
    onInconclusive says."""
    on_inconclusive: Literal["Pause", "Promote", "Rollback"] = "Pause"
    """What to do with a candidate that was proven neither harmful nor harmless within the deadline."""
    outage: Duration = 1_800.0
    """When metrics were missing for this long, the candidate's weight is set to 0 until they are back."""
    exposure_budget: Duration = 120.0
    """How cautiously planned steps grow: the time of full exposure to a harmful model that is accepted in the worst
    case."""
    arms: Arms = Field(default_factory=Arms)
    """How the series of baseline and candidate are told apart."""
    metrics: Annotated[tuple[Metric, ...], Field(max_length=16)] = ()
    """What the two are compared by; at least one unless mode is Off."""


class Watch(Model):
    """What happens after promotion: the old revision is kept for a while, and the comparison goes on."""

    duration: Duration = 3_600.0
    """How long the watch takes; 0s: none."""
    holdback: Annotated[int, Field(strict=True, ge=0, le=50)] = 10
    """Share of the requests, in percent, that the old revision keeps meanwhile, so that both can still be compared."""
    standby: Percent = 100
    """Size, in percent, that the old revision keeps when holdback is 0."""
    on_alarm: Literal["Notify", "Rollback"] = "Notify"
    """What an alarm does when holdback is 0 and only a before-and-after comparison is possible. With holdback, proven
    harm always rolls back."""


class Spec(Model):
    """What is to be released, and how."""

    model: ModelSource = Field(default_factory=ModelSource)
    """Which model is released; part of the revision, so changing it starts a rollout."""
    workload: Workload
    """The pods that serve the model."""
    service: Service
    """The Service for callers inside of the cluster, and the ports of each revision's Service."""
    traffic: Traffic = Field(default_factory=Traffic)
    """How requests are split between baseline and candidate: one of its members; left out: podRatio."""
    strategy: Strategy = Field(default_factory=Strategy)
    """How a candidate takes over: one of its members; left out: canary with planned steps."""
    gates: Gates = Field(default_factory=Gates)
    """Questions outside of the operator, before the first step and before the promotion. Those at a step stand there."""
    analysis: Analysis = Field(default_factory=Analysis)
    """How the candidate is compared with the baseline; needed, at least with one metric or with mode "Off"."""
    watch: Watch = Field(default_factory=Watch)
    """What happens after promotion: the old revision is kept for a while, and the comparison goes on."""
    progress_deadline: Duration = 600.0
    """The wanted pods must become ready, and the route be accepted, within this."""
    drain_delay: Duration = 30.0
    """Time between losing all traffic and losing pods."""
    revision_history_limit: Annotated[int, Field(strict=True, ge=0, le=100)] = 10
    """How many revisions that are no longer in use are kept."""
    paused: Bool = False
    """True: weight and clock are held. Proven harm still rolls back."""

    def service_name(self, rollout: str) -> str:
        """Name of the Service that follows the stable revision of the ModelRollout with this name."""
        return self.service.name or rollout

    @property
    def all_gates(self) -> tuple[tuple[str, Gate], ...]:
        """Every gate with the field that it stands in, like spec.gates.start."""
        step = "spec.strategy.shadow.canary.steps" if self.strategy.shadow else "spec.strategy.canary.steps"
        return (
            *(("spec.gates.start", gate) for gate in self.gates.start),
            *((f"{step}.gates", gate) for one in self.strategy.steps for gate in one.gates),
            *(("spec.gates.promotion", gate) for gate in self.gates.promotion),
        )

    @property
    def routed_port(self) -> ServicePort:
        """The service port that a router sends requests to."""
        wanted = self.traffic.gateway_api.port if self.traffic.gateway_api else None
        return next((port for port in self.service.ports if port.name == wanted), self.service.ports[0])

    def without_template(self) -> dict[str, Any]:
        """The wire form for `status.accepted`; `from_wire` reads it back, with an empty template, and hashes of those of
        gates."""
        wire = self.to_wire()
        del wire["workload"]["template"]
        _hash_templates(wire["strategy"])
        _hash_templates(wire["gates"])
        return wire


def _hash_templates(value: Any) -> None:
    """Put hashes in the place of the pod templates of gates, in a wire form."""
    if isinstance(value, list):
        for item in value:
            _hash_templates(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "job":
                item["template"] = {_HASH: template_hash(item["template"])}
            else:
                _hash_templates(item)


UNION_MEMBERS: dict[type[Model], tuple[str, ...]] = {
    Workload: ("template", "deployment_ref", "services"),
    Traffic: ("gateway_api", "http_route", "grpc_route", "istio", "pod_ratio"),
    RouteFilter: ("request_header_modifier", "response_header_modifier", "url_rewrite", "extension_ref"),
    Strategy: ("canary", "rolling", "blue_green", "shadow", "ab_test"),
    Metric: ("ratio", "score", "latency", "guardrail"),
    Gate: ("webhook", "job"),
}
"""Attributes of which at most one may be set; neither they nor anything inside has a default in the CRD."""

LIST_KEYS: dict[tuple[type[Model], str], str] = {
    (Service, "ports"): "name",
    (RouteMatch, "headers"): "name",
    (RequestMatch, "headers"): "name",
    (RequestMatch, "query_params"): "name",
    (HeaderModifier, "set"): "name",
    (HeaderModifier, "add"): "name",
    (HeaderModifier, "remove"): "",
    (Analysis, "metrics"): "name",
    (GatewayAPI, "hostnames"): "",
    (Step, "gates"): "name",
    (Gates, "start"): "name",
    (Gates, "promotion"): "name",
}
"""Lists, by attribute, whose items differ by this field, or (empty) are all different: `x-kubernetes-list-type` map and set."""
