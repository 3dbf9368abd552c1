"""`modelrollout judge`: its columns, its output, its speed, and what it says to bad input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelrollout.cli import main
from modelrollout.cli.judge import judge
from modelrollout.version import package_version

HEADER = "poll,baseline_requests,baseline_bad,candidate_requests,candidate_bad"
VECTOR = [(900, 9, 100, 2), (900, 10, 100, 1), (900, 8, 100, 3), (900, 11, 100, 2), (900, 9, 100, 4)]
SCORE = [(180, 18, 20, 2), (180, 17.25, 20, 1.5), (180, 19, 20, 3), (180, 18, 20, 2), (180, 17, 20, 4)]
ACCEPT = ("--accept-ratio", "1", "--accept-absolute", "0")


def table(rows: list[tuple[float, ...]], header: str = HEADER) -> str:
    return "\n".join([header, *(f"{i},{','.join(map(str, row))}" for i, row in enumerate(rows, 1))]) + "\n"


def run(text: str, *options: str) -> Result:
    return CliRunner().invoke(judge, ["--counts", "-", *options], input=text)


def lines(text: str, *options: str) -> list[dict[str, Any]]:
    result = run(text, *options)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_line_per_poll_with_the_vectors_of_the_design() -> None:
    found = lines(table(VECTOR))
    assert [list(line) for line in found] == [
        ["run", "poll", "harmE", "harmlessE", "ratio", "low", "high", "verdict"]
    ] * 5
    assert [line["harmE"] for line in found] == pytest.approx(
        [0.955677, 0.807702, 1.108549, 1.129243, 2.550275], abs=6e-7
    )
    assert [line["harmlessE"] for line in found] == pytest.approx(
        [0.401824, 0.427829, 0.215257, 0.185796, 0.098372], abs=6e-7
    )
    assert [line["poll"] for line in found] == [1, 2, 3, 4, 5]
    assert {line["run"] for line in found} == {None}
    assert {line["verdict"] for line in found} == {"Inconclusive"}


def test_scores_may_be_fractional() -> None:
    found = lines(table(SCORE), "--kind", "score")
    assert [line["harmE"] for line in found] == pytest.approx(
        [0.813579, 0.751352, 0.771898, 0.750564, 0.849893], abs=6e-7
    )
    assert [line["harmlessE"] for line in found] == pytest.approx(
        [1.002441, 1.064767, 0.943445, 0.946372, 0.730515], abs=6e-7
    )


def test_a_summary_says_when_something_was_first_proven() -> None:
    found = lines(table([(1000, 10, 1000, 50)] * 20), "--summary")
    assert [list(line) for line in found] == [
        ["run", "polls", "harmProvenAt", "harmlessAt", "ratio", "low", "high", "verdict"]
    ]
    (line,) = found
    assert line["polls"] == 20
    assert line["harmProvenAt"] == 3  # the cap: at most a factor of 10 per poll
    assert line["harmlessAt"] is None
    assert line["ratio"] == pytest.approx(5, rel=0.01)
    assert line["low"] < 5 < line["high"]
    assert line["verdict"] == "Harmful"


def test_a_summary_agrees_with_the_lines() -> None:
    text = table([(1000, 10, 1000, 10)] * 30)
    per_poll, (summary,) = lines(text), lines(text, "--summary")
    first = next(line["poll"] for line in per_poll if line["verdict"] == "Harmless")
    assert summary["harmlessAt"] == first
    assert summary["harmProvenAt"] is None
    last = per_poll[-1]
    assert {k: summary[k] for k in ("ratio", "low", "high", "verdict")} == {
        k: last[k] for k in ("ratio", "low", "high", "verdict")
    }


def test_runs_are_independent_however_they_are_mixed() -> None:
    header = f"run,{HEADER}"
    mixed = [header]
    for i, (good, bad) in enumerate(
        zip([(1000, 10, 1000, 10)] * 30, [(1000, 10, 1000, 60)] * 30, strict=True)
    ):
        mixed += [f"good,{i},{','.join(map(str, good))}", f"7,{i},{','.join(map(str, bad))}"]
    found = lines("\n".join(mixed) + "\n", "--summary")
    assert [(line["run"], line["polls"], line["verdict"]) for line in found] == [
        ("good", 30, "Harmless"),
        (7, 30, "Harmful"),
    ]
    alone = lines(table([(1000, 10, 1000, 60)] * 30), "--summary")[0]
    assert found[1]["low"] == alone["low"]


VERDICTS: dict[str, tuple[list[tuple[float, ...]], tuple[str, ...], str]] = {
    "nothing but empty polls is NoData": ([(0, 0, 0, 0), (100, 1, 0, 0)], (), "NoData"),
    "little is Inconclusive": ([(100, 1, 100, 1)], (), "Inconclusive"),
    "equal is Harmless": ([(1000, 10, 1000, 10)] * 30, (), "Harmless"),
    "worse is Harmful": ([(1000, 10, 1000, 40)] * 30, (), "Harmful"),
    "between the margins is WorseWithinMargin": (
        *([(1000, 10, 1000, 30)] * 30, ("--accept-ratio", "5", "--harm-ratio", "1")),
        "WorseWithinMargin",
    ),
    "a wider tolerance makes harm vanish": (
        *([(1000, 10, 1000, 30)] * 10, ("--accept-ratio", "5", "--harm-ratio", "5")),
        "Harmless",
    ),
    "slower is Harmful": ([(1000, 50, 1000, 150)] * 30, ("--kind", "latency"), "Harmful"),
    "as fast is Harmless": ([(1000, 50, 1000, 50)] * 30, ("--kind", "latency"), "Harmless"),
}


@pytest.mark.parametrize(("rows", "options", "verdict"), VERDICTS.values(), ids=VERDICTS.keys())
def test_verdict(rows: list[tuple[float, ...]], options: tuple[str, ...], verdict: str) -> None:
    assert lines(table(rows), "--summary", *options)[0]["verdict"] == verdict


def test_error_probabilities_move_the_bars() -> None:
    text = table([(1000, 10, 1000, 20)] * 40)
    at = [
        lines(text, "--summary", "--false-rollback", a)[0]["harmProvenAt"] for a in ("0.5", "0.01", "0.0001")
    ]
    assert at == sorted(at)
    assert at[0] < at[2]


ERRORS: dict[str, tuple[str, str]] = {
    "a missing column": (
        "poll,baseline_requests,baseline_bad,candidate_requests\n",
        "line 1, column candidate_bad: is missing",
    ),
    "a column twice": (f"{HEADER},poll\n", "line 1, column poll: stands there twice"),
    "an empty file": ("", "line 1, column poll: is missing"),
    "a word for a number": (
        f"{HEADER}\n1,9,1,9,1\n2,900,many,100,1\n",
        "line 3, column baseline_bad: 'many'",
    ),
    "no number": (f"{HEADER}\n1,,1,9,1\n", "line 2, column baseline_requests: ''"),
    "a negative count": (f"{HEADER}\n1,-9,1,9,1\n", "line 2, column baseline_requests: -9"),
    "an infinite count": (f"{HEADER}\n1,9,1,inf,1\n", "line 2, column candidate_requests: inf"),
    "NaN": (f"{HEADER}\n1,9,1,9,nan\n", "line 2, column candidate_bad: nan"),
    "more bad than requests": (f"{HEADER}\n1,9,1,9,10\n", "line 2, column candidate_bad: 10 is more than"),
    "a short row": (f"{HEADER}\n\n1,9,1,9\n", "line 3, column candidate_bad: there is no such field"),
}


@pytest.mark.parametrize(("text", "said"), ERRORS.values(), ids=ERRORS.keys())
def test_a_bad_row_is_refused_by_line_and_column(text: str, said: str) -> None:
    result = run(text)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


BAD_OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "harm beyond accept": (
        ("--harm-ratio", "1.3"),
        "--harm-ratio 1.3 must not be more than --accept-ratio 1.25",
    ),
    "an accept margin that nothing can be proven within": (
        ACCEPT,
        "--accept-ratio 1 with --accept-absolute 0 can never be proven, not even for an equal model: raise one of them",
    ),
    "a probability of 0": (("--false-rollback", "0"), "--false-rollback"),
    "a probability of 1": (("--false-promotion", "1"), "--false-promotion"),
    "a ratio below 1": (("--accept-ratio", "0.9"), "--accept-ratio"),
    "a margin that is no number": (("--harm-absolute", "nan"), "--harm-absolute must be a finite number"),
    "an unknown kind": (("--kind", "drift"), "--kind"),
}


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_a_bad_option_is_refused_by_name(options: tuple[str, ...], said: str) -> None:
    result = run(table(VECTOR), *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_harm_margins_left_out_never_exceed_the_accept_margin() -> None:
    """Then a tighter accept margin alone must not be an error."""
    assert lines(table(VECTOR), "--accept-ratio", "1.01", "--accept-absolute", "0.0001")
    assert lines(table(SCORE), "--kind", "score", "--accept-absolute", "0.001")


def test_what_was_judged_before_a_bad_row_has_been_written() -> None:
    result = run(table(VECTOR) + "6,900,9,100,oops\n")
    assert len(result.stdout.splitlines()) == 5
    assert "line 7" in result.stderr


def test_files_as_spreadsheets_write_them(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    rows = table(VECTOR, header=f"{HEADER},comment").replace("\n", ",x\r\n").replace("comment,x", "comment")
    path.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    result = CliRunner().invoke(judge, ["--counts", str(path)])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 5


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\x00\x01")
    result = CliRunner().invoke(judge, ["--counts", str(path)])
    assert result.exit_code == 1
    assert "not UTF-8" in result.stderr


def test_a_file_without_rows_is_told(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(HEADER)
    result = CliRunner().invoke(judge, ["--counts", str(path), "--summary"])
    assert result.exit_code == 1
    assert "there are no rows" in result.stderr


def test_the_version_is_told() -> None:
    told = CliRunner().invoke(main, ["--version"])
    assert (told.exit_code, told.stdout) == (0, f"modelrollout {package_version()}\n")


def test_it_starts_without_the_cluster_libraries() -> None:
    code = "import sys, modelrollout.cli.judge; print(sorted({'kopf', 'kubernetes', 'aiohttp', 'requests'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
