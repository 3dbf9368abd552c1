"""Who is compared: the pods of the baseline's and of the candidate's revision, and how their series are recognised."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from modelrollout.telemetry.samples import RawSeries
from modelrollout.telemetry.selectors import Matcher, escape_regex

SideName = Literal["baseline", "candidate"]

# The API server cuts the generated name of a pod after this many characters and adds five of its own.
_GENERATED = 58
_SUFFIX = "[a-z0-9]{5}"
_HASH_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that exists, or existed since the last cut. All times are epoch seconds by the API server.

    `started` is when the earliest of its running containers started, `restarted` when the latest did (None: the same).
    A counter surely begins at 0 after the first, and may have begun anew after the second.
    """

    name: str
    ready_since: float | None = None  # when it was ready for the first time; None: never
    started: float | None = None
    restarted: float | None = None
    ready: bool = True  # now; False also for one that has gone

    @property
    def last_start(self) -> float | None:
        """When a container of the pod started last."""
        return self.started if self.restarted is None else self.restarted


@dataclass(frozen=True)
class Side:
    """One revision. `workload` is the name of its Deployment, by which pods are recognised that nobody remembers."""

    pods: Mapping[str, Pod] = field(default_factory=dict)
    workload: str | None = None

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """Regular expressions (RE2 and Python) of the names of its pods."""
        if self.workload is None:
            return tuple(escape_regex(name) for name in sorted(self.pods))
        base = f"{self.workload}-"
        if len(base) + _HASH_LENGTH + 1 > _GENERATED:
            generated = f"{escape_regex(base[:_GENERATED])}[a-z0-9-]*"
        else:
            generated = f"{escape_regex(base)}[a-z0-9]+-{_SUFFIX}"
        return (generated, *self._others(generated))

    def _others(self, generated: str) -> tuple[str, ...]:
        return tuple(escape_regex(name) for name in sorted(self.pods) if not re.fullmatch(generated, name))

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile("|".join(self.patterns) or "(?!)")

    def has(self, pod: str) -> bool:
        """Whether a pod of this name belongs to the revision."""
        return pod in self.pods or self._compiled.fullmatch(pod) is not None

    @property
    def regex(self) -> str:
        """One regular expression of all of its pods."""
        return "|".join(self.patterns)


@dataclass(frozen=True)
class Sides:
    """Both revisions. `label` is the label whose values are names of pods."""

    baseline: Side
    candidate: Side
    label: str = "pod"

    def matcher(self) -> Matcher:
        """Selects the series of both sides."""
        every = "|".join((*self.baseline.patterns, *self.candidate.patterns))
        return Matcher(self.label, "=~", every or "-")  # no pod can be called "-"

    def locate(self, series: RawSeries) -> tuple[SideName, str] | None:
        """Side and pod of a series; None if it belongs to neither, or could belong to both."""
        pod = series.labels.get(self.label, "")
        if pod in self.baseline.pods:
            return "baseline", pod
        if pod in self.candidate.pods:
            return "candidate", pod
        baseline, candidate = self.baseline.has(pod), self.candidate.has(pod)
        if baseline == candidate:
            return None
        return ("baseline" if baseline else "candidate"), pod

    def pod(self, side: SideName, name: str) -> Pod | None:
        """What is known of a pod."""
        return (self.baseline if side == "baseline" else self.candidate).pods.get(name)


def warm_from(pod: Pod, warmup: float) -> float:
    """The time from which samples of a pod count; infinite for one that was never ready."""
    return math.inf if pod.ready_since is None else pod.ready_since + warmup
