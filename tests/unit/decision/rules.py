"""The safety rules S1–S11 of the design, written down a second time and independently of the code that keeps them.

Each decision of a test's world is held against them. They look at what was committed before, what was seen, and what was
decided; a few things that can't be read off one round (when a revision last had weight) are remembered here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import ceil

from modelrollout.api.conditions import EventReason
from modelrollout.api.spec import Spec
from modelrollout.api.status import GateState, Phase, RevisionStatus, Status, StepStatus
from modelrollout.api.types import JsonObject
from modelrollout.decision.types import Data, Decision, Judgement, Observation, Timing, Wish

COMPARING = (Phase.PROGRESSING, Phase.PAUSED)
ATTEMPT = (*COMPARING, Phase.PROMOTING, Phase.WATCHING, Phase.ROLLING_BACK)
AWAY = (Data.UNAVAILABLE, Data.NOT_SCRAPED)


@dataclass(frozen=True)
class Case:
    """One decision, and all it rested on."""

    before: Status
    after: Status
    decision: Decision
    wish: Wish
    seen: Observation
    judged: Judgement
    mirrored: int  # percent of the requests that are copied to the candidate, in the route
    matched: int  # percent of the requests that match that go to the candidate, in the route
    pods: dict[str, int]  # that exist now, by revision
    now: float
    timing: Timing

    @cached_property
    def spec(self) -> Spec:
        """The spec that was acted on."""
        accepted = self.after.accepted
        if accepted is None:
            assert self.wish.spec is not None
            return self.wish.spec
        return read_spec(accepted)

    @property
    def capacity(self) -> int:
        return max(self.spec.workload.replicas, self.at_start or 0)

    @property
    def at_start(self) -> int | None:
        """Pods at the start; of the user's own what they grew to, or as many as are left of them."""
        before, stable = self.after.capacity_at_start, self.after.stable
        if before is None or stable is None or self.spec.workload.services is None:
            return before
        return min(max(before, self.ready(stable)), self.pods.get(stable.revision, 0))

    @property
    def pod_ratio(self) -> bool:
        return self.spec.traffic.router == "podRatio"

    @property
    def lean(self) -> bool:
        return self.pod_ratio or self.spec.workload.elastic

    @property
    def frozen(self) -> bool:
        return condition(self.after, "Accepted") != "True"

    def given(self, duration: Callable[[Spec], float]) -> float:
        """Seconds by which an edit that was accepted now has lengthened a duration."""
        return (
            duration(self.spec) - duration(read_spec(self.before.accepted)) if self.before.accepted else 0.0
        )

    def ready(self, role: RevisionStatus | None) -> int:
        return self.seen.of(role.revision if role else None).ready

    def waiting(self, role: RevisionStatus) -> bool:
        return bool(self.seen.of(role.revision).waiting)

    def settled(self, role: RevisionStatus | None) -> int:
        limit = self.now - self.timing.raise_after
        return sum(since <= limit for since in self.seen.of(role.revision if role else None).ready_since)

    def asked(self, verb: str) -> bool:
        return bool(getattr(self.before.requests, verb) != getattr(self.after.requests, verb))


def condition(status: Status, kind: str) -> str | None:
    """Status of a condition."""
    return next((c.status for c in status.conditions if c.type == kind), None)


def by_revision(status: Status) -> dict[str, int]:
    """Committed weights above 0."""
    pairs = (
        (status.stable, status.weights.stable),
        (status.candidate, status.weights.candidate),
        (status.previous, status.weights.previous),
    )
    return {role.revision: weight for role, weight in pairs if role and weight}


def wanted_pods(status: Status) -> int:
    """Pods of all revisions, those included that retire."""
    roles = [r for r in (status.stable, status.candidate, status.previous) if r]
    return sum(role.desired for role in roles) + sum(gone.desired for gone in status.retiring)


def read_spec(wire: JsonObject) -> Spec:
    """A spec from its wire form; one that was read before is not read again, as most time would go into that."""
    return _read_spec(json.dumps(wire))


@cache
def _read_spec(text: str) -> Spec:
    return Spec.from_wire(json.loads(text))


@dataclass
class Rules:
    """All rules, and what they remember."""

    last_weight: dict[str, float] = field(default_factory=dict)  # revision → when it last had weight
    emergency: bool = False  # S1 gave a revision more than its step
    rolled_out: set[str] = field(default_factory=set)  # revisions that were compared or first
    checked: int = 0

    def check(self, case: Case) -> None:
        """Raise AssertionError with the name of the rule that a decision breaks."""
        self.checked += 1
        self.conditions_follow_the_table(case)
        self.history_is_kept(case)
        if case.after.phase == Phase.INVALID:
            assert case.after.stable is None, "Invalid, and yet something serves"
            return
        for rule in (
            self.s5_promoted_is_what_was_analysed,
            self.weights_are_whole,
            self.s1_weight_needs_ready_pods,
            self.s1_the_first_that_answers_stays,
            self.s2_weight_is_carried,
            self.mirrors_need_ready_pods,
            self.matches_need_ready_pods,
            self.s9_capacity,
            self.elastic_stays_within_its_room,
            self.s3_pods_outlast_weight,
            self.s4_the_way_back_falls,
            self.s4_makes_room_one_by_one,
            self.s6_decisions_need_data,
            self.s6_winners_are_proven,
            self.s8_clocks_keep_what_is_left,
            self.gates_are_passed,
        ):
            rule(case)
        for revision in (*by_revision(case.after), *(case.seen.route.weights or {})):
            self.last_weight[revision] = case.now
        beside = case.before.candidate if case.mirrored or case.matched else None
        still = case.after.weights.mirror or case.after.weights.matched
        for role in (beside, case.after.candidate if still else None):
            if role is not None:
                self.last_weight[role.revision] = case.now

    def weights_are_whole(self, case: Case) -> None:
        weights = case.after.weights
        shares = (weights.stable, weights.candidate, weights.previous)
        assert all(0 <= share <= 100 for share in shares), f"weights {shares}"
        assert sum(shares) in ((0, 100) if case.after.stable is None else (100,)), f"weights {shares}"
        assert sum(by_revision(case.after).values()) == sum(shares), "weight without a revision"

    def s1_weight_needs_ready_pods(self, case: Case) -> None:
        roles = [r for r in (case.after.stable, case.after.candidate, case.after.previous) if r]
        others = {r.revision for r in (case.before.candidate, case.before.previous) if r}
        known = {r.revision for r in roles} | (others if case.before.phase in ATTEMPT else set())
        if not any(case.seen.of(revision).ready for revision in known):
            return
        for revision, weight in by_revision(case.after).items():
            assert case.seen.of(revision).ready, f"S1: {revision} has weight {weight} and no ready pod"

    def s1_the_first_that_answers_stays(self, case: Case) -> None:
        """While one first deployment replaces another."""
        before, after = case.before, case.after
        if Phase.PENDING not in (before.phase, after.phase) or case.ready(after.stable):
            return
        roles = [before.stable, *before.retiring] if before.stable else before.retiring
        for role in roles:
            known = {gone.revision: gone.desired for gone in after.retiring if gone.until > case.now}
            stays = after.stable is not None and after.stable.revision == role.revision
            ready = case.seen.of(role.revision).ready
            assert stays or min(ready, 1) <= known.get(role.revision, 0), (
                f"S1: {role.revision} answers alone and goes"
            )

    def s2_weight_is_carried(self, case: Case) -> None:
        status = case.after
        if status.candidate is None or status.phase not in (*COMPARING, Phase.PROMOTING):
            self.emergency = False
            return
        weight, ready = status.weights.candidate, case.ready(status.candidate)
        if case.ready(status.stable) == 0 and ready:
            self.emergency = True
            assert weight == 100, "S1: what is ready serves"
            return
        assert status.step is not None
        step = status.plan[status.step.index].weight
        goals = [0 if status.parked else step]
        if status.phase == Phase.PROMOTING:
            goals.append(100 - (case.spec.watch.holdback if case.spec.watch.duration else 0))
        # What stood before and is carried may stand until the pods for the next step are there.
        stood = min(case.before.weights.candidate, max(goals))
        bound = max(self._carried(case, goal, ready) for goal in (*goals, stood))
        rose = weight > case.before.weights.candidate
        if weight <= bound:
            self.emergency = False
        elif self.emergency:
            left = 100 - 100 * case.ready(status.stable) // case.capacity
            assert weight <= case.before.weights.candidate, "S2: weight rose after an emergency"
            assert weight <= max(bound, left), f"S2: {weight} % is kept from a baseline that can carry it"
        elif ready or case.ready(status.stable):
            raise AssertionError(f"S2: weight {weight} with {ready} ready pods, at most {bound}")
        if rose and not case.lean:
            settled = case.settled(status.candidate)
            carried = max(self._carried(case, goal, settled) for goal in goals)
            assert weight <= carried, f"S2: weight rose to {weight}, but pods ready for long carry {carried}"

    def mirrors_need_ready_pods(self, case: Case) -> None:
        """S1 to S3 for copies of requests."""
        status, mirror = case.after, case.after.weights.mirror
        if mirror == 0:
            return
        assert status.phase in COMPARING, f"S1: a mirror in {status.phase}"
        assert not status.parked, "S6: a mirror without metrics"
        assert status.step is not None
        assert status.candidate is not None
        step = status.plan[status.step.index]
        ready = case.ready(status.candidate)
        assert ready, "S1: a mirror to a revision without ready pods"
        assert case.ready(status.stable), "S1: a mirror, and nothing but the candidate serves"
        at_raise = case.before.step.baseline_ready if case.before.step else 0
        present = at_raise or case.ready(status.stable)
        serving = min(case.capacity, max(present, case.settled(status.stable)))
        needed = max(1, ceil(serving * min(100, step.weight + step.mirror) / 100))
        assert mirror <= step.mirror * min(1, ready / needed), (
            f"S2: {ready} pods can't answer copies of {mirror} %"
        )
        rose = mirror > case.before.weights.mirror
        settled = case.settled(status.candidate)
        assert not rose or mirror <= step.mirror * min(1, settled / needed), (
            "S2: a mirror before pods are ready"
        )

    def matches_need_ready_pods(self, case: Case) -> None:
        """S1 to S3 for requests that the step chooses."""
        status, matched, before = case.after, case.after.weights.matched, case.before.weights.matched
        if matched == 0:
            return
        assert status.phase in (*COMPARING, Phase.PROMOTING), f"S1: matches in {status.phase}"
        assert not status.parked, "S6: matches without metrics"
        assert status.step is not None
        assert status.candidate is not None
        step = status.plan[status.step.index]
        assert step.matches, "a step without matches chooses requests"
        assert case.spec.traffic.router == "gatewayAPI", "a router that can't choose requests"
        ready, baseline = case.ready(status.candidate), case.ready(status.stable)
        assert ready, "S1: chosen requests for a revision without ready pods"
        assert baseline, "S1: chosen requests, and nothing but the candidate serves"
        assert status.weights.candidate == 0, "S2: chosen requests beside a share of all"
        at_raise = case.before.step.baseline_ready if case.before.step else 0
        needed = max(1, ceil(min(case.capacity, max(at_raise, baseline)) * step.size / 100))
        assert matched <= 100 * min(1, ready / needed), f"S2: {ready} pods can't answer {matched} % of them"
        settled = case.settled(status.candidate)
        rose = matched > before
        assert not rose or matched <= 100 * min(1, settled / needed), (
            "S2: chosen requests before pods are ready"
        )

    def _carried(self, case: Case, goal: int, ready: int) -> int:
        if case.lean:
            if case.pod_ratio and goal:
                return 100 if ready else 0  # the pods themselves are the weight
            return min(goal, 100 * ready)
        at_raise = case.before.step.baseline_ready if case.before.step else 0
        present = at_raise or case.ready(case.after.stable)
        baseline = min(case.capacity, max(present, case.settled(case.after.stable)))
        needed = max(1, ceil(baseline * goal / 100))
        return goal if ready >= needed else goal * ready // needed

    def s3_pods_outlast_weight(self, case: Case) -> None:
        status, drain = case.after, case.spec.drain_delay
        if case.spec.workload.services is not None:
            return  # pods of the user's: nobody takes them away
        wanted = {gone.revision: gone.desired for gone in status.retiring if gone.until > case.now}
        roles = [r for r in (status.stable, status.candidate, status.previous) if r]
        wanted |= {role.revision: role.desired for role in roles}
        present = by_revision(status)
        for revision, count in case.pods.items():
            left = wanted.get(revision, 0)
            if left >= min(count, case.capacity):
                continue  # whoever asks for fewer replicas gets them
            if self._makes_room(case, revision) and left == count - 1:
                continue  # S4: weight falls as the baseline's pods come, which need its place
            weight = max(present.get(revision, 0), (case.seen.route.weights or {}).get(revision, 0))
            if weight and case.lean:
                enough = 1 if case.pod_ratio else case.capacity * (weight - 1) // 100 + 1
                if status.phase == Phase.ROLLING_BACK and status.stable and case.waiting(status.stable):
                    enough = max(1, enough - 1)  # it makes room for one that comes back
                assert left >= enough, f"S3: {revision} with weight {weight} is left {left} pods"
                continue
            assert not weight, f"S3: {revision} with weight {weight} loses pods"
            since = case.now - self.last_weight.get(revision, float("-inf"))
            assert since >= drain, f"S3: {revision} loses pods {since:g} s after its weight"

    def s4_the_way_back_falls(self, case: Case) -> None:
        before, after = case.before, case.after
        if after.phase != Phase.ROLLING_BACK or case.ready(after.stable) == 0:
            return
        assert after.candidate is not None
        old = by_revision(before).get(after.candidate.revision, 0)
        weight = after.weights.candidate
        assert weight <= old, f"S4: weight rose from {old} to {weight} on the way back"
        assert after.rolling_back_since is not None
        limit = after.rolling_back_since + case.spec.progress_deadline
        if case.spec.workload.elastic and before.phase == Phase.ROLLING_BACK:
            limit = before.progress_deadline_at or limit  # each pod that comes back has its time
        if case.now >= limit:
            assert weight == 0, f"S4: weight {weight} after the time limit"
        size = case.at_start or case.capacity
        had = [
            r.desired for r in (before.stable, before.previous) if r and r.revision == after.stable.revision
        ]
        staying = min([case.ready(after.stable), *had])  # what was told to go carries nothing
        left = 100 - min(100, 100 * staying // size)
        assert weight <= left, f"S4: weight {weight} is kept from a baseline that can carry it"

    def s4_makes_room_one_by_one(self, case: Case) -> None:
        """What carries traffic gives way to pods of the baseline that find no node, never at once and never altogether."""
        before, after = case.before.candidate, case.after.candidate
        if after is None or before is None or not self._makes_room(case, after.revision):
            return
        there = min(before.desired, case.pods.get(after.revision, 0))
        assert after.desired >= min(there, max(1, there - 1)), (
            f"S4: {there} pods become {after.desired} at once"
        )

    @staticmethod
    def _makes_room(case: Case, revision: str) -> bool:
        status = case.after
        if status.phase != Phase.ROLLING_BACK or not status.candidate or not status.stable:
            return False
        waiting = case.seen.of(status.stable.revision).waiting
        return status.candidate.revision == revision and any(w.startswith("Unschedulable") for w in waiting)

    def s5_promoted_is_what_was_analysed(self, case: Case) -> None:
        before, after = case.before, case.after
        baseline = after.stable is not None and after.stable.ever_ready
        assert after.phase not in ATTEMPT or baseline, "S5: compared with what never had a ready pod"
        if after.stable is None or (before.stable and before.stable.revision == after.stable.revision):
            return
        named = after.stable.revision
        first = after.phase == Phase.PENDING and named == case.wish.revision
        back = before.previous is not None and named == before.previous.revision
        candidate = before.candidate.revision if before.candidate else None
        promoted = (
            before.phase == Phase.PROMOTING and named == candidate and after.history[0].revision == named
        )
        restored = before.stable is None and named == case.seen.pinned
        assert first or back or promoted or restored, f"S5: {named} became stable out of phase {before.phase}"

    def s6_decisions_need_data(self, case: Case) -> None:
        before, after, judged = case.before, case.after, case.judged
        if before.phase not in ATTEMPT or case.spec.analysis.mode == "Off":
            return
        if judged.pending and not case.asked("promote"):
            moved = any(event.reason is EventReason.STEP_COMPLETED for event in case.decision.events)
            assert not moved, "S6: forward without the newest word"
        blind = judged.data in AWAY or (judged.assessment is None and not judged.guardrails)
        reason = after.history[0].reason if after.history else None
        fresh = reason != (before.history[0].reason if before.history else None)
        if judged.assessment is None and not judged.guardrails and fresh:
            assert reason not in ("HarmProven", "GuardrailBreached", "ProvenHarmless"), f"S6: {reason}"
        step = before.plan[before.step.index] if before.step else None
        copies = (
            step is not None and step.weight == 0 and not step.matches
        )  # no label ever arrives for them …
        nothing = step is not None and step.load == 0  # … and where there are none, nothing can be seen
        metrics = judged.assessment.metrics if judged.assessment else ()
        gating = [m for m in metrics if m.gating and not (copies and m.kind == "score")]
        stale = not nothing and not all(m.has_data for m in gating)
        if not (blind or stale):
            return
        if stale and not blind and before.unproven:
            return  # the deadline allowed to go on without proof, and it was looked
        completed = any(event.reason is EventReason.STEP_COMPLETED for event in case.decision.events)
        if reason == "NotSuperior" and after.phase == Phase.ROLLING_BACK:
            return  # a test whose time is over takes nothing over
        assert not completed or case.asked("promote"), "S6: forward without data"

    def gates_are_passed(self, case: Case) -> None:
        """No step ends before its gates have said yes, each asked by itself and no more often than it may be."""
        before, after = case.before, case.after
        if after.step is not None and after.phase in COMPARING:
            planned = {gate.id: gate for gate in after.plan[after.step.index].gates}
            asked = after.step.gates
            assert {gate.id for gate in asked} <= planned.keys(), "gates: one that the step does not have"
            assert sum(gate.state is GateState.RUNNING for gate in asked) <= 1, "gates: two at once"
            for gate in asked:
                assert gate.asked <= planned[gate.id].retries + 1, (
                    f"gates: {gate.name} asked {gate.asked} times"
                )
                said_yes = gate.state is not GateState.PASSED or self._passed(case, gate.id)
                assert said_yes, f"gates: {gate.name} passed by itself"
        completed = any(event.reason is EventReason.STEP_COMPLETED for event in case.decision.events)
        if not completed or case.asked("promote"):
            return
        promoting = after.phase == Phase.PROMOTING
        if after.step is not None and after.plan:
            ended = after.plan[after.step.index - (not promoting)]
        else:
            assert before.step is not None
            ended = before.plan[before.step.index]
        wanted = [gate for gate in ended.gates if promoting or not gate.promotion]
        missed = [gate.name for gate in wanted if not self._passed(case, gate.id)]
        assert not missed, f"gates: the step ended without {missed}"

    def _passed(self, case: Case, id: str) -> bool:
        known = case.before.step.gate(id) if case.before.step else None
        if known is None:
            return False
        reading = case.seen.gates.get(known.question)
        running = known.state is GateState.RUNNING and reading is not None and reading.passed
        return known.state is GateState.PASSED or bool(running)

    def s6_winners_are_proven(self, case: Case) -> None:
        before, after = case.before, case.after
        entry = after.history[0] if after.history else None
        if entry is None or entry.reason != "ProvenSuperior" or after.phase != Phase.PROMOTING:
            return
        if before.phase == Phase.PROMOTING:
            return
        assert before.step is not None
        step, found = before.plan[before.step.index], case.judged.assessment
        metrics = [m for m in found.metrics if m.gating] if found else []
        won = [m for m in metrics if m.name == step.reward and m.superior and m.has_data]
        assert won, "S6: a winner that is not proven better"
        assert step.randomized, "S6: a winner among users who were chosen"
        assert all(m.harmless or m.superior for m in metrics), "S6: a winner that may do harm"
        assert found is not None and not found.harm, "S6: a winner that does harm"

    def s8_clocks_keep_what_is_left(self, case: Case) -> None:
        before, after = case.before, case.after
        old, new = before.step, after.step
        if old and new and old.id == new.id and old.started_at is not None:
            assert old.started_at == new.started_at, "S8: a step started twice"
            self._kept(case, "step", (old.ends_at, old.left), (new.ends_at, new.left))
        if before.watch and after.watch and before.attempt == after.attempt:
            ends = (before.watch.ends_at, before.watch.left), (after.watch.ends_at, after.watch.left)
            self._kept(case, "watch", *ends, given=case.given(lambda spec: spec.watch.duration))
        same = before.attempt == after.attempt and before.phase in COMPARING and after.phase in COMPARING
        if same and not case.asked("resume") and after.deadline_at != after.deadline_left:
            ends = (before.deadline_at, before.deadline_left), (after.deadline_at, after.deadline_left)
            self._kept(case, "deadline", *ends, given=case.given(lambda spec: spec.analysis.deadline))

    def _kept(
        self,
        case: Case,
        name: str,
        old: tuple[float | None, float | None],
        new: tuple[float | None, float | None],
        given: float = 0.0,
    ) -> None:
        assert new[0] is None or new[1] is None, f"S8: {name} both runs and is held"
        now = case.now
        end = old[0] + given if old[0] is not None else now + max(0.0, (old[1] or 0.0) + given)
        after = new[0] if new[0] is not None else now + (new[1] or 0.0)
        passed = old[0] is not None and end < now and new[1] is not None
        assert abs((now if passed else end) - after) < 1e-3, f"S8: {name} moved from {old} to {new} at {now}"

    def s9_capacity(self, case: Case) -> None:
        before, after = case.before, case.after
        if after.phase not in ATTEMPT:
            assert after.capacity_at_start is None or after.phase == Phase.PENDING, "S9: capacity outlives"
            return
        if before.phase in ATTEMPT and before.attempt == after.attempt:
            assert before.capacity_at_start == after.capacity_at_start, "S9: capacity at the start changed"
        assert after.stable is not None
        if not case.lean:
            assert after.stable.desired >= case.capacity, "S9: the baseline is below capacity"
        ours = case.spec.workload.services is None
        if (
            after.candidate
            and before.candidate
            and before.attempt == after.attempt
            and ours
            and not case.lean
        ):
            same = before.candidate.revision == after.candidate.revision
            grown = after.candidate.desired >= before.candidate.desired or after.phase == Phase.ROLLING_BACK
            assert grown or not same, "S2: the candidate was shrunk within an attempt"

    def elastic_stays_within_its_room(self, case: Case) -> None:
        """One pod more than the capacity, or fewer than before; but S1 comes first."""
        before, after = case.before, case.after
        if not case.spec.workload.elastic or after.phase not in ATTEMPT or after.stable is None:
            return
        step = after.plan[after.step.index] if after.step else None
        alone = case.ready(after.stable) == 0 and (case.ready(after.candidate) or case.ready(after.previous))
        if alone or (step and (step.mirror or step.size or step.matches)):
            return
        assert wanted_pods(after) <= max(case.capacity + 1, wanted_pods(before)), (
            f"elastic: {wanted_pods(after)} pods are wanted for a capacity of {case.capacity}"
        )

    def conditions_follow_the_table(self, case: Case) -> None:
        status = case.after
        kinds = {c.type: c.status for c in status.conditions}
        for kind in ("Accepted", "Ready", "MetricsAvailable", "TrafficVerified"):
            assert kind in kinds, f"condition {kind} is missing in {status.phase}"
        reconciling, stalled = "Reconciling" in kinds, "Stalled" in kinds
        assert not (reconciling and stalled), "Reconciling and Stalled at once"
        assert all(c.observed_generation == case.wish.generation for c in status.conditions)
        assert status.message, "no message"
        assert "None" not in status.message, status.message
        late = status.progress_deadline_at is not None and case.now >= status.progress_deadline_at
        stuck = late and status.phase in (Phase.PENDING, Phase.ROLLING_BACK)
        if kinds["Accepted"] == "Unknown":
            assert (kinds["Ready"], reconciling) == ("Unknown", True), (status.phase, kinds)
        elif case.frozen or stuck or status.phase in (Phase.ROLLED_BACK, Phase.INVALID):
            assert (kinds["Ready"], stalled) == ("False", True), (status.phase, kinds)
        elif status.phase in (Phase.PENDING, *COMPARING, Phase.PROMOTING):
            assert (kinds["Ready"], reconciling) == ("Unknown", True), (status.phase, kinds)
        elif status.phase == Phase.ROLLING_BACK:
            back = "Unknown" if status.history[0].outcome == "Judged" else "False"
            assert (kinds["Ready"], reconciling) == (back, True), (status.phase, kinds)
        serving = {r.revision for r in (status.stable,) if r}
        if status.phase == Phase.HEALTHY and status.rejected and status.history[0].outcome == "Judged":
            serving.add(status.rejected.revision)  # its strategy asked for no more than a verdict
        if kinds["Ready"] == "True":
            assert status.phase in (Phase.WATCHING, Phase.HEALTHY)
            assert case.wish.revision in serving, "Ready for a spec that is not served"
            assert not reconciling
            assert not stalled

    def history_is_kept(self, case: Case) -> None:
        before, after = case.before, case.after
        assert len(after.history) <= 10
        assert before.attempt <= after.attempt <= before.attempt + 1, "attempts are counted one by one"
        attempts = [entry.attempt for entry in after.history]
        assert attempts == sorted(attempts, reverse=True)
        assert len(set(attempts)) == len(attempts)
        if after.history and before.phase is not None and after.phase not in (Phase.INVALID,):
            assert after.history[0].attempt == after.attempt
        rest = after.phase in (Phase.HEALTHY, Phase.ROLLED_BACK)
        if rest and after.history:
            assert after.history[0].outcome is not None
            assert after.history[0].ended_at is not None
        _steps_fit(after.step, after)


def _steps_fit(step: StepStatus | None, status: Status) -> None:
    if step is None:
        assert status.phase not in (*COMPARING, Phase.PROMOTING)
        return
    assert status.plan[step.index].id == step.id, "the step is not in the plan"
    assert step.display == f"{step.index + 1}/{len(status.plan)}"
