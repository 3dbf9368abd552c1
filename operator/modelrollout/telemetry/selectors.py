"""PromQL that comes from users, fenced into their namespace.

A rollout names series by selectors and guardrails by queries. Both are parsed, and *every* selector is written anew from
the parsed form with the matcher of the namespace added, so that a tenant reads only its own series. Nothing of the user's
text is passed on: promql-parser's own output does not escape label values (`x="a\\"} or b{"` would come out as two
selectors) and its matcher lists ignore changes, so the text is made here, and is parsed once more as a check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import promql_parser as promql

MAX_LENGTH = 4096
_MAX_DEPTH = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_PLACEHOLDER = re.compile(r"\{\{\s*([a-z.]+)\s*\}\}")
# Private-use characters stand for placeholders while the text is parsed: the braces are no valid regular expression.
_MARKS = "\ue000\ue001\ue002\ue003\ue004"
_PLACEHOLDERS = ("candidate.pods", "baseline.pods", "candidate.revision", "namespace", "name")
_OPS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}
# info() joins series of its own choice: they can't be fenced.
_REFUSED_FUNCTIONS = {"info"}

PROBE_LABELS = ("handler", "path", "uri", "route", "http_route")
PROBE_PATHS = (
    r"/?(metrics|health|healthz|livez|readyz|ready|live|ping|-/healthy|-/ready)(/.*)?|/v2/health/(live|ready)"
)


class SelectorError(ValueError):
    """A selector or query that can't be used; its text is one sentence that says why and what to write instead."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """A label matcher; `op` is one of = != =~ !~, `value` is not escaped."""

    label: str
    op: str
    value: str

    def __str__(self) -> str:
        return f"{_format_label(self.label)}{self.op}{quote(self.value)}"


@dataclass(frozen=True, slots=True)
class SeriesSelector:
    """A parsed series selector. `str()` is PromQL with every value escaped."""

    name: str | None
    matchers: tuple[Matcher, ...]

    def __str__(self) -> str:
        return _format_selector(self.name, self.matchers)

    def matching(self, *extra: Matcher) -> SeriesSelector:
        """This selector narrowed by more matchers (all must match)."""
        return SeriesSelector(self.name, self.matchers + extra)

    def labels(self) -> frozenset[str]:
        """Labels that the selector already says something about."""
        return frozenset(matcher.label for matcher in self.matchers)

    def renamed(self, suffix: str) -> SeriesSelector:
        """The selector of `<name><suffix>`, as for the `_bucket` series of a histogram.

        Raises SelectorError if the metric's name is not given literally.
        """
        if self.name is not None:
            return SeriesSelector(self.name + suffix, self.matchers)
        names = [m for m in self.matchers if m.label == "__name__"]
        if len(names) != 1 or names[0].op != "=":
            raise SelectorError(f"{self} does not name one metric: begin the selector with the metric's name")
        renamed = Matcher("__name__", "=", names[0].value + suffix)
        return SeriesSelector(None, tuple(renamed if m is names[0] else m for m in self.matchers))

    def without_probes(self) -> SeriesSelector:
        """Without requests of probes and scrapes, where a label tells and the user said nothing about that label."""
        known = self.labels()
        return self.matching(
            *(Matcher(label, "!~", PROBE_PATHS) for label in PROBE_LABELS if label not in known)
        )


@lru_cache(maxsize=1024)  # every poll of every rollout asks for the same few
def parse_selector(text: str) -> SeriesSelector:
    """Parse a PromQL series selector such as `http_requests_total{code=~"5.."}`.

    Raises SelectorError for anything else: expressions, ranges, `offset`, `@` and matchers joined by `or`.
    """
    parsed = _parse(text)
    if isinstance(parsed, promql.MatrixSelector):
        raise SelectorError(f"{_cut(text)} has a range: leave out the part in square brackets")
    if not isinstance(parsed, promql.VectorSelector):
        raise SelectorError(
            f"{_cut(text)} is an expression, but raw series are needed: write a selector like "
            'http_requests_total{code=~"5.."} (a guardrail takes any expression)'
        )
    if parsed.offset is not None or parsed.at is not None:
        raise SelectorError(f"{_cut(text)} shifts the time: leave out offset and @")
    return _read_selector(parsed)


def fence_query(
    text: str, *, namespace_label: str, namespace: str, placeholders: Mapping[str, str] | None = None
) -> str:
    """A guardrail query with the namespace matcher in every selector and all placeholders filled in.

    `placeholders` maps names such as `name` to plain values; the two `….pods` are regular expressions already and
    may stand only in =~ and !~. Raises SelectorError if the query can't be parsed or written anew.
    """
    fence = Matcher(namespace_label, "=", namespace)
    fill = _Filler(dict(placeholders or {}))
    written = _Printer(fence=fence, fill=fill).print(_parse(_mark(text)))
    again = _Printer(fence=None, fill=lambda value, _op: value)
    if again.print(_parse(written, limit=None)) != written or any(fence not in s for s in again.seen):
        raise SelectorError(f"{_cut(text)} can't be limited to one namespace: write it more simply")
    return written


@lru_cache(maxsize=1024)
def check_query(text: str) -> None:
    """Raise SelectorError if `fence_query` would refuse this guardrail query."""
    values = dict.fromkeys(_PLACEHOLDERS, "x")
    fence_query(text, namespace_label="namespace", namespace="x", placeholders=values)


@lru_cache(maxsize=1024)  # the same values at every poll, and those that name pods are long
def quote(value: str) -> str:
    """A PromQL string literal."""
    out = []
    for char in value:
        if char in '"\\':
            out.append("\\" + char)
        elif char == "\n":
            out.append("\\n")
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def escape_regex(value: str) -> str:
    """A regular expression (RE2) that matches exactly this text."""
    return re.sub(r"[^a-zA-Z0-9_-]", lambda found: _escape_char(found.group()), value)


def _escape_char(char: str) -> str:
    return "\\" + char if ord(char) < 0x80 and char.isprintable() and char != " " else f"\\x{{{ord(char):x}}}"


def _parse(text: str, limit: int | None = MAX_LENGTH) -> Any:
    if limit is not None and len(text) > limit:
        raise SelectorError(f"{_cut(text)} is longer than {limit} characters: shorten it")
    try:
        return promql.parse(text)
    except ValueError as error:
        reason = " ".join(str(error).split())
        hint = "" if "escape" not in reason else '; in "…" a backslash is written twice, and `…` is not taken'
        raise SelectorError(f"{_cut(text)} is not PromQL: {reason}{hint}") from error


def _cut(text: str) -> str:
    for mark, name in zip(_MARKS, _PLACEHOLDERS, strict=True):
        text = text.replace(mark, f"{{{{{name}}}}}")
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "…"


def _mark(text: str) -> str:
    if any(mark in text for mark in _MARKS):
        raise SelectorError(f"{_cut(text)} has characters of Unicode's private-use area: take them out")

    def mark(found: re.Match[str]) -> str:
        if found.group(1) not in _PLACEHOLDERS:
            known = ", ".join(f"{{{{{name}}}}}" for name in _PLACEHOLDERS)
            raise SelectorError(f"{found.group()} is no placeholder: there are {known}")
        return _MARKS[_PLACEHOLDERS.index(found.group(1))]

    return _PLACEHOLDER.sub(mark, text)


@dataclass(frozen=True, slots=True)
class _Filler:
    """Puts values in the place of marks, escaped for the operator of the matcher they stand in."""

    values: Mapping[str, str]

    def __call__(self, value: str, op: str) -> str:
        regex = op in ("=~", "!~")
        for mark, name in zip(_MARKS, _PLACEHOLDERS, strict=True):
            if mark not in value:
                continue
            if name not in self.values:
                raise SelectorError(f"{{{{{name}}}}} has no value here")
            filled = self.values[name]
            if name.endswith(".pods"):
                if not regex:
                    raise SelectorError(
                        f"{{{{{name}}}}} stands for several pods: use =~ or !~ instead of {op}"
                    )
                filled = f"(?:{filled})"
            elif regex:
                filled = escape_regex(filled)
            value = value.replace(mark, filled)
        return value


def _read_selector(parsed: Any) -> SeriesSelector:
    if parsed.matchers.or_matchers:
        raise SelectorError(f'{parsed.name or ""}{{…}} joins matchers by "or": use one =~ with a|b instead')
    matchers = tuple(Matcher(m.name, _OPS[str(m.op)], m.value) for m in parsed.matchers.matchers)
    return SeriesSelector(parsed.name, matchers)


def _format_label(label: str) -> str:
    return label if _LABEL.fullmatch(label) else quote(label)


def _format_selector(name: str | None, matchers: tuple[Matcher, ...]) -> str:
    parts = [str(m) for m in matchers]
    if name is not None and not _METRIC.fullmatch(name):
        parts.insert(0, quote(name))
        name = None
    return f"{name or ''}{{{','.join(parts)}}}"


def _format_duration(length: timedelta) -> str:
    return f"{round(length / timedelta(milliseconds=1))}ms"


class _Printer:
    """Writes a parsed query as PromQL, with all operands in parentheses so that no precedence can go wrong."""

    def __init__(self, *, fence: Matcher | None, fill: Callable[[str, str], str]) -> None:
        self.seen: list[tuple[Matcher, ...]] = []
        self._fence = fence
        self._fill = fill

    def print(self, node: Any, depth: int = 0) -> str:
        if depth > _MAX_DEPTH:
            raise SelectorError(f"the query is nested more than {_MAX_DEPTH} deep: write it more simply")
        for kind, write in self._WRITERS.items():
            if isinstance(node, kind):
                return str(write(self, node, depth + 1))
        raise SelectorError(f"the query has a part that can't be limited to one namespace: {_cut(str(node))}")

    def _vector(self, node: Any, _depth: int) -> str:
        return self._selector(node) + self._shift(node)

    def _matrix(self, node: Any, _depth: int) -> str:
        inner = node.vector_selector
        return f"{self._selector(inner)}[{_format_duration(node.range)}]{self._shift(inner)}"

    def _selector(self, node: Any) -> str:
        found = _read_selector(node)
        matchers = tuple(Matcher(m.label, m.op, self._fill(m.value, m.op)) for m in found.matchers)
        if self._fence is not None and self._fence not in matchers:
            matchers = (*matchers, self._fence)
        self.seen.append(matchers)
        return _format_selector(found.name, matchers)

    def _shift(self, node: Any) -> str:
        out = "" if node.offset is None else f" offset {_format_duration(node.offset)}"
        if node.at is None:
            return out
        kind = str(node.at.type).rpartition(".")[2]
        if kind in ("Start", "End"):
            return f"{out} @ {kind.lower()}()"
        return f"{out} @ {(node.at.at - _EPOCH).total_seconds():.3f}"

    def _subquery(self, node: Any, depth: int) -> str:
        step = "" if node.step is None else _format_duration(node.step)
        return f"({self.print(node.expr, depth)})[{_format_duration(node.range)}:{step}]{self._shift(node)}"

    def _call(self, node: Any, depth: int) -> str:
        if node.func.name in _REFUSED_FUNCTIONS:
            raise SelectorError(f"{node.func.name}() can't be limited to one namespace: use a join with on()")
        return f"{node.func.name}({', '.join(self.print(argument, depth) for argument in node.args)})"

    def _aggregate(self, node: Any, depth: int) -> str:
        grouping = ""
        if node.modifier is not None:
            word = str(node.modifier.type).rpartition(".")[2].lower()
            grouping = f" {word} ({self._labels(node.modifier.labels)})"
        parameter = "" if node.param is None else self.print(node.param, depth) + ", "
        return f"{node.op}{grouping} ({parameter}{self.print(node.expr, depth)})"

    def _binary(self, node: Any, depth: int) -> str:
        left, right = self.print(node.lhs, depth), self.print(node.rhs, depth)
        return f"({left}) {str(node.op).strip()}{self._matching(node.modifier)} ({right})"

    def _matching(self, modifier: Any) -> str:
        if modifier is None:
            return ""
        fill = modifier.fill_values
        if fill is not None and (fill.lhs is not None or fill.rhs is not None):
            raise SelectorError("the query uses fill(), which is not taken: use `or` with a default instead")
        out = " bool" if modifier.return_bool else ""
        if modifier.matching is not None:
            include = str(modifier.matching.type).endswith("Include")
            out += f" {'on' if include else 'ignoring'} ({self._labels(modifier.matching.labels)})"
        group = {"ManyToOne": "group_left", "OneToMany": "group_right"}.get(
            str(modifier.card).rpartition(".")[2]
        )
        return out if group is None else f"{out} {group} ({self._labels(modifier.group_labels or [])})"

    @staticmethod
    def _labels(labels: list[str]) -> str:
        return ", ".join(_format_label(label) for label in labels)

    def _unary(self, node: Any, depth: int) -> str:
        return f"-({self.print(node.expr, depth)})"

    def _paren(self, node: Any, depth: int) -> str:
        return self.print(node.expr, depth)  # every operand gets parentheses anyway

    def _number(self, node: Any, _depth: int) -> str:
        if math.isnan(node.val):
            return "NaN"
        return repr(node.val) if math.isfinite(node.val) else ("Inf" if node.val > 0 else "-Inf")

    def _string(self, node: Any, _depth: int) -> str:
        if any(mark in node.val for mark in _MARKS):
            raise SelectorError("placeholders are filled in only as values of label matchers")
        return quote(node.val)

    _WRITERS: Mapping[Any, Callable[[_Printer, Any, int], str]] = {
        promql.VectorSelector: _vector,
        promql.MatrixSelector: _matrix,
        promql.SubqueryExpr: _subquery,
        promql.Call: _call,
        promql.AggregateExpr: _aggregate,
        promql.BinaryExpr: _binary,
        promql.UnaryExpr: _unary,
        promql.ParenExpr: _paren,
        promql.NumberLiteral: _number,
        promql.StringLiteral: _string,
    }
