"""How much weight each revision may carry and how many pods it is to have: safety rules S1–S4 and S9.

Whatever the chain decided, what is committed has passed through here; effects compute no weight and no size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelrollout.api.conditions import EventReason
from modelrollout.api.status import Phase, RevisionStatus, Status, Weights
from modelrollout.decision.round import Round
from modelrollout.evidence.engine import raise_weight

# How it is told that pods find no room: by the scheduler, or by a quota when they are created.
_NO_ROOM = ("Unschedulable", "FailedCreate")


@dataclass(frozen=True, slots=True)
class Pods:
    """Pods of both sides at a weight, where pods are exchanged one for one."""

    candidate: int
    baseline: int

    @property
    def share(self) -> int:
        """Share of the candidate's pods, in whole percent, rounded down; one pod among hundreds is 1 and not nothing."""
        share = 100 * self.candidate // (self.candidate + self.baseline)
        return max(share, min(1, self.candidate))


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def pods_at(round: Round, weight: int) -> Pods:
    """Pods of both sides at a weight of the candidate, for pod ratio and elastic workloads."""
    capacity = round.capacity
    if weight >= 100:
        return Pods(capacity, 0)
    if round.phase in (Phase.PROMOTING, Phase.WATCHING):
        baseline = max(1, _ceil((100 - weight) * capacity, 100))
        return Pods(max(1, capacity - baseline), baseline)
    wanted = capacity * weight // 100 if round.pod_ratio else _ceil(capacity * weight, 100)
    candidate = max(1, wanted)
    return Pods(candidate, max(1, capacity - candidate))


def goal(round: Round) -> int:
    """The weight that the candidate is to reach in the present phase, before the safety rules."""
    if round.phase == Phase.PROMOTING:
        weight = _promoting_weight(round)
    elif round.comparing and round.status.step is not None:
        weight = 0 if round.status.parked else round.plan_step.weight
    else:
        return 0
    return pods_at(round, weight).share if round.pod_ratio and weight else weight


def mirror_goal(round: Round) -> int:
    """The share of requests that is to be copied to the candidate, before the safety rules."""
    if not round.comparing or round.status.step is None or round.status.parked:
        return 0
    return round.plan_step.mirror


def matched_goal(round: Round) -> int:
    """The share of the requests chosen by the step's matches that the candidate is to get, before the safety rules."""
    if round.status.step is None or round.status.parked or not round.plan_step.matches:
        return 0
    # Until the switch to all requests takes them along, who was chosen stays.
    stays = round.phase == Phase.PROMOTING and goal(round) == round.plan_step.weight
    return 100 if round.comparing or stays else 0


def at_goal(round: Round) -> bool:
    """Whether the candidate gets what its step gives it."""
    weights = round.status.weights
    wanted = (goal(round), mirror_goal(round), matched_goal(round))
    return (weights.candidate, weights.mirror, weights.matched) == wanted


def needed(round: Round) -> int:
    """Ready candidate pods that the goal, copies of requests included, needs (S2), and that the step wants besides."""
    return max(_answering(round), _standing_by(round))


def _standing_by(round: Round) -> int:
    """Pods that the step wants to be there, whatever the candidate gets; one at least, for whoever is to look at it."""
    if not round.comparing or round.status.step is None or round.status.parked:
        return 0
    return max(_ceil(round.capacity * round.plan_step.size, 100), 0 if round.plan_step.load else 1)


def _answering(round: Round) -> int:
    """Ready candidate pods that answer what the candidate is to get; 0 where that is nothing."""
    load = min(100, goal(round) + mirror_goal(round))
    if load and round.pod_ratio:
        return pods_at(round, _step_weight(round)).candidate
    if matched_goal(round):
        load = max(load, round.plan_step.load)
    return _pods_for(round, load)


def _pods_for(round: Round, load: int) -> int:
    """Candidate pods that answer a share of the requests, copies included, behind a router."""
    if load == 0:
        return 0
    at_raise = round.status.step.baseline_ready if round.status.step else 0
    # Of more baseline pods only those that are ready for long: the candidate's, asked for with them, may be seconds late.
    serving = max(at_raise or round.view(round.status.stable).ready, round.settled(round.status.stable))
    if round.exchanging:
        # The baseline shrank for it, so both sides together say what the traffic needs.
        serving += round.view(round.status.candidate).ready
    wanted = max(1, _ceil(min(round.capacity, serving) * load, 100))
    return min(wanted, pods_at(round, load).candidate) if round.exchanging else wanted


def _step_weight(round: Round) -> int:
    return _promoting_weight(round) if round.phase == Phase.PROMOTING else round.plan_step.weight


def _promoting_weight(round: Round) -> int:
    """The last step's weight until all pods for the whole traffic are ready; it then rises in one go."""
    whole, candidate = 100 - round.holdback, round.status.candidate
    if round.lean or candidate is None or round.status.weights.candidate > round.plan_step.weight:
        return whole
    complete = candidate.desired >= round.capacity and round.settled(candidate) >= candidate.desired
    return whole if complete else min(whole, round.plan_step.weight)


def full_weight(round: Round) -> int:
    """The candidate's weight at which it takes over."""
    whole = 100 - round.holdback
    return pods_at(round, whole).share if round.pod_ratio else whole


def full_size(round: Round) -> int:
    """The candidate's pods with which it takes over."""
    return pods_at(round, 100 - round.holdback).candidate if round.lean else round.capacity


def _carried(weight: int, ready: int, wanted: int) -> int:
    return weight if ready >= wanted else weight * ready // wanted


def _carried_forward(round: Round, weight: int, ready: int, wanted: int) -> int:
    """The candidate's weight that its ready pods carry. In an exchange it is their whole share, or the baseline could not let
    as many pods go, and there would be no room for the next."""
    if ready < wanted and round.exchanging and not round.pod_ratio:
        return min(weight, 100 * ready // round.capacity)
    return _carried(weight, ready, wanted)


def _carried_back(baseline_ready: int, size: int) -> int:
    """The candidate's weight that as many ready baseline pods, of `size` for all traffic, can't carry yet."""
    return 100 - min(100, 100 * baseline_ready // size)


def set_weights(round: Round) -> Round:
    """The round with the weights that are to stand in the route."""
    status = round.status
    if round.phase in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING) and status.candidate is not None:
        return _forward(round)
    if round.phase == Phase.WATCHING and status.previous is not None:
        return _watching(round)
    if round.phase == Phase.ROLLING_BACK and status.candidate is not None:
        return _backward(round)
    if status.stable is None:
        return round
    return round.put(weights=Weights(stable=100))


def _forward(round: Round) -> Round:
    """S1 and S2 for a candidate on its way to its goal."""
    baseline, candidate = round.view(round.status.stable), round.view(round.status.candidate)
    present = round.status.weights.candidate
    if candidate.ready == 0 and baseline.ready == 0:
        return round.put(weights=round.status.weights.model_copy(update={"mirror": 0, "matched": 0}))
    if baseline.ready == 0:
        return _emergency(round.put(weights=Weights(candidate=100)), role="candidate")
    wanted, weight, settled = _answering(round), goal(round), round.settled(round.status.candidate)
    if settled < _standing_by(round):
        round = replace(round, may_raise=False)
    low = _carried_forward(round, weight, candidate.ready, wanted)
    high = _carried_forward(round, weight, settled, wanted)
    if round.pod_ratio and candidate.ready and min(weight, present):
        low = max(1, low)  # the ratio of pods says how much; 0 would pin the Service and take all of it away
    if present > weight and candidate.ready > 0 and _after_emergency(round):
        # The baseline gets back what its ready pods can carry.
        chosen = min(present, max(low, _carried_back(baseline.ready, round.capacity)))
    elif present > low and not _stands(round):
        chosen = low
    elif round.may_raise and high > present and not _others_answer(round):
        chosen = high
    else:
        chosen = present
    weights = round.status.weights
    mirror = _beside(round, mirror_goal(round), weights.mirror, wanted)
    matched = _beside(round, matched_goal(round), weights.matched, wanted)
    return _move(round, Weights(stable=100 - chosen, candidate=chosen, mirror=mirror, matched=matched))


def _stands(round: Round) -> bool:
    """Whether ready pods carry what the candidate gets now, though its next step needs more of them: a pod that carries
    50 % of two pods' traffic does so too when 90 % are next, of which its share would be 45."""
    present = round.status.weights
    if round.pod_ratio or present.matched or present.candidate > goal(round):
        return False
    load = min(100, present.candidate + present.mirror)
    return round.view(round.status.candidate).ready >= _pods_for(round, load)


def _beside(round: Round, share: int, present: int, wanted: int) -> int:
    """S1 and S2 for copies of requests and for chosen ones: gone at once with the pods that answer them, back once those are
    ready for long."""
    low = _carried(share, round.view(round.status.candidate).ready, wanted)
    high = _carried(share, round.settled(round.status.candidate), wanted)
    if present > low:
        return low
    return high if round.may_raise and high > present else present


def _after_emergency(round: Round) -> bool:
    """Whether S1 gave the candidate more than the step; a step that was lowered or parked is followed at once."""
    before = replace(round, status=round.before)
    return round.before.weights.candidate > goal(before)


def _others_answer(round: Round) -> bool:
    """Whether pods of a retired revision would share the candidate's traffic when the Service drops its pin."""
    if not round.pod_ratio or round.status.weights.candidate > 0:
        return False
    return any(round.seen.of(gone.revision).pods for gone in round.status.retiring)


def _move(round: Round, weights: Weights) -> Round:
    present = round.status.weights
    moved = round.put(weights=weights)
    pairs = (
        (weights.candidate, present.candidate),
        (weights.mirror, present.mirror),
        (weights.matched, present.matched),
    )
    if all(new <= old for new, old in pairs):
        return moved
    moved = moved.put_step(baseline_ready=min(round.capacity, round.view(round.status.stable).ready))
    if moved.state is not None:
        # How many requests match is not known: the least there can be, so that every share after it is a raise.
        load = min(100, weights.candidate + weights.mirror) or min(1, weights.matched)
        moved = replace(moved, state=raise_weight(moved.state, load, round.now))
    return moved


def _emergency(round: Round, *, role: str) -> Round:
    if round.before.weights == round.status.weights:
        return round
    return round.say(
        EventReason.STABLE_UNAVAILABLE,
        f"no pod of the serving revision is ready: all traffic goes to the {role}, which has ready pods",
    )


def _watching(round: Round) -> Round:
    """S1 while watching, and the end of the watch."""
    status = round.status
    assert status.watch is not None
    stable, previous = round.view(status.stable), round.view(status.previous)
    present = status.weights.previous
    if stable.ready == 0 and previous.ready == 0:
        return round
    if stable.ready == 0:
        return _emergency(round.put(weights=Weights(previous=100)), role="previous revision")
    weight = _watch_weight(round)
    if status.watch.ending and round.lean and stable.ready < round.capacity:
        # Its pods are still needed to carry the traffic. With a router they go one by one, as on the way back.
        weight = present if round.pod_ratio else min(present, _carried_back(stable.ready, round.capacity))
        if not round.pod_ratio and previous.ready:
            return round.put(weights=Weights(stable=100 - weight, previous=weight))
    pods = pods_at(round, 100 - weight).baseline if round.lean else _ceil(round.capacity * weight, 100)
    low = _carried(weight, previous.ready, max(1, pods))
    before = replace(round, status=round.before)
    emergency = round.before.phase == Phase.WATCHING and present > _watch_weight(before)
    if present > weight and previous.ready and emergency:
        # The serving revision gets back what its ready pods can carry.
        chosen = min(present, max(low, _carried_back(stable.ready, round.capacity)))
    elif present > low:
        chosen = low
    elif round.settled(status.previous) >= pods:
        chosen = weight
    else:
        chosen = present
    return round.put(weights=Weights(stable=100 - chosen, previous=chosen))


def _watch_weight(round: Round) -> int:
    """The weight that the previous revision is to have while watching, before the safety rules."""
    ending = round.status.watch is not None and round.status.watch.ending
    weight = 0 if ending else round.holdback
    return 100 - pods_at(round, 100 - weight).share if round.pod_ratio and weight else weight


def _backward(round: Round) -> Round:
    """S4: the candidate's weight falls as the baseline can take over, and never rises on the way back."""
    status = round.status
    baseline, candidate = round.view(status.stable), round.view(status.candidate)
    present = status.weights.candidate
    if baseline.ready == 0 and candidate.ready == 0:
        return round
    at_start = None if round.spec.workload.services is not None else status.capacity_at_start
    size = at_start or round.capacity
    weight = min(present, _carried_back(_staying(round), size))
    if baseline.ready and (_late(round) or candidate.ready == 0):
        weight = 0
    if baseline.ready == 0:
        return _emergency(round.put(weights=Weights(candidate=100)), role="candidate")
    return round.put(weights=Weights(stable=100 - weight, candidate=weight))


def size_before(round: Round, role: RevisionStatus | None) -> int:
    """Pods that a revision was to have by the committed status, in whatever role."""
    before = (round.before.stable, round.before.candidate, round.before.previous)
    return next((one.desired for one in before if one and role and one.revision == role.revision), 0)


def _staying(round: Round) -> int:
    """Ready pods of the baseline, but for those that were told to go: they are ready for a moment longer."""
    stable = round.status.stable
    return min(size_before(round, stable), round.view(stable).ready)


def _late(round: Round) -> bool:
    """Whether the time of the way back is over. Where its pods are exchanged one by one, each of them has that time."""
    status = round.status
    limit = status.progress_deadline_at if round.spec.workload.elastic else None
    if limit is None and status.rolling_back_since is not None:
        limit = status.rolling_back_since + round.spec.progress_deadline
    return limit is not None and round.now >= limit


def set_sizes(round: Round) -> Round:
    """The round with the number of pods that each revision is to have; grown before weight, shrunk after it."""
    status = round.status
    sizes = {
        Phase.PROGRESSING: _comparing_sizes,
        Phase.PAUSED: _comparing_sizes,
        Phase.PROMOTING: _promoting_sizes,
        Phase.WATCHING: _watching_sizes,
        Phase.ROLLING_BACK: _backward_sizes,
    }
    phase = round.phase
    stable, candidate, previous = (
        _within_room(round, sizes[phase](round)) if phase in sizes else (round.spec.workload.replicas, 0, 0)
    )
    return round.put(
        stable=_sized(status.stable, stable, round),
        candidate=_sized(status.candidate, candidate, round),
        previous=_sized(status.previous, previous, round),
    )


def _within_room(round: Round, wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """What an elastic workload may have of the sizes that are wanted: one pod more than the capacity, with all that others
    still have. S1 comes first: where only one side has ready pods, it gets its size at once."""
    status = round.status
    others = (status.candidate, status.previous)
    alone = round.view(status.stable).ready == 0 and any(round.view(role).ready for role in others)
    if not round.spec.workload.elastic or not round.exchanging or alone:
        return wanted
    roles = (status.stable, *others)
    had = [role.desired if role else 0 for role in roles]
    # A Deployment that was scaled down takes a moment to let its pods go.
    there = [view.pods - view.leaving for view in map(round.view, roles)]
    taken = sum(gone.desired for gone in status.retiring)
    sizes = list(wanted)
    for at, size in enumerate(sizes):
        elsewhere = sum(max(had[i], sizes[i], there[i]) for i in range(3) if i != at)
        room = round.capacity + 1 - taken - elsewhere
        if size > had[at]:
            sizes[at] = max(had[at], min(size, room))
    return sizes[0], sizes[1], sizes[2]


def _sized(role: RevisionStatus | None, desired: int, round: Round) -> RevisionStatus | None:
    if role is None:
        return None
    return role.model_copy(update={"desired": desired, "ready": round.view(role).ready})


def _shrunk(round: Round, role: RevisionStatus, wanted: int, weight: int) -> int:
    """S3: pods that carried weight go only when that weight is gone and read back, and drainDelay is over. Where the
    ratio of pods makes the split, a pod that goes *is* weight that goes, until the Service is pinned."""
    if wanted >= role.desired:
        return wanted
    if round.pod_ratio and weight:
        return max(1, wanted)
    if weight and not round.lean:
        return role.desired
    since = round.seen.route.routed_since
    if not _written(round) or since is None or round.now < since + round.spec.drain_delay:
        return role.desired
    return min(role.desired, max(wanted, _carrying(round.capacity, weight)))


def _carrying(capacity: int, weight: int) -> int:
    """Pods of `capacity` that a weight needs. It is in whole percent: what it was rounded from may be almost 1 % less, which
    is more than a pod where there are hundreds."""
    return capacity * (weight - 1) // 100 + 1 if weight else 0


def _written(round: Round) -> bool:
    """Whether the weights are those that were committed before, which the route was seen against."""
    return _by_revision(round.before) == _by_revision(round.status)


def _by_revision(status: Status) -> dict[str, int]:
    weights = status.weights
    pairs = (
        (status.stable, weights.stable),
        (status.candidate, weights.candidate),
        (status.previous, weights.previous),
    )
    return {role.revision: weight for role, weight in pairs if role and weight}


def _kept(round: Round) -> int:
    """The candidate's pods that go on being asked for, whatever is needed now (S2). Nobody takes the user's own away, and what
    their scaler did not make in a busier hour, or during a restart of the baseline, is not missing once it is over."""
    candidate = round.status.candidate
    return candidate.desired if candidate and round.spec.workload.services is None else 0


def _comparing_sizes(round: Round) -> tuple[int, int, int]:
    status, capacity = round.status, round.capacity
    assert status.candidate is not None
    if status.candidate.desired == 0 and round.spec.paused:
        return capacity, 0, 0  # nothing is created before somebody resumes
    present = _kept(round)
    ready = round.view(status.candidate).ready
    if round.view(status.stable).ready == 0 and ready > 0:
        return capacity, max(capacity, present), 0  # S1: it carries everything, so it gets the size for it
    step = round.plan_step
    if not round.exchanging:
        return capacity, max(present, 1, _ceil(capacity * step.room, 100)), 0
    return _exchanged_sizes(round, pods_at(round, step.weight))


def _exchanged_sizes(round: Round, pods: Pods) -> tuple[int, int, int]:
    """One surge pod: the candidate grows by one, then the baseline shrinks by one; the other way round if the plan was
    lowered."""
    status, capacity = round.status, round.capacity
    assert status.candidate is not None
    assert status.stable is not None
    baseline, candidate = round.view(status.stable), round.view(status.candidate)
    present, room = status.candidate.desired, capacity + 1 - status.stable.desired
    if present <= pods.candidate:
        grown = max(present, min(pods.candidate, candidate.ready + 1, max(1, room)))
    else:
        left = min(present, max(pods.candidate, capacity - baseline.ready))
        grown = _shrunk(round, status.candidate, left, status.weights.candidate)
    shrunk = max(pods.baseline, capacity - round.settled(status.candidate))
    return _shrunk(round, status.stable, shrunk, status.weights.stable), grown, 0


def _promoting_sizes(round: Round) -> tuple[int, int, int]:
    status, capacity = round.status, round.capacity
    assert status.candidate is not None
    if not round.lean or (round.view(status.stable).ready == 0 and round.view(status.candidate).ready):
        return capacity, max(capacity, _kept(round)), 0
    pods = pods_at(round, 100 - round.holdback)
    # With nothing held back, one pod of the baseline stays until the traffic has left it.
    return _exchanged_sizes(round, replace(pods, baseline=max(1, pods.baseline)))


def _watching_sizes(round: Round) -> tuple[int, int, int]:
    status, capacity = round.status, round.capacity
    assert status.watch is not None
    assert status.stable is not None
    assert status.previous is not None
    weights, kept = status.weights, capacity
    if round.view(status.stable).ready == 0 and round.view(status.previous).ready:
        return capacity, 0, max(capacity, status.previous.desired)  # S1: it carries everything
    if round.holdback == 0:
        kept = _ceil(capacity * round.spec.watch.standby, 100)
        kept = min(kept, status.previous.desired) if round.lean else kept
    elif round.lean:
        kept = pods_at(round, 100 - round.holdback).baseline
        if status.watch.ending and not round.pod_ratio:
            kept = min(kept, max(1, capacity - round.view(status.stable).ready))
    serving = capacity
    if round.lean and round.holdback and not status.watch.ending:
        # If the previous revision lacks pods, they are made up for.
        lacking = capacity - min(kept, round.settled(status.previous))
        serving = _shrunk(round, status.stable, max(1, lacking), weights.stable)
    return serving, 0, _shrunk(round, status.previous, kept, weights.previous)


def _backward_sizes(round: Round) -> tuple[int, int, int]:
    """The baseline grows to its size; the candidate keeps its pods until it has lost its traffic, unless they are in
    the way of the baseline's."""
    status, capacity = round.status, round.capacity
    assert status.candidate is not None
    present = status.candidate.desired
    baseline, candidate, staying = round.view(status.stable), round.view(status.candidate), _staying(round)
    stuck = baseline.ready < capacity and any(text.startswith(_NO_ROOM) for text in baseline.waiting)
    if stuck:
        # One at a time: the next only once the pod that got the room of the last is ready, and has its weight.
        replaced = candidate.pods <= present and staying + present >= capacity
        freeing = present > 1 and replaced and _written(round) and round.routed
        return capacity, present - 1 if freeing else present, 0
    if baseline.ready == 0 and candidate.ready:
        return capacity, max(capacity, present), 0  # S1: it carries everything
    if round.lean and baseline.ready:
        left = min(present, max(1, capacity - staying))
        present = _shrunk(round, status.candidate, left, status.weights.candidate)
    return capacity, present, 0
