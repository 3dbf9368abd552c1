"""Routes that the user keeps: the references to the Service that callers use are ours to replace, and nothing else is.

While one revision has all the traffic the route stands as the user wrote it, so a GitOps tool sees no difference between
rollouts. While two have some, each reference to that Service is replaced, where it stands, by one for each revision, with
its filters and headers. What the user wrote is remembered in an annotation of the route itself, which is written and
removed by the same patch: a crash loses nothing, and a tool that puts its own content back is told by it.

Where each version is behind a Service (or pool) of the user's, no Service follows the stable revision: the references to
any of those are ours. What the user wrote comes back when it names what is stable; until then one reference to that stands.

Weights are whole numbers. A reference with weight W beside others becomes parts that add up to W × 100, and the others'
weights are multiplied by 100, so each keeps its share exactly; alone in its rule, its parts are percent.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import Spec
from modelrollout.api.status import Status
from modelrollout.cluster.actions import Action, JsonPatch, patch_seen
from modelrollout.cluster.kinds import REVISION_LABEL, STEERED_BY_ANNOTATION, Kind, Object
from modelrollout.cluster.managed_fields import fields_of
from modelrollout.cluster.port import FIELD_MANAGER
from modelrollout.traffic.base import RouteReading, Split, in_percent
from modelrollout.workloads import Children, Ownership, Problem, last_writer, ownership, record_of
from modelrollout.workloads.backends import Backend
from modelrollout.workloads.children import child_name, deleting, name_in, steered_by
from modelrollout.workloads.observation import answering, ready_behind
from modelrollout.workloads.revisions import followed, pin_of, weights_by_revision

ORIGINAL_ANNOTATION = "modelrollout.dev/original"
FACTOR = 100


class Shape(Protocol):
    """How a kind of route says where requests go."""

    @property
    def kind(self) -> Kind:
        """The kind."""

    @property
    def rules(self) -> str:
        """Field of the spec with the rules."""

    @property
    def backends(self) -> str:
        """Field of a rule with the backends."""

    @property
    def owned(self) -> tuple[str, ...]:
        """Fields of a rule that are written: the backends, and what a mirror needs."""

    @property
    def heaviest(self) -> int:
        """The greatest weight that a backend may have."""

    def reference(self, spec: Spec) -> str | None:
        """Name of the route in the spec."""

    def picks(self, spec: Spec, rule: Mapping[str, Any]) -> bool:
        """Whether the spec means this rule."""

    @property
    def targets(self) -> tuple[Kind, ...]:
        """Kinds of backends that it can name."""

    @property
    def needs_port(self) -> bool:
        """Whether a Service must be named with its port."""

    def backend_of(self, ref: Mapping[str, Any], namespace: str) -> Backend | None:
        """The backend of this namespace that a reference names; None if it names something else."""

    def port_of(self, ref: Mapping[str, Any]) -> int | None:
        """Number of the port that a reference names."""

    def weights(self, backends: Sequence[Mapping[str, Any]]) -> list[int]:
        """Weights of the backends of one rule."""

    def redirect(self, ref: Mapping[str, Any], backend: Backend, port: int | None, weight: int) -> Object:
        """The same reference with another backend and weight."""

    def unfit(self, ref: Mapping[str, Any]) -> str | None:
        """Why a reference can't be replaced, with the mend."""

    def mirrors(self, rule: Mapping[str, Any], namespace: str) -> list[tuple[Backend, int]]:
        """Backends of this namespace that copies of requests go to, with the percent."""

    def mirror(
        self,
        values: Object,
        like: Mapping[str, Any] | None,
        backend: Backend,
        port: int | None,
        percent: int,
    ) -> Object | None:
        """Owned fields with a mirror; None if the user's own stands in its place. `like`: a reference whose form it takes."""

    def unmirror(self, values: Object, backends: frozenset[Backend], namespace: str) -> Object:
        """Owned fields without the mirrors to these backends."""

    def refusal(self, live: Mapping[str, Any]) -> str | None:
        """Why what stands there is not carried out (yet)."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """Whose references are whose in a route. `replaced`: those of the user's that are ours to replace."""

    replaced: frozenset[Backend]
    # Services of our revisions. Their form does not tell them: the user may call a Service fraud-production.
    revisions: frozenset[Backend] = frozenset()
    # Whether each version is behind one of the user's: what is replaced and what replaces it are then of one sort.
    own: bool = False
    serving: Backend | None = None  # then, what is in front of the stable version
    began: bool = False  # whether a version was ever stable

    def __str__(self) -> str:
        return str(self.serving) if self.serving else " or ".join(map(str, sorted(self.replaced)))


@dataclass(frozen=True, slots=True)
class _Target:
    """What stands for a revision. `ports`: number of its port by the number that callers use; `port` is the routed one."""

    backend: Backend
    weight: int
    ports: Mapping[int, int]
    port: int | None = None

    def port_for(self, callers: int | None, *, needed: bool) -> int | None:
        if callers is None:
            return self.port if needed else None
        return self.ports.get(callers, callers)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to stand in place of each original reference; no targets: the reference itself."""

    targets: tuple[_Target, ...] = ()
    mirror: _Target | None = None
    serving: _Target | None = None  # the stable revision, where nothing else says who is to serve in the end


@dataclass(frozen=True, slots=True)
class _Part:
    """A rule of which we own something: its owned fields as the user wrote them, and whether they were left as we wrote
    them."""

    index: int
    key: str
    original: Object
    untouched: bool


class BorrowedRouter:
    """Steers a route that the user keeps."""

    can_mirror = True
    can_match = False
    can_stick = False

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name
        self._shape = shape

    # What the spec says

    def validate(self, spec: Spec) -> list[Problem]:
        """Every step is possible; the route is looked at by `problems`."""
        return []

    def probe(self, rollout: Mapping[str, Any], spec: Spec) -> Object | None:
        """None: nothing is asked for that may not be served."""
        return None

    def split(self, weight: int, capacity: int) -> Split:
        """Requests are split by the router, whatever the pods."""
        return Split(float(weight))

    def reference(self, spec: Spec) -> tuple[Kind, str] | None:
        """The route that the spec names."""
        name = self._shape.reference(spec)
        return (self._shape.kind, name) if name else None

    def problems(self, rollout: Mapping[str, Any], spec: Spec, children: Children) -> list[Problem]:
        """The route must exist, be the user's, and name the Service for callers by one of its ports."""
        live = self._live(spec, children)
        problem = self._missing(rollout, spec, children, live)
        if problem is None and live is not None:
            view = self._view(rollout, spec, children, live)
            problem = next(self._unfit(view, spec), None)
        return [problem] if problem else []

    def _view(self, rollout: Mapping[str, Any], spec: Spec, children: Children, live: Object) -> _View:
        return _View(self._shape, rollout, live, _scope(rollout, spec, children, live))

    def _missing(
        self, rollout: Mapping[str, Any], spec: Spec, children: Children, live: Object | None
    ) -> Problem | None:
        kind, name = self._shape.kind.kind, self._shape.reference(spec)
        namespace = rollout["metadata"]["namespace"]
        if live is None or deleting(live):
            return Problem(
                Reason.REFERENCE_NOT_FOUND,
                f"traffic.{self.name} names {kind} {name}, which namespace {namespace} does not have: create it or "
                f"correct the name; a kind that was installed after the operator started is found within 10 minutes",
            )
        if ownership(rollout, live) in (Ownership.OURS, Ownership.STALE):  # the user's may carry our label
            return Problem(
                Reason.NAME_TAKEN,
                f"{kind} {name} is the operator's own (from traffic.gatewayAPI): name another route in traffic.{self.name}",
            )
        view = self._view(rollout, spec, children, live)
        if not view.parts(spec):
            mend = "name as workload.services.stable" if view.scope.own else "set service.name to"
            return Problem(
                Reason.REFERENCE_NOT_FOUND,
                f"{kind} {name} has no backend that is {view.scope}{self._where(spec)}, so there is nothing to split: add "
                f"one, or {mend} the one that it names",
            )
        return None

    def _where(self, spec: Spec) -> str:
        istio = spec.traffic.istio
        route = istio.virtual_service.route if istio and self.name == "istio" else None
        return f" in its http route {route}" if route else ""

    def _unfit(self, view: _View, spec: Spec) -> Iterator[Problem]:
        shape = self._shape
        numbers = [port.port for port in spec.service.ports]
        if not any(view.weight(part) for part in view.parts(spec)):
            yield Problem(
                Reason.NOT_SUPPORTED,
                f"{shape.kind.kind} {name_in(view.live)} gives {view.scope} the weight 0 in each of its rules, so no "
                "requests could be compared: give it a weight",
            )
        for part in view.parts(spec):
            backends = part.original[shape.backends] or []
            where = f"{shape.kind.kind} {name_in(view.live)}: spec.{shape.rules}[{part.index}]"
            for backend in backends:
                target = view.reference(backend)
                if target is None:
                    continue
                port, unfit = shape.port_of(backend), shape.unfit(backend)
                if unfit:
                    yield Problem(Reason.NOT_SUPPORTED, f"{where} {unfit}")
                if port is not None and port not in numbers:
                    known = ", ".join(map(str, numbers))
                    yield Problem(
                        Reason.INVALID_SPEC,
                        f"{where} names port {port} of {target}, which service.ports does not have: write one of "
                        f"{known} there, or add the port",
                    )
            if len(backends) > 1 and max(shape.weights(backends)) * FACTOR > shape.heaviest:
                yield Problem(
                    Reason.NOT_SUPPORTED,
                    f"{where} has a weight of more than {shape.heaviest // FACTOR}, which leaves no room to split it: divide "
                    "the weights of the rule by a common factor",
                )

    # What is written

    def actions(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, now: float
    ) -> list[Action]:
        """Put the committed weights in the place of the original references, or those back."""
        if deleting(rollout):
            return []
        live = self._live(spec, children)
        strays = [obj for obj in self._steered(rollout, children) if obj is not live]
        actions = self._restorations(rollout, children, strays)
        if live is not None and self._missing(rollout, spec, children, live) is None:
            view = self._view(rollout, spec, children, live)
            wanted = self._wanted(view, spec, status, children)
            patch = view.patch(wanted, spec) if wanted is not None else None
            actions += [patch] if patch else self._give_back([live])
        return actions

    def retire(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """Restore whatever is still steered, then give up what the API server holds us for the owner of."""
        restored = self._restorations(rollout, children, self._steered(rollout, children))
        routes = [obj for (kind, _), obj in children.borrowed.items() if kind == self._shape.kind.kind]
        return restored or self._give_back(routes)

    def release(self, rollout: Mapping[str, Any], children: Children) -> list[Action]:
        """The same: the route outlives the ModelRollout."""
        return self.retire(rollout, children)

    def _restorations(
        self, rollout: Mapping[str, Any], children: Children, routes: Sequence[Object]
    ) -> list[Action]:
        """What the user wrote comes back from what each route remembers: the spec may name another one, or be wrong.

        Where that would send requests to another version than the stable one, a reference to that stays instead.
        """
        views = [
            _View(self._shape, rollout, obj, _scope(rollout, None, children, obj))
            for obj in routes
            if not deleting(obj)
        ]
        patches = (view.patch(_Wanted(view.serving()), None) for view in views)
        return [patch for patch in patches if patch is not None]

    def _give_back(self, routes: Sequence[Object]) -> list[Action]:
        """Give up the ownership of rules that stand as the user wrote them.

        The API server would go on to hold us for their owner, and refuse the user's next server-side apply of other ones.
        """
        patches = (_disowning(self._shape, obj) for obj in routes if not deleting(obj))
        return [patch for patch in patches if patch is not None]

    def _steered(self, rollout: Mapping[str, Any], children: Children) -> list[Object]:
        return [
            obj
            for (kind, _), obj in sorted(children.borrowed.items())
            if kind == self._shape.kind.kind and steered_by(obj) == name_in(rollout)
        ]

    def _live(self, spec: Spec, children: Children) -> Object | None:
        name = self._shape.reference(spec)
        return children.borrowed.get((self._shape.kind.kind, name)) if name else None

    def _wanted(self, view: _View, spec: Spec, status: Status, children: Children) -> _Wanted | None:
        """None: nothing can be said yet, so what stands there stays.

        As in a route of our own, a revision stands in it only once its Service had a ready endpoint. The original comes
        back when the Service for callers has followed the revision that has all of the traffic.
        """
        rollout = view.rollout
        if (status.stable or status.candidate) is None:
            return None
        routed = view.routed(spec)

        def target(revision: str, weight: int) -> _Target | None:
            backend = children.backend_of(rollout, revision)
            if backend not in routed and not ready_behind(children, backend):
                return None
            record = record_of(rollout, spec, children, revision)
            ports = _ports(rollout, spec, status, children, revision)
            return _Target(backend, weight, ports, record.port(spec.routed_port.name) if record else None)

        found = [target(revision, weight) for revision, weight in weights_by_revision(status).items()]
        targets = tuple(one for one in found if one is not None)
        mirrored = status.candidate if status.weights.mirror > 0 else None
        mirror = target(mirrored.revision, status.weights.mirror) if mirrored else None
        main = followed(status)
        alone = main is not None and {one.backend.name for one in targets} <= {child_name(rollout, main)}
        if alone and not view.scope.own:
            has_followed = set(answering(children, _root(rollout, spec))) == {main}
            if not view.replaced or has_followed:
                return _Wanted((), mirror)
        serving = target(main, 100) if main and view.scope.own else None
        return _Wanted(targets, mirror, serving) if targets else None

    # What is read

    def observe(
        self, rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children
    ) -> RouteReading:
        """The weights in the route, and whether those who carry them out have accepted this generation of it."""
        live = self._live(spec, children)
        missing = self._missing(rollout, spec, children, live)
        if live is None or missing is not None:
            return RouteReading(problem=f"{missing.reason}: {missing.message}" if missing else None)
        view = self._view(rollout, spec, children, live)
        wanted = self._wanted(view, spec, status, children)
        patch = view.patch(wanted, spec) if wanted is not None else None
        stands = wanted is not None and patch is None
        problem = view.unmirrorable(wanted, spec) if wanted else None
        problem = problem or self._shape.refusal(live)
        roles = (status.previous, status.candidate, status.stable)
        revisions = {children.backend_of(rollout, role.revision): role.revision for role in roles if role}
        weights = view.weights(spec, revisions, _callers(rollout, spec, status, children))
        complete = weights == in_percent(weights_by_revision(status))
        mirror = view.mirrored(spec)
        return RouteReading(
            weights=weights,
            accepted=stands and complete and mirror == status.weights.mirror and problem is None,
            identity=f"{live['metadata'].get('uid')}/{live['metadata'].get('generation')}",
            problem=problem,
            foreign_manager=view.writer if patch is not None and patch.drift else None,
            mirror=mirror,
        )


class _View:
    """A route that somebody else keeps, and what of it is ours."""

    def __init__(self, shape: Shape, rollout: Mapping[str, Any], live: Object, scope: _Scope) -> None:
        self.shape, self.rollout, self.live, self.scope = shape, rollout, live, scope
        self.namespace = str(rollout["metadata"]["namespace"])
        self._prefix = f"{name_in(rollout)}-"
        self._memory = _memory(live) if steered_by(live) == name_in(rollout) else None

    def routed(self, spec: Spec | None) -> frozenset[Backend]:
        """Our revisions' backends that stand in the route; of the user's, those that it sends requests to."""
        if self.scope.own:
            rules = [self._rules[part.index] for part in self.parts(spec)]
            named = [self._named(self._backends(rule)) for rule in rules]
            return frozenset().union(*named, self._mirrored_to(rules))
        found = [
            self.shape.backend_of(one, self.namespace) for rule in self._rules for one in self._backends(rule)
        ]
        ours = frozenset(backend for backend in found if backend and self._is_ours(backend))
        return ours | self._mirrored_to(self._rules)

    def _mirrored_to(self, rules: Sequence[Mapping[str, Any]]) -> frozenset[Backend]:
        found = (backend for rule in rules for backend, _ in self.shape.mirrors(rule, self.namespace))
        return frozenset(backend for backend in found if self._is_ours(backend))

    @property
    def replaced(self) -> bool:
        """Whether a reference of the user's is replaced at present."""
        return any(self._is_ours_in(one) for rule in self._rules for one in self._backends(rule))

    def reference(self, ref: Mapping[str, Any]) -> Backend | None:
        """What a reference names, if it is one that is ours to replace."""
        backend = self.shape.backend_of(ref, self.namespace)
        return backend if backend in self.scope.replaced else None

    @property
    def writer(self) -> str | None:
        """Who else last wrote the rules."""
        return last_writer(self.live, ("f:spec", f"f:{self.shape.rules}"))

    def touched(self, spec: Spec | None) -> bool:
        """Whether somebody has changed what we wrote."""
        return any(not part.untouched for part in self.parts(spec))

    def parts(self, spec: Spec | None) -> list[_Part]:
        """The rules that are split, or may be; without a spec, those that are."""
        found = (self._part(index, rule, spec) for index, rule in enumerate(self._rules))
        return [part for part in found if part is not None]

    def _part(self, index: int, rule: Mapping[str, Any], spec: Spec | None) -> _Part | None:
        values = {field: rule.get(field) for field in self.shape.owned}
        key = str(rule.get("name") or f"#{index}")
        backends = self._backends(rule)
        stored = (self._memory or {}).get(key)
        if stored is not None and stored["written"] == values:
            return _Part(index, key, stored["original"], True)
        if self.scope.own and stored is None and not self._serves(rule, spec):
            return None
        if any(self.reference(one) for one in backends):
            picked = spec is None or self.scope.own or self.shape.picks(spec, rule)
            if not picked and not self._has_ours(rule):
                return None
            # The user's own content again, or still: it is the original now.
            return _Part(index, key, self._users_own(values, stored), self._memory is None)
        if self.scope.own or not self._has_ours(rule):
            return None
        if stored is not None and self._fits(stored["original"], backends):
            return _Part(index, key, stored["original"], False)
        guessed = values | {self.shape.backends: self._guess(backends)}
        original = self._unmirrored(guessed)
        return _Part(index, key, original, False)

    def _users_own(self, values: Object, stored: Mapping[str, Any] | None) -> Object:
        """Owned fields without what is ours in them."""
        if self.scope.own:
            if self._memory == {}:
                values = values | {self.shape.backends: self._guess(values[self.shape.backends] or [])}
            elif self._memory is None or (stored is not None and stored["original"] == values):
                return values
            return self._unmirrored(values)
        kept = [one for one in values[self.shape.backends] or () if not self._is_ours_in(one)]
        return self._unmirrored(values | {self.shape.backends: kept})

    def _unmirrored(self, values: Object) -> Object:
        return self.shape.unmirror(values, self._mirrored_to([values]), self.namespace)

    def _serves(self, rule: Mapping[str, Any], spec: Spec | None) -> bool:
        """Whether a rule of which nothing is remembered is one to be split: those for another version only, say for people
        who want to look at it, are left alone."""
        if spec is None or not self.shape.picks(spec, rule):
            return False
        named = self._named(self._backends(rule))
        return self.scope.serving in named or (bool(named) and self._forgotten)

    @property
    def _forgotten(self) -> bool:
        """Whether it can't be told which rules were split: somebody took what was remembered away, or made the route anew
        from a manifest that is older than the last promotion. Then it is all that name any version."""
        if not self.scope.began or self._memory:
            return False
        return not any(self.scope.serving in self._named(self._backends(rule)) for rule in self._rules)

    def _has_ours(self, rule: Mapping[str, Any]) -> bool:
        return bool(self._mirrored_to([rule])) or any(self._is_ours_in(one) for one in self._backends(rule))

    def _fits(self, original: Mapping[str, Any], backends: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the other backends are still those that stood beside the original reference."""

        def bare(one: Mapping[str, Any]) -> Object:
            return {field: value for field, value in one.items() if field != "weight"}

        before = original.get(self.shape.backends) or []
        others = [bare(b) for b in before if not self.reference(b)]
        return others == [bare(one) for one in backends if not self._is_ours_in(one)]

    def _guess(self, backends: Sequence[Mapping[str, Any]]) -> list[Object]:
        """The original backends, when what was remembered of them is lost: the weights undo our arithmetic."""
        weights = self.shape.weights(backends)
        ours = [index for index, one in enumerate(backends) if self._is_ours_in(one)]
        factor = FACTOR if all(weights[i] % FACTOR == 0 for i in range(len(weights)) if i not in ours) else 1
        found: list[Object] = []
        for index, one in enumerate(backends):
            if index not in ours:
                found.append(
                    {**one, "weight": weights[index] // factor} if len(ours) < len(backends) else dict(one)
                )
            elif index == ours[0]:
                weight = max(1, sum(weights[i] for i in ours) // factor)
                root = self.scope.serving or next(iter(self.scope.replaced))
                found.append(self.shape.redirect(one, root, self.shape.port_of(one), weight))
        return found

    def patch(self, wanted: _Wanted, spec: Spec | None) -> JsonPatch | None:
        """The write that makes the route as wanted; None if it is."""
        rules: dict[str, Object] = {}
        operations: list[Object] = []
        for part in self.parts(spec):
            rule = self._rules[part.index]
            written = self._written(part, wanted)
            rules[part.key] = {"original": part.original, "written": written}
            path = f"/spec/{self.shape.rules}/{part.index}"
            operations += _replacements(path, rule, written)
        memory = self._remembered(rules, wanted) if spec is not None else None
        operations += _annotations(self.live, name_in(self.rollout), memory)
        if not operations:
            return None
        weights = ", ".join(f"{one.backend.name} {one.weight}" for one in wanted.targets)
        undone = self.touched(spec) and any(one["path"].startswith("/spec/") for one in operations)
        drift = f"spec.{self.shape.rules} (by {self.writer or 'another writer'})" if undone else ""
        why = f"weights {weights}" if weights else "the references that the user wrote"
        return patch_seen(self.shape.kind, self.live, operations, why, drift)

    def _remembered(self, rules: Mapping[str, Object], wanted: _Wanted) -> Object | None:
        """What the route is to remember; nothing if it stands as the user wrote it."""
        if not wanted.mirror and all(rule["written"] == rule["original"] for rule in rules.values()):
            return None
        if not self.scope.own:
            (root,) = self.scope.replaced
            put = {one.backend.name for one in (*wanted.targets, wanted.mirror) if one}
            return {"service": root.name, "revisions": sorted(put), "rules": rules}
        originals = (rule["original"][self.shape.backends] or () for rule in rules.values())
        named = {backend for backends in originals for one in backends if (backend := self.reference(one))}
        memory: Object = {"references": [one.to_wire() for one in sorted(named)], "rules": rules}
        if wanted.serving is not None:
            memory["serving"] = wanted.serving.backend.to_wire() | {"port": wanted.serving.port}
        return memory

    def _written(self, part: _Part, wanted: _Wanted) -> Object:
        """The owned fields of a rule, as wanted."""
        shape, values = self.shape, copy.deepcopy(part.original)
        backends = values[shape.backends] or []
        if wanted.targets and not self._names_only(part, wanted.targets):
            values[shape.backends] = self._split(backends, wanted.targets)
        if wanted.mirror is not None:
            first = next((one for one in backends if self.reference(one)), None)
            port = wanted.mirror.port_for(shape.port_of(first) if first else None, needed=shape.needs_port)
            mirrored = shape.mirror(values, first, wanted.mirror.backend, port, wanted.mirror.weight)
            values = values if mirrored is None else mirrored
        return values

    def _named(self, backends: Sequence[Mapping[str, Any]]) -> frozenset[Backend]:
        """What backends send requests to, of what is ours to replace."""
        weighed = list(zip(map(self.reference, backends), self.shape.weights(backends), strict=True))
        serving = frozenset(backend for backend, weight in weighed if backend and weight > 0)
        return serving or frozenset(backend for backend, _ in weighed if backend)

    def serving(self) -> tuple[_Target, ...]:
        """What the route remembers of the stable version; else what the status says. Only where it is the user's."""
        if not self.scope.own:
            return ()
        said = _annotation(self.live).get("serving") or {}
        if (backend := Backend.read(said)) is not None:
            return (_Target(backend, 100, {}, said.get("port")),)
        return (_Target(self.scope.serving, 100, {}),) if self.scope.serving else ()

    def _names_only(self, part: _Part, targets: Sequence[_Target]) -> bool:
        """Whether what the user wrote sends all of its requests to the only target. Ours can't be named by the user."""
        named = self._named(part.original[self.shape.backends] or [])
        return len(targets) == 1 and named == {targets[0].backend}

    def _split(self, backends: Sequence[Object], targets: Sequence[_Target]) -> list[Object]:
        """The backends of a rule with the targets in place of each reference. References to several versions are one:
        what they send is shared out anew."""
        weights = self.shape.weights(backends)
        mine = [index for index, one in enumerate(backends) if self.reference(one)]
        groups = [mine] if self.scope.own else [[index] for index in mine]
        found: list[Object] = []
        for index, one in enumerate(backends):
            if index not in mine:
                found.append({**one, "weight": weights[index] * FACTOR})
            for group in groups:
                if group[0] != index:
                    continue
                whole = sum(weights[member] for member in group)
                total = whole * FACTOR if len(backends) > len(group) else FACTOR * min(1, whole)
                found += self._shared([backends[member] for member in group], targets, total)
        return found

    def _shared(self, refs: Sequence[Object], targets: Sequence[_Target], total: int) -> list[Object]:
        """One reference for each target, made from the user's own to it if there is one, else from the first."""
        shape, own = self.shape, {self.reference(ref): ref for ref in reversed(refs)}
        found = []
        for target, share in zip(targets, _apportion(total, [one.weight for one in targets]), strict=True):
            ref = own.get(target.backend, refs[0])
            port = target.port_for(shape.port_of(ref), needed=shape.needs_port)
            found.append(shape.redirect(ref, target.backend, port, share))
        return found

    def weight(self, part: _Part) -> int:
        """What the references of the user's weigh that are replaced."""
        backends = part.original[self.shape.backends] or []
        weights = self.shape.weights(backends)
        return sum(weight for one, weight in zip(backends, weights, strict=True) if self.reference(one))

    def unmirrorable(self, wanted: _Wanted, spec: Spec) -> str | None:
        """Why a wanted mirror can't stand there."""
        if wanted.mirror is None:
            return None
        for part in self.parts(spec):
            if self.shape.mirror(copy.deepcopy(part.original), None, wanted.mirror.backend, None, 1) is None:
                return (
                    f"{Reason.NOT_SUPPORTED}: spec.{self.shape.rules}[{part.index}] of {self.shape.kind.kind} "
                    f"{name_in(self.live)} has a mirror of its own: remove that, or let the strategy do without one"
                )
        return None

    def mirrored(self, spec: Spec) -> int:
        """Percent of the requests that we copy to revisions; the least over the rules that are split."""
        found = []
        for part in self.parts(spec):
            users = self.shape.mirrors(part.original, self.namespace)
            stand = self.shape.mirrors(self._rules[part.index], self.namespace)
            ours = [one for one in stand if one not in users]
            found.append(max((percent for to, percent in ours if self._is_ours(to)), default=0))
        return min(found, default=0)

    def weights(
        self, spec: Spec, revisions: Mapping[Backend, str], callers: Mapping[str, int]
    ) -> dict[str, int]:
        """Percent by revision: the mean over the rules; what has no role goes by its name. `revisions` says who is behind
        what, and `callers` how the Service for callers splits."""
        sums: dict[str, int] = {}
        counted = 0
        for part in self.parts(spec):
            backends = self._backends(self._rules[part.index])
            shares: dict[str, int] = {}
            for one, weight in zip(backends, self.shape.weights(backends), strict=True):
                backend = self.shape.backend_of(one, self.namespace)
                if backend is None:
                    continue
                if self._is_ours(backend):
                    revision = revisions.get(backend) or backend.name.removeprefix(self._prefix)
                    shares[revision] = shares.get(revision, 0) + weight * 100
                elif backend in self.scope.replaced:
                    for revision, percent in callers.items():
                        shares[revision] = shares.get(revision, 0) + weight * percent
            if sum(shares.values()):
                counted += 1
                for revision, percent in in_percent(shares).items():
                    sums[revision] = sums.get(revision, 0) + percent
        return (
            {revision: percent // counted for revision, percent in sums.items()} if counted else dict(callers)
        )

    @property
    def _rules(self) -> list[Object]:
        return list((self.live.get("spec") or {}).get(self.shape.rules) or ())

    def _backends(self, rule: Mapping[str, Any]) -> list[Object]:
        return list(rule.get(self.shape.backends) or ())

    def _is_ours_in(self, ref: Mapping[str, Any]) -> bool:
        backend = self.shape.backend_of(ref, self.namespace)
        return backend is not None and self._is_ours(backend)

    def _is_ours(self, backend: Backend) -> bool:
        return backend in (self.scope.replaced if self.scope.own else self.scope.revisions)


def _disowning(shape: Shape, live: Object) -> JsonPatch | None:
    """The write that takes our entry out of the managedFields of a route that nobody steers; None if there is none."""
    if steered_by(live):
        return None
    for index, entry in enumerate(live["metadata"].get("managedFields") or ()):
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("subresource") in (None, "")
        if ours and f"f:{shape.rules}" in (fields_of(entry).get("f:spec") or {}):
            path = f"/metadata/managedFields/{index}"
            remove = (
                {"op": "test", "path": f"{path}/manager", "value": FIELD_MANAGER},
                {"op": "remove", "path": path},
            )
            return patch_seen(shape.kind, live, remove, "give it back")
    return None


def _root(rollout: Mapping[str, Any], spec: Spec) -> str:
    return spec.service_name(name_in(rollout))


def _scope(rollout: Mapping[str, Any], spec: Spec | None, children: Children, live: Object) -> _Scope:
    """What is ours to replace in a route: by the spec, or without one by what the route remembers."""
    said = _annotation(live) if steered_by(live) == name_in(rollout) else {}
    references = said.get("references")
    # Without a spec the route itself says it: of a ModelRollout that is being deleted the records may be gone before.
    plain = spec.workload.services is None if spec else not isinstance(references, list)
    if not children.bound and plain:
        root = _root(rollout, spec) if spec else str(said.get("service") or name_in(rollout))
        put = said.get("revisions")  # it may be all that is left of a revision
        names = children.revision_names(rollout) | set(map(str, put if isinstance(put, list) else ()))
        return _Scope(frozenset({Backend(root)}), frozenset(map(Backend, names)))
    remembered = [Backend.read(one) for one in references] if isinstance(references, list) else []
    own = spec.workload.services if spec else None
    named = [Backend.of(one) for one in (own.stable, own.named)] if own else []
    replaced = frozenset(one for one in (*children.bound.values(), *named, *remembered) if one)
    stable = ((rollout.get("status") or {}).get("stable") or {}).get("revision")
    serving = children.bound.get(str(stable)) or (Backend.of(own.stable) if own else None)
    return _Scope(replaced, own=True, serving=serving, began=bool(stable))


def _ports(
    rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children, revision: str
) -> dict[int, int]:
    """Number of a revision's port by the number that callers use: they are the same port if they have the same name."""
    record = record_of(rollout, spec, children, revision)
    main = followed(status)
    callers = record_of(rollout, spec, children, main) if main else None
    if record is None:
        return {}
    named = {int(port["port"]): str(port.get("name")) for port in (callers or record).ports}
    named |= {port.port: port.name for port in spec.service.ports if port.port not in named}
    return {number: record.port(name) for number, name in named.items()}


def _callers(rollout: Mapping[str, Any], spec: Spec, status: Status, children: Children) -> dict[str, int]:
    """Percent by revision behind the Service for callers. Without endpoints it is who is to answer that counts."""
    live = children.services.get(_root(rollout, spec))
    pin = pin_of(spec, status) if (status.stable or status.candidate) else None
    if live is None or pin is None:
        return {}
    if (live["spec"].get("selector") or {}).get(REVISION_LABEL) != pin:
        return {}
    return in_percent(answering(children, _root(rollout, spec))) or {pin: 100}


def _apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of a total in the ratio of the weights; what rounding leaves goes to the greatest remainders."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return parts


def _replacements(path: str, rule: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[Object]:
    for field, value in written.items():
        if rule.get(field) == value:
            continue
        where = f"{path}/{field}"
        if value is None:
            yield {"op": "remove", "path": where}
        else:
            yield {"op": "replace" if field in rule else "add", "path": where, "value": value}


def _annotation(live: Mapping[str, Any]) -> dict[str, Any]:
    text = (live["metadata"].get("annotations") or {}).get(ORIGINAL_ANNOTATION)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _memory(live: Mapping[str, Any]) -> dict[str, Any]:
    """What was remembered by rule, without what can't be read: somebody may have edited it."""
    rules = _annotation(live).get("rules")
    if not isinstance(rules, dict):
        return {}
    return {
        key: rule
        for key, rule in rules.items()
        if isinstance(rule, dict)
        and all(isinstance(rule.get(field), dict) for field in ("original", "written"))
    }


def _annotations(live: Mapping[str, Any], rollout: str, memory: Object | None) -> Iterator[Object]:
    present = live["metadata"].get("annotations") or {}
    if memory is None:
        ours = [key for key in (STEERED_BY_ANNOTATION, ORIGINAL_ANNOTATION) if key in present]
        if ours and len(ours) == len(present):
            yield {"op": "remove", "path": "/metadata/annotations"}
        else:
            yield from ({"op": "remove", "path": _path(key)} for key in ours)
        return
    wanted = {
        STEERED_BY_ANNOTATION: rollout,
        ORIGINAL_ANNOTATION: json.dumps(memory, sort_keys=True, separators=(",", ":")),
    }
    if not present:
        yield {"op": "add", "path": "/metadata/annotations", "value": wanted}
        return
    for key, value in wanted.items():
        if present.get(key) != value:
            yield {"op": "add", "path": _path(key), "value": value}


def _path(key: str) -> str:
    return f"/metadata/annotations/{key.replace('~', '~0').replace('/', '~1')}"
