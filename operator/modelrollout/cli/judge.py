"""`modelrollout judge`: the operator's judge on recorded increments, offline.

For users to try it on their history before they trust it with traffic, and for anyone to check its error bounds. It has no
weights and no pods: harmless never starts anew, every poll is settled, and the clustering phi is 1.
"""

import csv
import json
import sys
from collections.abc import Iterator
from math import exp, isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from modelrollout.api import spec
from modelrollout.evidence.grid import log_mean_exp
from modelrollout.evidence.interval import confidence_interval
from modelrollout.evidence.metric import Counts, MetricState, advance, begin_metric, harm_value
from modelrollout.evidence.mixture import harmless_ceiling
from modelrollout.evidence.plan import Kind, Margin, MetricTest
from modelrollout.evidence.verdict import Verdict

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

COUNTS = ("baseline_requests", "baseline_bad", "candidate_requests", "candidate_bad")
# A latency file has one column of slow requests, so it is about one bucket bound, whatever its value.
_ONE_CUT = (0.0,)
Label = int | str | None


class Row(NamedTuple):
    """One poll of one run."""

    run: Label
    poll: Label
    counts: Counts


class Run:
    """One independent series: its evidence so far and when something was first proven."""

    def __init__(self, run: Label, test: MetricTest, alpha: float, beta: float) -> None:
        self.run = run
        self.rows = 0
        self.harm_proven_at: Label = None
        self.harmless_at: Label = None
        self.harm = self.harmless = 1.0
        self._test = test
        self._harm_bar, self._harmless_bar = 1 / alpha, 1 / beta
        self._ceiling = harmless_ceiling(beta)
        self._state: MetricState = begin_metric(test, fingerprint="", stake=1.0, cuts=_ONE_CUT, bound=False)

    def take(self, poll: Label, counts: Counts) -> None:
        """Use one poll. One without requests on either side changes nothing."""
        self.rows += 1
        if counts.n_c <= 0 or counts.n_s <= 0:
            return
        state = advance(self._test, self._state, counts, settled=True, ceiling=self._ceiling)
        self._state = state
        self.harm = harm_value(state.harm, state.polls)
        self.harmless = exp(log_mean_exp(state.harmless))
        if self.harm_proven_at is None and self.harm >= self._harm_bar:
            self.harm_proven_at = poll
        if self.harmless_at is None and self.harmless >= self._harmless_bar:
            self.harmless_at = poll

    @property
    def verdict(self) -> Verdict:
        """What the evidence says after the last poll taken."""
        if not self._state.polls:
            return Verdict.NO_DATA
        harm, harmless = self.harm >= self._harm_bar, self.harmless >= self._harmless_bar
        if harmless:
            return Verdict.WORSE_WITHIN_MARGIN if harm else Verdict.HARMLESS
        return Verdict.HARMFUL if harm else Verdict.INCONCLUSIVE

    def line(self, poll: Label) -> dict[str, Any]:
        """The output for one poll."""
        evidence = {"run": self.run, "poll": poll, "harmE": self.harm, "harmlessE": self.harmless}
        return evidence | self._estimate()

    def summary(self) -> dict[str, Any]:
        """The output for the whole run; its verdict is that of the last poll."""
        proven = {"harmProvenAt": self.harm_proven_at, "harmlessAt": self.harmless_at}
        return {"run": self.run, "polls": self.rows} | proven | self._estimate()

    def _estimate(self) -> dict[str, Any]:
        ratio, low, high = confidence_interval(self._state.profile)
        return {"ratio": ratio, "low": low, "high": high, "verdict": self.verdict.value}


@click.command()
@click.option(
    "--counts", type=click.File(encoding="utf-8-sig"), required=True, help="CSV file, or - for stdin."
)
@click.option("--kind", type=click.Choice(["ratio", "score", "latency"]), default="ratio", show_default=True)
@click.option(
    "--false-rollback",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Bound on proving harm of a model within tolerance.",
)
@click.option(
    "--false-promotion",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Bound on proving harmless a model beyond the margin.",
)
@click.option("--harm-ratio", type=click.FloatRange(1), help="Tolerance: times the baseline's rate.")
@click.option("--harm-absolute", type=click.FloatRange(0, 1), help="Tolerance: plus this rate.")
@click.option(
    "--accept-ratio", type=click.FloatRange(1), help="Margin of harmless: times the baseline's rate."
)
@click.option("--accept-absolute", type=click.FloatRange(0, 1), help="Margin of harmless: plus this rate.")
@click.option("--summary", is_flag=True, help="One line per run instead of one per poll.")
def judge(
    counts: TextIO,
    kind: Kind,
    false_rollback: float,
    false_promotion: float,
    harm_ratio: float | None,
    harm_absolute: float | None,
    accept_ratio: float | None,
    accept_absolute: float | None,
    summary: bool,
) -> None:
    """Judge recorded increments of baseline and candidate offline.

    The file has the columns poll, baseline_requests, baseline_bad, candidate_requests, candidate_bad and, for several
    independent series, run. Margins left out are the API's defaults for the kind. Output: JSON lines.
    """
    harm, accept = _margins(kind, harm_ratio, harm_absolute, accept_ratio, accept_absolute)
    test = MetricTest("judge", kind, harm, accept, weight=1.0, gating=True, selectors="")
    out = sys.stdout
    encode = json.dumps
    runs: dict[Label, Run] = {}
    for row in read_rows(counts):
        run = runs.get(row.run)
        if run is None:
            run = runs[row.run] = Run(row.run, test, false_rollback, false_promotion)
        run.take(row.poll, row.counts)
        if not summary:
            out.write(encode(run.line(row.poll)) + "\n")
    if not runs:
        raise click.ClickException(
            f"{getattr(counts, 'name', 'input')}: there are no rows below the first line."
        )
    if summary:
        for run in runs.values():
            out.write(encode(run.summary()) + "\n")


def _margins(
    kind: Kind,
    harm_ratio: float | None,
    harm_absolute: float | None,
    accept_ratio: float | None,
    accept_absolute: float | None,
) -> tuple[Margin, Margin]:
    """Harm and accept, with the API's defaults for what was left out."""
    given = spec.Margin(
        harm=spec.Tolerance.model_construct(ratio=harm_ratio, absolute=harm_absolute),
        accept=spec.Tolerance.model_construct(ratio=accept_ratio, absolute=accept_absolute),
    )
    full = spec.effective_margins(kind, given)
    harm = Margin(full.harm_ratio, full.harm_absolute)
    accept = Margin(full.accept_ratio, full.accept_absolute)
    _refuse_bad_margins(harm, accept)
    return harm, accept


def _refuse_bad_margins(harm: Margin, accept: Margin) -> None:
    for part in ("ratio", "absolute"):
        tolerance, margin = getattr(harm, part), getattr(accept, part)
        for option, value in ((f"--harm-{part}", tolerance), (f"--accept-{part}", margin)):
            if not isfinite(value):
                raise click.UsageError(f"{option} must be a finite number, not {value}.")
        if tolerance > margin:
            raise click.UsageError(
                f"--harm-{part} {tolerance:g} must not be more than --accept-{part} {margin:g}: "
                "a model within tolerance must also be acceptable."
            )
    if accept.ratio <= 1 and accept.absolute <= 0:
        raise click.UsageError(
            "--accept-ratio 1 with --accept-absolute 0 can never be proven, not even for an equal model: raise one of them."
        )


def read_rows(file: TextIO) -> Iterator[Row]:
    """The rows of a counts file, one at a time. Raises ClickException that names line and column."""
    reader = csv.reader(file)
    name = getattr(file, "name", "input")
    try:
        yield from _parse(reader, name)
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{name}, after line {reader.line_num}: not UTF-8 text: {error}."
        ) from error
    except csv.Error as error:
        raise click.ClickException(f"{name}, line {reader.line_num}: not CSV: {error}.") from error


def _parse(reader: "CsvReader", name: str) -> Iterator[Row]:
    header = [field.strip() for field in next(reader, [])]
    _refuse_header(header, name)
    at = {column: header.index(column) for column in header}
    run_at, poll_at = at.get("run"), at["poll"]
    places = [at[column] for column in COUNTS]
    width = max([*places, poll_at, run_at or 0]) + 1
    for fields in reader:
        if not fields:
            continue
        if len(fields) < width:
            missing = header[len(fields)]
            raise click.ClickException(
                f"{name}, line {reader.line_num}, column {missing}: there is no such field."
            )
        try:
            n_s, x_s, n_c, x_c = [float(fields[i]) for i in places]
            sound = 0 <= x_s <= n_s and 0 <= x_c <= n_c and isfinite(n_s + n_c)
        except ValueError:
            sound = False
        if not sound:
            raise click.ClickException(f"{name}, line {reader.line_num}, {_fault(fields, at)}.")
        yield Row(
            None if run_at is None else _label(fields[run_at]),
            _label(fields[poll_at]),
            Counts(n_c, (x_c,), n_s, (x_s,)),
        )


def _refuse_header(header: list[str], name: str) -> None:
    needed = ("poll", *COUNTS)
    for column in needed:
        if header.count(column) != 1:
            fault = "is missing" if column not in header else "stands there twice"
            raise click.ClickException(
                f"{name}, line 1, column {column}: {fault}; the first line names the columns {', '.join(needed)} and, "
                "optionally, run."
            )


def _fault(fields: list[str], at: dict[str, int]) -> str:
    """What is wrong with a row that can't be used."""
    values = {}
    for column in COUNTS:
        text = fields[at[column]]
        try:
            values[column] = float(text)
        except ValueError:
            return f"column {column}: {text!r} is not a number"
        if not (isfinite(values[column]) and values[column] >= 0):
            return f"column {column}: {text} must be finite and not negative"
    side = "baseline" if values["baseline_bad"] > values["baseline_requests"] else "candidate"
    return (
        f"column {side}_bad: {fields[at[side + '_bad']]} is more than {side}_requests "
        f"{fields[at[side + '_requests']]}"
    )


def _label(text: str) -> Label:
    """A label as the file's author would write it in JSON: a plain integer as a number."""
    text = text.strip()
    try:
        number = int(text)
    except ValueError:
        return text
    return number if str(number) == text else text
