"""What tests of whole rollouts share: a ModelRollout in a namespace of its own, with real traffic and a record of it all.

Rollouts take a minute each and mostly wait, so they run side by side: a story is a function that plays one, in a thread,
with its assertions in it; a test waits for the end of one story.
"""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from lab.gateway import ADDRESS_ANNOTATION, GATEWAY_NAME, GATEWAY_NAMESPACE
from lab.kube import Informer, Object, path_of
from lab.lab import Lab
from lab.load import Counts, Load
from lab.operator import NAMESPACE as OPERATOR_NAMESPACE
from lab.process import wait_until

GROUP = "modelrollout.dev"
API = f"{GROUP}/v1alpha1"
OPERATOR_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:"
ENDPOINTS_USER = "system:serviceaccount:kube-system:endpointslice-controller"
PATIENCE = 180.0  # seconds until a test gives up; nothing is asserted about time

ERRORS = {
    "name": "errors",
    "ratio": {"bad": 'http_requests_total{code=~"5.."}', "total": "http_requests_total"},
    "margin": {"accept": {"absolute": "0.03"}},
}
QUALITY = {
    "name": "quality",
    "score": {"sum": "model_quality_sum", "count": "model_quality_count", "better": "Higher"},
    "margin": {"accept": {"absolute": "0.08"}},
}
LATENCY = {
    "name": "latency",
    "latency": {"histogram": "http_request_duration_seconds", "slo": "500ms"},
    "margin": {"accept": {"absolute": "0.05"}},
}
# The operator's own times: those of a cluster would make a test of minutes.
TIMING = {"raiseAfter": "2s", "dataPlane": "1s", "evidenceCommit": "2s"}
QUICK_STEPS = ({"weight": 20, "duration": "5s"}, {"weight": 50, "duration": "5s"})


def template(environment: Mapping[str, str] | None = None, *, image: str = "lab/model:1") -> Object:
    """A pod template of a model server."""
    container = {
        "name": "server",
        "image": image,
        "ports": [{"containerPort": 8080}],
        "env": [{"name": name, "value": value} for name, value in (environment or {}).items()],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
    }
    return {"spec": {"terminationGracePeriodSeconds": 5, "containers": [container]}}


def specification(name: str, **changes: Any) -> Object:
    """A spec for a rollout in seconds; `changes` replace whole fields of it."""
    gateway = {
        "parentRefs": [{"name": GATEWAY_NAME, "namespace": GATEWAY_NAMESPACE}],
        "hostnames": [f"{name}.example.com"],
    }
    analysis = {
        "interval": "1s",
        "scrapeInterval": "1s",
        "settle": "1s",
        "warmup": "1s",
        # A test that fails once in a hundred runs by design is a bad test.
        "falseRollback": "0.001",
        "metrics": [ERRORS, QUALITY],
    }
    return {
        "model": {"name": name, "version": "v1", "uri": "models/good"},
        "workload": {"replicas": 2, "template": template()},
        "service": {"ports": [{"port": 80, "targetPort": 8080}]},
        "traffic": {"gatewayAPI": gateway},
        "strategy": {"canary": {"steps": list(QUICK_STEPS)}},
        "analysis": analysis | changes.pop("analysis", {}),
        "watch": {"duration": "6s", "holdback": 20},
        "drainDelay": "2s",
        "progressDeadline": "60s",
        **changes,
    }


@dataclass(frozen=True)
class Seen:
    """The status at one moment, and what had been answered until then."""

    status: Object
    counts: Counts

    @property
    def phase(self) -> str:
        return str(self.status.get("phase"))

    @property
    def weight(self) -> int:
        """Of the candidate, in percent."""
        return int(self.status.get("weights", {}).get("candidate", 0))

    def condition(self, type: str) -> Object:
        """A condition, empty if there is none of this type."""
        return next((one for one in self.status.get("conditions", []) if one["type"] == type), {})


class Rollout:
    """A ModelRollout under load, in a namespace of its own, and everything that was seen of it."""

    def __init__(
        self, lab: Lab, name: str, *, rate: float = 20.0, loaded: bool = True, **changes: Any
    ) -> None:
        self.lab, self.name, self.namespace = lab, name, f"{name}-test"
        self.path = path_of(API, "modelrollouts", self.namespace, name)
        self.spec = specification(name, **changes)
        self.load = Load(lab.gateway_url, f"{name}.example.com", rate) if loaded else None
        self.timeline: list[Seen] = []
        self._news = threading.Condition()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Make room for others; what failed stays to be looked at."""
        self._stack.close()
        if kind is None:
            self.lab.client.delete(self.path, missing_ok=True)

    def deploy(self) -> None:
        """The first deployment, and answers from it."""
        client = self.lab.client
        client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        metadata = {"name": self.name, "namespace": self.namespace}
        client.apply({"apiVersion": API, "kind": "ModelRollout", "metadata": metadata, "spec": self.spec})
        informer = Informer(client, path_of(API, "modelrollouts", self.namespace), self._see).start()
        self._stack.callback(informer.stop)
        self.wait(lambda seen: seen.phase == "Healthy", "the first deployment")
        if self.load is not None:
            self._stack.enter_context(self.load)
            self.wait_answers(10, "v1")

    def _see(self, kind: str, obj: Object) -> None:
        with self._news:
            self.timeline.append(Seen(obj.get("status") or {}, self.counts()))
            self._news.notify_all()

    def counts(self) -> Counts:
        """What was answered so far."""
        return self.load.counts() if self.load is not None else Counts()

    def release(
        self,
        version: str,
        uri: str,
        *,
        environment: Mapping[str, str] | None = None,
        image: str = "lab/model:1",
    ) -> int:
        """Name another model; the generation of the object with it."""
        spec: Object = {"model": {"version": version, "uri": uri}}
        spec["workload"] = {"template": template(environment, image=image)}
        patched = self.lab.client.patch(self.path, {"spec": spec})
        generation = int(patched["metadata"]["generation"])
        self.wait(lambda seen: seen.status.get("observedGeneration") == generation, "the operator's notice")
        return generation

    def annotate(self, name: str, value: str) -> None:
        """Ask the operator for something."""
        self.lab.client.patch(self.path, {"metadata": {"annotations": {f"{GROUP}/{name}": value}}})

    def wait(self, check: Callable[[Seen], bool], what: str, *, timeout: float = PATIENCE) -> Seen:
        """The newest status once it is as wanted."""
        with self._news:
            if not self._news.wait_for(lambda: bool(self.timeline) and check(self.timeline[-1]), timeout):
                last = self.timeline[-1].status if self.timeline else {}
                raise AssertionError(
                    f"{self.name}: {what} did not happen; it is {last.get('phase')}: {last.get('message')}"
                )
            return self.timeline[-1]

    def wait_end(self) -> Seen:
        """The status at the end of a release."""
        return self.wait(lambda seen: seen.phase in ("Healthy", "RolledBack"), "the end of the release")

    def wait_answers(self, count: int, version: str | None = None) -> None:
        """Wait until so many more requests were answered, by one version or at all."""
        before = self.counts()

        def answered() -> bool:
            versions = self.counts().since(before).by_version(status=None)
            return (sum(versions.values()) if version is None else versions.get(version, 0)) >= count

        wait_until(answered, timeout=PATIENCE, what=f"{count} answers of {self.name}")

    @property
    def status(self) -> Object:
        return self.timeline[-1].status

    @property
    def outcome(self) -> tuple[str, str]:
        """Outcome and reason of the newest attempt."""
        entry = self.status["history"][0]
        return entry.get("outcome", ""), entry.get("reason", "")

    def failures(self) -> dict[int, int]:
        """Answers other than 200, by status; 0 is none at all."""
        return {status: count for status, count in self.counts().by_status().items() if status != 200}

    def events(self) -> list[tuple[str, str]]:
        """Reasons and notes of the object's events in the order in which they were posted."""
        found = self.lab.client.list(path_of("events.k8s.io/v1", "events", self.namespace))
        mine = [event for event in found if event["regarding"]["kind"] == "ModelRollout"]
        mine.sort(key=lambda event: str(event["eventTime"]))
        return [(event["reason"], event["note"]) for event in mine]

    def wait_event(self, reason: str) -> None:
        """Wait for an event: it is posted after the status that it is about."""
        wait_until(
            lambda: any(reason == posted for posted, _ in self.events()),
            timeout=PATIENCE,
            what=f"the event {reason} of {self.name}",
        )

    def pods(self, revision: str) -> list[Object]:
        """The pods of a revision that are not being terminated."""
        labels = f"{GROUP}/rollout={self.name},{GROUP}/revision={revision}"
        found = self.lab.client.list(path_of("v1", "pods", self.namespace), labelSelector=labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def change_variant(self, revision: str, variant: str) -> None:
        """Let the running model servers of a revision behave otherwise from now on."""
        for pod in self.pods(revision):
            address = pod["metadata"]["annotations"][ADDRESS_ANNOTATION]
            request = urllib.request.Request(f"http://{address}/variant", variant.encode(), method="PUT")
            urllib.request.urlopen(request, timeout=10).close()

    def endpoints(self, service: str) -> dict[str, int]:
        """Ready endpoints of a Service, by the revision of their pods."""
        slices = self.lab.client.list(
            path_of("discovery.k8s.io/v1", "endpointslices", self.namespace),
            labelSelector=f"kubernetes.io/service-name={service}",
        )
        ready = {
            endpoint["targetRef"]["name"]
            for one in slices
            for endpoint in one["endpoints"] or []
            if endpoint["conditions"]["ready"]
        }
        found: dict[str, int] = {}
        for pod in self.lab.client.list(path_of("v1", "pods", self.namespace)):
            if pod["metadata"]["name"] in ready:
                revision = pod["metadata"]["labels"][f"{GROUP}/revision"]
                found[revision] = found.get(revision, 0) + 1
        return found

    def ready_endpoints(self, service: str) -> list[int]:
        """How many ready endpoints a Service with one slice had, from now on and after every change; it grows."""
        found: list[int] = []

        def see(kind: str, obj: Object) -> None:
            found.append(sum(bool(one["conditions"]["ready"]) for one in obj["endpoints"] or []))

        path = path_of("discovery.k8s.io/v1", "endpointslices", self.namespace)
        labels = f"kubernetes.io/service-name={service}"
        informer = Informer(self.lab.client, path, see, labelSelector=labels).start()
        self._stack.callback(informer.stop)
        informer.synced.wait(PATIENCE)
        return found

    def steps(self) -> Iterator[tuple[int, Counts]]:
        """For each weight that was in force: the weight, and what was answered meanwhile.

        From the first status in which the step's clock ran (the route is then in the data plane) to the last one with
        that weight; the route is changed only after the status.
        """
        parts: dict[tuple[int, str], list[Counts]] = {}
        for seen in self.timeline:
            step = seen.status.get("step") or {}
            if seen.phase == "Progressing" and step.get("startedAt") and seen.weight:
                parts.setdefault((seen.weight, step["id"]), []).append(seen.counts)
        for (weight, _), counts in parts.items():
            yield weight, counts[-1].since(counts[0])

    def audit(self, since: float = 0.0) -> list[Object]:
        """Writes to this namespace that were received from `since` (epoch seconds) on, in this order."""
        writes = [
            event
            for event in self.lab.audit_events()
            if event.get("objectRef", {}).get("namespace") == self.namespace
            and event["verb"] in ("create", "update", "patch", "delete")
            and event["responseStatus"]["code"] < 300
            and datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp() >= since
        ]
        return sorted(writes, key=lambda event: str(event["requestReceivedTimestamp"]))

    def measured(self) -> str:
        """One line about the release, for whoever reads the test's output."""
        entry = self.status["history"][0]
        began, ended = (
            datetime.fromisoformat(entry[name]) if name in entry else None
            for name in ("startedAt", "endedAt")
        )
        seconds = f"{(ended - began).total_seconds():.0f} s" if began and ended else "not ended"
        answers = self.counts().by_version(status=None)
        why = f"{entry.get('reason')}: {entry.get('message')}"
        return f"{self.name}: {entry.get('outcome')} ({why}) after {seconds}; answers {answers}, failed {self.failures()}"


def resource_of(event: Mapping[str, Any]) -> str:
    """What an audit event wrote: `httproutes`, or `modelrollouts/status`."""
    target = event["objectRef"]
    return (
        f"{target['resource']}/{target['subresource']}"
        if "subresource" in target
        else str(target["resource"])
    )


Story = Callable[[Lab], None]


def sentence(story: Story) -> str:
    """The id of the test that plays a story."""
    return story.__name__.replace("_", " ")


class Stories:
    """Stories that run side by side."""

    def __init__(self, lab: Lab, stories: Sequence[Story]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(stories)), thread_name_prefix="story")
        self._ends: dict[Story, Future[None]] = {story: self._pool.submit(story, lab) for story in stories}

    def result(self, story: Story) -> None:
        """Wait for the end of a story; raises what it raised."""
        self._ends[story].result()

    def close(self) -> None:
        """Wait for all of them."""
        self._pool.shutdown(wait=True, cancel_futures=True)
