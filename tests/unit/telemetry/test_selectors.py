"""What users write as PromQL stays inside of their namespace."""

import promql_parser as promql
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelrollout.telemetry.selectors import (
    Matcher,
    SelectorError,
    escape_regex,
    fence_query,
    parse_selector,
    quote,
)

VALUES = {
    "candidate.pods": "f-x-.*|p1",
    "baseline.pods": "f-y-.*",
    "candidate.revision": "x",
    "namespace": "ml",
    "name": "f.r",
}


def fence(query: str, namespace: str = "ml") -> str:
    return fence_query(query, namespace_label="namespace", namespace=namespace, placeholders=VALUES)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("a", "a{}", id="a bare name"),
        pytest.param('a{b=~"5.."}', 'a{b=~"5.."}', id="a regular expression"),
        pytest.param('a{b="x\\"y\\\\"}', 'a{b="x\\"y\\\\"}', id="quotes and backslashes stay escaped"),
        pytest.param(
            "a{b='x\"} or c{d=\"'}",
            'a{b="x\\"} or c{d=\\""}',
            id="a value that looks like PromQL stays a value",
        ),
        pytest.param('{__name__="a",b!="1"}', '{__name__="a",b!="1"}', id="a name given as a matcher"),
        pytest.param('{"a.b","c.d"!~"1"}', '{__name__="a.b","c.d"!~"1"}', id="UTF-8 names"),
        pytest.param('a{b="\\n\\x01"}', 'a{b="\\n\\x01"}', id="control characters are escaped"),
    ],
)
def test_a_selector_is_written_anew(text: str, written: str) -> None:
    assert str(parse_selector(text)) == written
    assert str(parse_selector(written)) == written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("sum(a)", "is an expression", id="an aggregation"),
        pytest.param("a + b", "is an expression", id="an expression"),
        pytest.param("(a)", "is an expression", id="parentheses"),
        pytest.param("a[5m]", "has a range", id="a range"),
        pytest.param("a offset 5m", "shifts the time", id="an offset"),
        pytest.param("a @ 100", "shifts the time", id="a fixed time"),
        pytest.param('a{b="1" or c="2"}', 'joins matchers by "or"', id="or between matchers"),
        pytest.param("a{", "is not PromQL", id="half a selector"),
        pytest.param("", "is not PromQL", id="nothing"),
        pytest.param('{b=~".*"}', "is not PromQL", id="a selector of everything"),
        pytest.param("a" * 5000, "longer than 4096", id="a very long text"),
        pytest.param('a{b=~"["}', "is not PromQL", id="a broken regular expression"),
    ],
)
def test_what_is_no_plain_selector_is_refused(text: str, says: str) -> None:
    with pytest.raises(SelectorError, match=says):
        parse_selector(text)


@pytest.mark.parametrize(
    ("query", "written"),
    [
        pytest.param("a", 'a{namespace="ml"}', id="a bare name"),
        pytest.param("(a)", 'a{namespace="ml"}', id="parentheses"),
        pytest.param(
            'a{namespace="other"}',
            'a{namespace="other",namespace="ml"}',
            id="another namespace matches nothing",
        ),
        pytest.param("rate(a[1m30s])", 'rate(a{namespace="ml"}[90000ms])', id="a range"),
        pytest.param("a offset -3s", 'a{namespace="ml"} offset -3000ms', id="an offset"),
        pytest.param("rate(a[5m] @ 100.5)", 'rate(a{namespace="ml"}[300000ms] @ 100.500)', id="a fixed time"),
        pytest.param(
            "max_over_time(a[1h:] offset 5m @ end())",
            'max_over_time((a{namespace="ml"})[3600000ms:] offset 300000ms @ end())',
            id="a subquery",
        ),
        pytest.param("sum(a) by (x)", 'sum by (x) (a{namespace="ml"})', id="an aggregation"),
        pytest.param("topk(3, a)", 'topk (3.0, a{namespace="ml"})', id="an aggregation with a parameter"),
        pytest.param("-a ^ 2", '-((a{namespace="ml"}) ^ (2.0))', id="precedence is made explicit"),
        pytest.param(
            "a / on(p) group_left(z) b > bool 3",
            '((a{namespace="ml"}) / on (p) group_left (z) (b{namespace="ml"})) > bool (3.0)',
            id="vector matching",
        ),
        pytest.param(
            "a unless on() b", '(a{namespace="ml"}) unless on () (b{namespace="ml"})', id="a set operator"
        ),
        pytest.param(
            'label_replace(a, "x", "$1", "y", "(.*)")',
            'label_replace(a{namespace="ml"}, "x", "$1", "y", "(.*)")',
            id="strings are passed on",
        ),
        pytest.param("time() - -Inf", "(time()) - (-Inf)", id="no selector at all"),
        pytest.param(
            'a{p=~"{{candidate.pods}}",n="{{name}}",m=~"{{ name }}-.*"}',
            'a{p=~"(?:f-x-.*|p1)",n="f.r",m=~"f\\\\.r-.*",namespace="ml"}',
            id="placeholders are escaped for where they stand",
        ),
    ],
)
def test_a_query_is_fenced(query: str, written: str) -> None:
    assert fence(query) == written
    assert fence(written) == written


@pytest.mark.parametrize(
    ("query", "says"),
    [
        pytest.param('sum(a{b="1" or c="2"})', 'joins matchers by "or"', id="or between matchers"),
        pytest.param(
            "info(a)", "info\\(\\) can't be limited", id="a function that reads series of its own choice"
        ),
        pytest.param('a{p="{{candidate.pods}}"}', "use =~", id="several pods can't be equal to a value"),
        pytest.param("a{{{what}}}", "is no placeholder", id="an unknown placeholder"),
        pytest.param(
            'label_replace(a,"x","{{name}}","y","z")', "only as values of label", id="a placeholder elsewhere"
        ),
        pytest.param("(" * 1900 + "a" + ")" * 1900 + "+", "is not PromQL", id="broken and deep"),
        pytest.param("-" * 1900 + "a", "nested more than", id="endless nesting"),
        pytest.param('a{b="\ue000"}', "private-use", id="characters that stand for placeholders"),
        pytest.param("a b", "is not PromQL", id="no PromQL"),
    ],
)
def test_what_can_not_be_fenced_is_refused(query: str, says: str) -> None:
    with pytest.raises(SelectorError, match=says):
        fence(query)


labels = st.sampled_from(["a", "namespace", "x.y", "__name__"])
values = st.text(alphabet=st.sampled_from("ab\"\\}{,=~|() \n\t\x00`'[]@or.é$"), max_size=12)
spoken = st.text(alphabet=st.sampled_from("a{}=\"\\,or()[]5m@+-\n n'`#"), max_size=30)


def selectors_of(query: str) -> list[list[tuple[str, str, str]]]:
    """All selectors as promql-parser sees them, by another way than the code under test."""
    found: list[list[tuple[str, str, str]]] = []

    def visit(node: object) -> None:
        if isinstance(node, promql.VectorSelector):
            assert not node.matchers.or_matchers
            found.append([(m.name, str(m.op), m.value) for m in node.matchers.matchers])

    promql.walk(promql.parse(query), visit)
    return found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(matchers=st.lists(st.tuples(labels, values), min_size=1, max_size=3), namespace=values)
def test_no_value_of_a_label_lets_a_tenant_escape(matchers: list[tuple[str, str]], namespace: str) -> None:
    inner = ",".join(f"{quote(label)}={quote(value)}" for label, value in matchers if label != "__name__")
    query = f"sum(m{{{inner}}}) / m"
    written = fence(query, namespace=namespace)
    first, second = selectors_of(written)
    assert ("namespace", "MatchOp.Equal", namespace) in first
    assert ("namespace", "MatchOp.Equal", namespace) in second
    given_ = [(label, "MatchOp.Equal", value) for label, value in matchers if label != "__name__"]
    assert [m for m in first if m in given_] == given_ or ("namespace", "MatchOp.Equal", namespace) in given_


@settings(max_examples=500, deadline=None, derandomize=True)
@given(before=spoken, value=values, after=spoken)
def test_no_text_lets_a_tenant_escape(before: str, value: str, after: str) -> None:
    for text in (f"a{{b={quote(value)}}}{after}", f"{before}a{after}", f'a{{b="{value}"}}', before + after):
        try:
            written = fence(text)
        except SelectorError:
            continue
        for matchers in selectors_of(written):
            assert ("namespace", "MatchOp.Equal", "ml") in matchers
        try:
            selector = parse_selector(text).matching(Matcher("namespace", "=", "ml"))
        except SelectorError:
            continue
        assert [("namespace", "MatchOp.Equal", "ml") in m for m in selectors_of(str(selector))] == [True]


@pytest.mark.parametrize("text", ["f-x-1", "a.b", "a|b", "(x)", "a b", "é", "\n", "^$\\"])
def test_an_escaped_name_matches_only_itself(text: str) -> None:
    assert promql.parse(f"a{{b=~{quote(escape_regex(text))}}}")
    if text.isascii() and text.isprintable() and " " not in text:
        import re

        assert re.fullmatch(escape_regex(text), text)
        assert not re.fullmatch(escape_regex(text), "xb1")


def test_probes_are_left_out_unless_the_user_speaks_of_the_label() -> None:
    plain = parse_selector("a").without_probes()
    assert {"handler", "path"} <= plain.labels()
    spoken_of = parse_selector('a{handler="/metrics"}').without_probes()
    assert [str(m) for m in spoken_of.matchers if m.label == "handler"] == ['handler="/metrics"']


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param('h{a="1"}', 'h_bucket{a="1"}', id="a name"),
        pytest.param('{__name__="h",a="1"}', '{__name__="h_bucket",a="1"}', id="a name as a matcher"),
    ],
)
def test_a_histogram_is_named_by_its_base(text: str, written: str) -> None:
    assert str(parse_selector(text).renamed("_bucket")) == written


def test_a_histogram_needs_a_name() -> None:
    with pytest.raises(SelectorError, match="does not name one metric"):
        parse_selector('{__name__=~"h.*"}').renamed("_bucket")
