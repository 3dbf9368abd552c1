"""From Prometheus to a judgement: which pods are compared, when the next look is due, and what the evidence says.

The statistics are in `evidence`, the reading of samples in `telemetry`; here they meet the rollout's phase, its pods and the
clock. Looks happen at the pace of `analysis.interval`; a round in between judges the same evidence again. A round never
waits for a slow Prometheus, because pods that are gone must lose their traffic now: the look goes on, and the round that
its end wakes learns from it.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from modelrollout.api.conditions import Reason
from modelrollout.api.spec import Metric, Spec
from modelrollout.api.status import Phase, RevisionStatus, Status, compared_share
from modelrollout.cluster.kinds import Object
from modelrollout.cluster.store import Key
from modelrollout.controller.alarm import Alarm, grow_alarms, raised
from modelrollout.controller.memory import Answer, Look, Memory
from modelrollout.controller.record import COMPARED, read_evidence
from modelrollout.decision.explain import pod_doubt
from modelrollout.decision.types import Data, GuardrailReading, Judgement
from modelrollout.evidence import split as splits
from modelrollout.evidence.cuts import choose_cuts
from modelrollout.evidence.engine import assess, begin, consume, raise_weight
from modelrollout.evidence.phi import estimate
from modelrollout.evidence.plan import Margin, MetricTest, Plan
from modelrollout.evidence.poll import Arm, Poll
from modelrollout.evidence.state import State
from modelrollout.evidence.verdict import Assessment
from modelrollout.planning.preview import Past, preview
from modelrollout.telemetry.history import History, PastPoll, read_history
from modelrollout.telemetry.queries import Queries, build_queries, check_queries
from modelrollout.telemetry.sampler import HEARSAY, Pace, Sample, Scope, next_poll, sample
from modelrollout.telemetry.servers import Server, ServerSettings
from modelrollout.telemetry.sides import Pod, Side, Sides
from modelrollout.workloads import Children, Problem
from modelrollout.workloads.children import child_name

PATIENCE = (
    0.05  # seconds that a round waits for the look that it begins: most answers come sooner, and save a round
)
LOOK_AGAIN = 15.0  # seconds after which an unfinished look is asked about, should its end wake nobody
LATE = 30.0  # seconds after which a look without an answer counts as a failed one
BEHIND = 600.0  # seconds by which the clock may be behind the last cut: what is more is not waited for
_AWAY = (Data.UNAVAILABLE, Data.NOT_SCRAPED)


def query_problem(rollout: Object, spec: Spec, servers: Mapping[str, ServerSettings]) -> Problem | None:
    """What is wrong with a selector or query of the spec; None if nothing is."""
    for field, problem in check_queries(spec.analysis):
        return Problem(Reason.INVALID_QUERY, f"{field}: {problem}")
    return None


@dataclass(frozen=True, slots=True)
class _Case:
    """One comparison in one round."""

    spec: Spec
    status: Status
    plan: Plan
    baseline: RevisionStatus
    candidate: RevisionStatus
    weight: int  # of the candidate, in percent
    mirror: int  # share of the requests that is copied to it, in percent
    matched: int  # share of the requests chosen by the step's matches that it gets, in percent
    sticky: bool  # users stay on the side that they were drawn for
    scope: Scope
    pace: Pace
    server: Server
    now: float

    @property
    def load(self) -> int:
        """Share of the requests that the candidate answers, copies included, in percent; at least 1 of chosen ones."""
        return min(100, self.weight + self.mirror) or min(1, self.matched)

    @property
    def idle(self) -> bool:
        """Whether a guardrail may have nothing to say because the candidate gets no requests. Whoever was parked because one
        had nothing to say under requests is tried again after as long a time: at 0 % nobody can know whether it would."""
        since = self.status.outage_since if self.status.parked else None
        return self.load == 0 and (since is None or self.now >= since + 2 * self.spec.analysis.outage)

    def compared(self, state: State) -> int:
        """Share of the candidate's requests among all that are compared, in percent; of chosen ones as it was observed."""
        if not self.matched:
            return compared_share(self.weight, self.mirror)
        seen = [(m.candidate_requests, m.baseline_requests) for m in state.metrics.values() if m.polls]
        candidate, baseline = seen[0] if seen else (1.0, 1.0)
        return min(99, max(1, round(100 * candidate / (candidate + baseline))))

    def queries(self, state: State) -> Queries:
        """What is asked, with the latency bounds chosen so far."""
        cuts = {name: metric.cuts for name, metric in state.metrics.items()}
        return build_queries(self.spec.analysis, cuts)


class Judge:
    """Judges all rollouts; it keeps nothing but connections."""

    def __init__(self, servers: Mapping[str, Server], *, wake: Callable[[Key], None] | None = None) -> None:
        """`wake` is told whose look has ended after its round did."""
        self._servers = servers
        self._wake = wake or (lambda key: None)

    async def judge(
        self,
        rollout: Object,
        spec: Spec,
        status: Status,
        children: Children,
        memory: Memory,
        now: float,
    ) -> Judgement:
        """What the metrics say now; it looks at Prometheus if a look is due. Never raises for what Prometheus does."""
        roles = _compared(spec, status)
        if roles is None:
            memory.rest()
            return Judgement()
        if memory.attempt != status.attempt:
            memory.begin_attempt(status.attempt)
        read_evidence(status, memory)
        if memory.next_poll > now + max(LOOK_AGAIN, 2 * spec.analysis.interval):
            memory.next_poll = now  # no look is put off for so long: the clock went back
        server = self._servers.get(spec.analysis.prometheus)
        if server is None or memory.unreadable:
            return _blind(spec, status, memory, now)
        case = _case(rollout, spec, status, children, memory, now, server=server, roles=roles)
        state = await self._update(case, begin(case.plan, memory.state), memory)
        if state.raised_at is None and case.load > 0:
            state = raise_weight(state, case.load, now)
        memory.state = state
        assessment = assess(case.plan, state, weight=case.compared(state), rate=memory.judged.rate)
        return replace(
            memory.judged,
            assessment=assessment,
            state=state,
            delay=case.pace.delay,
            pending=memory.look is not None or memory.unread,
            alarm=raised(memory.alarms),
            notes={**memory.judged.notes, **_doubts(assessment, case.candidate)},
        )

    async def _update(self, case: _Case, state: State, memory: Memory) -> State:
        """The evidence with what a look at Prometheus says, if one is due."""
        if not _is_due(case, memory):
            return state
        if state.consumed is not None and state.consumed > case.now:
            return _behind(case, state, memory)
        answer = await self._ask(case, state, memory)
        if answer is None:
            return state
        if answer.history is not None:
            return self._prepare(case, state, answer.found, answer.history, memory)
        return self._learn(case, state, answer.found, memory)

    async def _ask(self, case: _Case, state: State, memory: Memory) -> Answer | None:
        """What a look at Prometheus says; None while it is under way. An answer to another question is not used."""
        question = (case.plan, state.consumed)
        if memory.look is not None and memory.look.question != question:
            memory.end_look()
        if memory.look is None:
            task = asyncio.create_task(_look(case, state))
            memory.look = Look(question, task, case.now)
            await asyncio.wait({task}, timeout=PATIENCE)
            if not task.done():
                key = Key(case.scope.namespace, case.scope.name)
                task.add_done_callback(lambda _: self._wake(key))
        if not memory.look.task.done():
            memory.next_poll = case.now + LOOK_AGAIN
            if case.now >= memory.look.began + LATE:
                waited = f"PrometheusTimedOut: no answer for {case.now - memory.look.began:.0f} s"
                memory.judged = _away(memory.judged, case.status, waited, case.now)
            return None
        ended, memory.look = memory.look, None
        return ended.task.result()

    def _prepare(self, case: _Case, state: State, first: Sample, history: History, memory: Memory) -> State:
        """Before the first poll: latency bounds, clustering of errors, and the forecast, from the baseline's past."""
        self._note(case, first, memory)
        if first.cut is None:
            memory.next_poll = case.now + case.spec.analysis.interval
            return state
        state = _with_cuts(case, state, first, memory.notes)
        queries = case.queries(state)
        top = max((compared_share(step.weight, step.mirror) for step in case.status.plan), default=50)
        split = {name: _as_rollout(past, top, _slo_at(state, name)) for name, past in history.metrics.items()}
        found = {name: estimate(halves) for name, halves in split.items()}
        phi = {name: one.phi for name, one in found.items()}
        # What could not be measured is said once, with the forecast; what was measured stands with its metric.
        memory.notes |= {name: one.note for name, one in found.items() if one.phi > 1 and one.note}
        unmeasured = [len(split[name]) for name, one in found.items() if one.phi == 1 and one.note]
        state = replace(begin(case.plan, state, phi=phi), consumed=first.cut)
        past = _past(history.metrics, queries, state, phi, unmeasured=min(unmeasured, default=None))
        if past and case.status.plan:
            # Kept until the attempt ends: the round that it is made in may come to nothing.
            forecast = preview(case.spec, case.status.plan, case.plan, past)
            memory.judged = replace(memory.judged, forecast=forecast)
        memory.next_poll = max(next_poll(first.cut, case.pace, case.now), case.now + 0.05)
        return state

    def _learn(self, case: _Case, state: State, found: Sample, memory: Memory) -> State:
        """The evidence with the polls of a look."""
        queries = case.queries(state)
        if found.data is not Data.NONE:
            self._note(case, found, memory)
            state = _with_cuts(case, state, found, memory.notes)
        polls = found.polls
        if _emergency(case) or _only_previewed(case):
            polls = tuple(Poll(poll.start, poll.end, {}) for poll in polls)
        pause = case.spec.analysis.interval
        try:
            memory.alarms, state = _grown(case, state, memory.alarms, polls)
        except ValueError as error:
            # Counts that can't be hold the rollout. A round that fails would hold all: traffic of dead pods stays.
            impossible = f"{Reason.METRICS_UNAVAILABLE}: {error}"
            memory.judged = _away(memory.judged, case.status, impossible, case.now)
            memory.next_poll = case.now + pause
            return state
        self._watch_split(case, queries, state, polls, memory)
        memory.unread = found.behind or (found.waits and not polls)
        memory.unaware = case.scope.sides if found.waits else None
        if found.behind:
            memory.next_poll = case.now
        elif found.waits:
            memory.next_poll = next_poll(state.consumed, case.pace, case.now) + HEARSAY
        elif found.data in _AWAY and not polls:
            memory.next_poll = case.now + pause
        else:
            due = next_poll(state.consumed, case.pace, case.now)
            memory.next_poll = min(max(due, case.now + 0.05), case.now + 2 * pause)
        return state

    def _note(self, case: _Case, found: Sample, memory: Memory) -> None:
        """Remember what a look said, apart from its polls."""
        before = memory.judged
        # In a row means one interval after the other: looks that catch up with samples follow each other at once.
        counts = abs(case.now - memory.counted_at) >= case.pace.interval / 2
        memory.counted_at = case.now if counts else memory.counted_at
        guardrails = tuple(_readings(case.spec, found, memory.breaches, counts=counts))
        memory.breaches = {reading.name: reading.breaches for reading in guardrails}
        if found.data in _AWAY:
            before = _away(before, case.status, found.problem, case.now)
        else:
            quiet = before.quiet_polls + 1 if found.data is Data.NO_TRAFFIC else 0
            before = replace(
                before,
                problem=found.problem,
                failed_polls=0,
                quiet_polls=quiet,
                outage_since=None,
                polled_at=case.now,
            )
        memory.judged = replace(
            before,
            data=found.data,
            guardrails=guardrails,
            rate=found.rate if found.rate else before.rate,
            notes={**memory.notes, **found.notes},
        )

    def _watch_split(
        self, case: _Case, queries: Queries, state: State, polls: tuple[Poll, ...], memory: Memory
    ) -> None:
        """Whether requests follow the weight; only polls that lie wholly at one weight can tell, without copies and where requests
        are drawn, not users: a few of these may ask for a lot. At weight 0, where requests may be chosen, there is nothing to tell."""
        untold = bool(case.mirror) or case.sticky
        shown = -1 if untold else case.weight
        if memory.weight != shown:
            memory.weight, memory.weight_since = shown, case.now
        if untold:
            memory.judged = replace(memory.judged, split_off=None)
            return
        name = queries.traffic
        metric = state.metrics.get(name or "")
        if case.spec.traffic.router == "podRatio" or metric is None:
            return
        for poll in polls:
            found = poll.metrics.get(name or "")
            if found is None or found.partial or poll.start < memory.weight_since + case.pace.scrape_interval:
                continue
            memory.split = splits.observe(
                memory.split,
                weight=case.weight,
                candidate=sum(arm.n for arm in found.candidate_pods.values()),
                baseline=found.baseline.n,
                phi=metric.phi,
            )
        split, off = memory.split, None
        if split.off and split.observed is not None:
            off = f"observed {100 * split.observed:.1f} % of requests, configured {case.weight} %"
        memory.judged = replace(memory.judged, split_off=off)


def _compared(spec: Spec, status: Status) -> tuple[RevisionStatus, RevisionStatus] | None:
    """Baseline and candidate; None if nothing is compared."""
    watching = status.phase == Phase.WATCHING
    baseline = status.previous if watching else status.stable
    candidate = status.stable if watching else status.candidate
    if spec.analysis.mode == "Off" or status.phase not in COMPARED or baseline is None or candidate is None:
        return None
    return baseline, candidate


def _case(
    rollout: Object,
    spec: Spec,
    status: Status,
    children: Children,
    memory: Memory,
    now: float,
    *,
    server: Server,
    roles: tuple[RevisionStatus, RevisionStatus],
) -> _Case:
    analysis, (baseline, candidate) = spec.analysis, roles
    memory.note_ready(children.pods.values())
    sides = Sides(
        baseline=_side(rollout, baseline, children, memory),
        candidate=_side(rollout, candidate, children, memory),
        label=server.settings.pod_label if analysis.arms.label == "pod" else analysis.arms.label,
    )
    metadata, watching = rollout["metadata"], status.phase == Phase.WATCHING
    return _Case(
        spec=spec,
        status=status,
        plan=_plan(spec, status, baseline.revision, candidate.revision),
        baseline=baseline,
        candidate=candidate,
        weight=status.weights.stable if watching else status.weights.candidate,
        mirror=status.weights.mirror,
        matched=status.weights.matched,
        sticky=status.trying is not None and status.trying.stickiness is not None,
        scope=Scope(metadata["namespace"], metadata["name"], candidate.revision, sides),
        pace=Pace(analysis.interval, analysis.scrape_interval, analysis.warmup, server.settings.delay),
        server=server,
        now=now,
    )


def _blind(spec: Spec, status: Status, memory: Memory, now: float) -> Judgement:
    """Nothing can be looked at, for a reason that is not Prometheus': as in an outage, everything is held, and the
    evidence is kept."""
    if now >= memory.next_poll:
        memory.next_poll = now + spec.analysis.interval
        unknown = (
            f"{Reason.UNKNOWN_PROMETHEUS}: the operator has no server {spec.analysis.prometheus!r} any more: configure it "
            "again, or name another one in spec.analysis.prometheus"
        )
        memory.judged = _away(memory.judged, status, memory.unreadable or unknown, now)
    return replace(memory.judged, state=memory.state, assessment=None, alarm=raised(memory.alarms))


def _is_due(case: _Case, memory: Memory) -> bool:
    """Whether it is time for a look, or one has ended, or there is news of the pods that the last one waits for."""
    answered = memory.look is not None and memory.look.task.done()
    news = memory.unaware is not None and memory.unaware != case.scope.sides
    return case.now >= memory.next_poll or answered or news


def _behind(case: _Case, state: State, memory: Memory) -> State:
    """The evidence while the clock is behind the last cut: another leader's may have been ahead, or it was set back.

    To ask again for that time would count requests twice. So it is waited for, as in an outage; if that would take long,
    everything is measured anew.
    """
    behind = (state.consumed or 0.0) - case.now
    if behind > BEHIND:
        memory.begin_attempt(case.status.attempt)
        return begin(case.plan, None)
    problem = (
        f"{Reason.CLOCK_BEHIND}: requests were counted up to a time that the operator's clock reaches in {behind:.0f} s only: "
        "keep the clocks of its nodes in step"
    )
    memory.judged = _away(memory.judged, case.status, problem, case.now)
    memory.next_poll = case.now + case.spec.analysis.interval
    return state


def _away(before: Judgement, status: Status, problem: str, now: float) -> Judgement:
    """The judgement after one more look that found nothing usable."""
    since = before.outage_since if before.outage_since is not None else status.outage_since
    return replace(
        before,
        data=Data.UNAVAILABLE,
        problem=problem,
        polled_at=now,
        failed_polls=max(before.failed_polls, status.failed_polls) + 1,
        quiet_polls=0,
        outage_since=now if since is None else since,
    )


def _doubts(assessment: Assessment, candidate: RevisionStatus) -> dict[str, str]:
    """By metric: what a person should know who is told that it is worse."""
    doubt = pod_doubt(assessment, candidate)
    return {assessment.harm_metric: doubt} if assessment.harm_metric is not None and doubt else {}


def _unopposed(status: Status) -> bool:
    """Whether a promoted model is watched while nothing of the old one serves."""
    ending = status.watch is not None and status.watch.ending
    return status.phase == Phase.WATCHING and status.weights.previous == 0 and not ending


def _grown(
    case: _Case, state: State, alarms: dict[str, Alarm], polls: tuple[Poll, ...]
) -> tuple[dict[str, Alarm], State]:
    """Alarms and evidence with polls. Raises ValueError for counts that can't be."""
    if _unopposed(case.status):
        horizon = math.ceil(_longest_watch(case) / case.pace.interval)
        alarms = grow_alarms(alarms, case.plan, state, polls, horizon=horizon)
    return alarms, consume(case.plan, state, polls)


def _longest_watch(case: _Case) -> float:
    """Seconds that the watch may last: held without being asked for, twice its duration; but edits and pauses move its end."""
    watch, since = case.status.watch, case.candidate.since
    longest = 2 * case.spec.watch.duration
    return longest if watch is None or since is None else max(longest, max(watch.latest, case.now) - since)


async def _look(case: _Case, state: State) -> Answer:
    """One look; the first one of an attempt also reads the baseline's past."""
    asked = case.queries(state)
    found = await sample(
        case.server, asked, case.scope, case.pace, since=state.consumed, now=case.now, idle=case.idle
    )
    if state.consumed is not None:
        return Answer(found, None)
    if found.cut is None:
        return Answer(found, History({}, ""))
    queries = case.queries(_with_cuts(case, state, found, {}))
    return Answer(found, await read_history(case.server, queries, case.scope, case.pace, until=found.cut))


def _with_cuts(case: _Case, state: State, found: Sample, notes: dict[str, str]) -> State:
    """The state with latency bounds chosen, for metrics that have none yet; what is to be known of them goes to `notes`."""
    cuts = {}
    for metric in case.spec.analysis.metrics:
        buckets = found.past_buckets.get(metric.name)
        if metric.latency is None or not buckets:
            continue
        cuts[metric.name], _, note = choose_cuts(buckets, metric.latency.slo)
        if note:
            notes[metric.name] = note
    return begin(case.plan, state, cuts=cuts) if cuts else state


def _side(rollout: Object, role: RevisionStatus, children: Children, memory: Memory) -> Side:
    """The pods of a revision, with the time since when their samples count."""
    pods = {}
    for pod in children.pods_of(rollout, role.revision):
        started = [when for _, when in pod.container_started]
        pods[pod.name] = Pod(
            pod.name,
            ready_since=memory.first_ready.get(pod.uid),
            started=min(started, default=None),
            restarted=max(started, default=None),
            ready=pod.ready,
        )
    own = role.revision in children.bound  # its pods are not named after a Deployment of ours
    return Side(pods, workload=None if own else child_name(rollout, role.revision))


def _plan(spec: Spec, status: Status, baseline: str, candidate: str) -> Plan:
    """The test that spec and step ask for.

    Where users were chosen for one side nothing with an error bound decides; what was learned of them is another question than
    what a random split answers, so each begins anew when the other is asked.
    """
    analysis, step = spec.analysis, status.plan[status.step.index] if status.step else None
    tests = [_test(spec, metric) for metric in analysis.metrics if metric.guardrail is None]
    if step is not None:
        tests = [
            replace(test, gating=test.gating and step.randomized, reward=test.name == step.reward)
            for test in tests
        ]
    return Plan(
        metrics=tuple(tests),
        false_rollback=analysis.false_rollback,
        false_promotion=analysis.false_promotion,
        attempt=status.attempt,
        baseline=baseline,
        candidate=candidate,
        settle=analysis.settle,
        interval=analysis.interval,
    )


def _test(spec: Spec, metric: Metric) -> MetricTest:
    margins, kind = metric.margins, metric.kind
    assert kind != "guardrail"
    # Whatever changes what is measured makes another test: the selectors, the server, the way to tell pods apart.
    source = getattr(metric, kind).to_wire()
    where = [spec.analysis.prometheus, spec.analysis.arms.label]
    return MetricTest(
        name=metric.name,
        kind=kind,
        harm=Margin(margins.harm_ratio, margins.harm_absolute),
        accept=Margin(margins.accept_ratio, margins.accept_absolute),
        weight=float(metric.weight),
        gating=metric.gating,
        selectors=json.dumps([source, where], sort_keys=True),
        slo=metric.latency.slo if metric.latency else None,
    )


def _emergency(case: _Case) -> bool:
    """Whether one side carries everything because the other has no ready pod (S1): such polls are no evidence."""
    weights = case.status.weights
    if case.status.phase == Phase.WATCHING:
        return weights.previous == 100
    return weights.stable == 0 and weights.candidate == 100


def _only_previewed(case: _Case) -> bool:
    """Whether the candidate answers only who looks at a preview: those requests are no sample of the users'."""
    step = case.status.step
    if step is None or case.status.phase == Phase.PROMOTING:
        return False
    return case.status.plan[step.index].load == 0


def _readings(
    spec: Spec, found: Sample, counted: Mapping[str, int], *, counts: bool
) -> list[GuardrailReading]:
    """The guardrails' readings, with breaches in a row; no reading neither breaches nor clears."""
    readings = []
    for metric in spec.analysis.metrics:
        guardrail = metric.guardrail
        if guardrail is None:
            continue
        low, high = guardrail.min, guardrail.max
        bounds = [
            text for text in (low is not None and f"≥ {low:g}", high is not None and f"≤ {high:g}") if text
        ]
        value, breaches = found.guardrails.get(metric.name), counted.get(metric.name, 0)
        if value is not None and counts:
            outside = (low is not None and value < low) or (high is not None and value > high)
            breaches = breaches + 1 if outside else 0
        readings.append(
            GuardrailReading(
                name=metric.name,
                value=value,
                bound=" and ".join(bounds),
                breaches=breaches,
                breached=breaches >= guardrail.failures,
                gating=metric.gating,
                message=found.notes.get(metric.name, ""),
            )
        )
    return readings


def _slo_at(state: State, name: str) -> int:
    metric = state.metrics.get(name)
    return metric.slo if metric else 0


def _as_rollout(past: tuple[PastPoll, ...], weight: int, cut: int) -> list[tuple[float, float, float, float]]:
    """Past polls (n_c, x_c, n_s, x_s) of the baseline's pods, split as the rollout will split them."""
    pods = sorted({pod for poll in past for pod in poll.pods})
    if len(pods) < 2:
        return []
    chosen = set(pods[: max(1, min(len(pods) // 2, round(len(pods) * weight / 100)))])
    polls = []
    for poll in past:
        sides = [[0.0, 0.0], [0.0, 0.0]]
        for pod, arm in poll.pods.items():
            side = sides[pod not in chosen]
            side[0] += arm.n
            side[1] += _bad(arm, cut)
        polls.append((*sides[0], *sides[1]))
    return polls  # type: ignore[return-value]


def _bad(arm: Arm, cut: int) -> float:
    return arm.x[cut] if cut < len(arm.x) else 0.0


def _past(
    metrics: Mapping[str, tuple[PastPoll, ...]],
    queries: Queries,
    state: State,
    phi: Mapping[str, float],
    *,
    unmeasured: int | None,
) -> Past | None:
    """What was measured of the baseline; None if there is nothing to forecast from."""
    shares: dict[str, float] = {}
    rate = 0.0
    for name, polls in metrics.items():
        requests = sum(arm.n for poll in polls for arm in poll.pods.values())
        bad = sum(_bad(arm, _slo_at(state, name)) for poll in polls for arm in poll.pods.values())
        if requests > 0:
            shares[name] = bad / requests
        if name == queries.traffic and polls:
            rate = requests / (polls[-1].end - polls[0].start)
    return Past(rate, shares, phi, unmeasured) if rate > 0 else None
