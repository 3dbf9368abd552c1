"""Strategies with real requests through a real proxy: what users see of a candidate is counted by the load, which knows the
version behind every answer."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from lab.gateway import ADDRESS_ANNOTATION
from lab.kube import path_of
from lab.lab import Lab
from lab.load import Load, User
from lab.process import wait_until
from tests.lab.rollouts import ERRORS, LATENCY, PATIENCE, QUALITY, Rollout, Seen, Story, sentence
from tests.lab.test_rollouts import assert_in_order, step_runs


def copies_answered(rollout: Rollout, revision: str) -> float:
    """Requests that the pods of a revision say they answered."""
    total = 0.0
    for pod in rollout.pods(revision):
        address = pod["metadata"]["annotations"].get(ADDRESS_ANNOTATION)
        if not address:
            continue
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
            lines = (line for line in text.splitlines() if line.startswith("http_requests_total{"))
            total += sum(float(line.rpartition(" ")[2]) for line in lines)
    return total


def a_shadow_answers_copies_that_nobody_sees_and_is_judged(lab: Lab) -> None:
    strategy = {"shadow": {"mirror": 50, "duration": "15s"}}
    with Rollout(lab, "shadow", rate=40, strategy=strategy, analysis={"metrics": [ERRORS]}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait(step_runs, "the comparison")
        revision = rollout.status["candidate"]["revision"]
        mirrored, answers = copies_answered(rollout, revision), rollout.counts()
        rollout.wait_answers(200)
        mirrored = copies_answered(rollout, revision) - mirrored
        answered = sum(rollout.counts().since(answers).by_version().values())
        rollout.wait_end()
        rollout.wait_answers(50)
        print(rollout.measured(), f"copies {mirrored:.0f} of {answered}")
        assert 0.3 * answered <= mirrored <= 0.75 * answered
        assert rollout.outcome == ("Judged", "ProvenHarmless")
        assert rollout.status["phase"] == "Healthy"
        assert rollout.status["stable"]["model"] == "shadow v1"
        assert rollout.counts().by_version(status=None).keys() == {"v1"}
        assert rollout.failures() == {}
        assert all(seen.weight == 0 for seen in rollout.timeline)
        wait_until(
            lambda: not rollout.pods(revision), timeout=PATIENCE, what="the end of the candidate's pods"
        )
        rollout.wait_event("Judged")
        assert_in_order(["RolloutStarted", "WeightChanged", "Judged"], [one for one, _ in rollout.events()])


def a_shadow_that_fails_is_found_and_nobody_saw_it(lab: Lab) -> None:
    strategy = {"shadow": {"mirror": 50}}
    with Rollout(
        lab, "faulty", rate=40, strategy=strategy, analysis={"metrics": [ERRORS, LATENCY]}
    ) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/errors", environment={"ERROR_RATE": "0.3"})
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome == ("RolledBack", "HarmProven")
        assert rollout.counts().by_version(status=None).keys() == {"v1"}
        assert rollout.failures() == {}


def a_blue_green_switch_is_one_change_of_the_weights(lab: Lab) -> None:
    strategy = {"blueGreen": {"mirror": 50, "duration": "5s"}}
    changes = {"strategy": strategy, "watch": {"duration": "6s", "holdback": 0}}
    with Rollout(lab, "bluegreen", rate=40, analysis={"metrics": [ERRORS]}, **changes) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait(step_runs, "the comparison")
        assert rollout.status["candidate"]["ready"] == 2
        rollout.wait(lambda seen: seen.phase == "Watching", "the switch")
        rollout.wait_answers(50, "v2")
        standing_by = rollout.status["previous"]["desired"] if "previous" in rollout.status else 2
        rollout.wait_end()
        print(rollout.measured())
        assert standing_by == 2
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        assert rollout.failures() == {}
        candidate = [shares(seen) for seen in rollout.timeline if seen.status.get("attempt") == 2]
        assert sorted(set(candidate)) == [0, 100], "one switch"
        before = [seen for seen in rollout.timeline if shares(seen) == 0]
        assert before[-1].counts.by_version(status=None).keys() == {"v1"}


def shares(seen: Seen) -> int:
    """Of the new model, in percent."""
    weights = seen.status.get("weights", {})
    promoted = seen.phase in ("Watching", "Healthy") and seen.status["stable"]["model"].endswith("v2")
    return int(weights.get("stable", 0) if promoted else weights.get("candidate", 0))


def a_preview_reaches_the_candidate_before_an_approved_switch(lab: Lab) -> None:
    header = {"name": "x-preview", "value": "yes"}
    strategy = {"blueGreen": {"approval": True, "previewHeader": header}}
    with Rollout(lab, "preview", rate=20, strategy=strategy, analysis={"metrics": [ERRORS]}) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait(lambda seen: seen.phase == "Paused", "the wait for an approval")
        revision = rollout.status["candidate"]["revision"]
        service = path_of("v1", "services", rollout.namespace, "preview-preview")
        assert rollout.endpoints("preview-preview") == {revision: 2}

        with Load(lab.gateway_url, "preview.example.com", 20, headers={"x-preview": "yes"}) as looking:
            wait_until(lambda: looking.counts().by_version(), timeout=PATIENCE, what="an answer to a preview")
            rollout.wait_answers(50)
            assert looking.counts().by_version(status=None).keys() == {"v2"}
        assert rollout.counts().by_version(status=None).keys() == {"v1"}
        rollout.annotate("approve", f"{revision}/{rollout.status['step']['id']}")
        rollout.wait_answers(20, "v2")
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome[0] == "Promoted"
        assert rollout.status["history"][0]["unproven"]
        assert rollout.failures() == {}
        assert lab.client.find(service) is None


def pods_are_replaced_in_batches_without_a_router(lab: Lab) -> None:
    strategy = {"rolling": {"batch": 1, "duration": "3s"}}
    workload = {"replicas": 3, "template": Rollout(lab, "x", loaded=False).spec["workload"]["template"]}
    changes = {"strategy": strategy, "traffic": {"podRatio": {}}, "workload": workload}
    analysis = {"mode": "Off", "metrics": []}
    with Rollout(lab, "batches", loaded=False, analysis=analysis, **changes) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait_end()
        print(rollout.measured())
        weights = dict.fromkeys(seen.weight for seen in rollout.timeline if seen.phase == "Progressing")
        assert [weight for weight in weights if weight] == [33, 66]
        ready = [seen.status for seen in rollout.timeline if seen.phase == "Progressing"]
        assert max(one["stable"]["desired"] + one["candidate"]["desired"] for one in ready) == 4
        assert rollout.outcome[0] == "Promoted"


def an_elastic_release_is_taken_back_pod_by_pod_and_no_request_fails(lab: Lab) -> None:
    plan = {"canary": {"steps": [{"weight": 66, "duration": "10m"}]}}
    pods = Rollout(lab, "x", loaded=False).spec["workload"]["template"]
    workload = {"replicas": 3, "elastic": True, "template": pods}
    analysis = {"metrics": [ERRORS]}
    with Rollout(lab, "elastic", rate=20, strategy=plan, analysis=analysis, workload=workload) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait(lambda seen: step_runs(seen) and seen.status["stable"]["desired"] == 1, "the exchange")
        rollout.wait_answers(40, "v2")
        rollout.annotate("abort", rollout.status["candidate"]["revision"])
        rollout.wait_end()
        rollout.wait_answers(40, "v1")
        print(rollout.measured())
        assert rollout.outcome == ("RolledBack", "Aborted")
        assert rollout.failures() == {}
        tried = [seen for seen in rollout.timeline if seen.phase in ("Progressing", "RollingBack")]
        assert max(pods_wanted(seen) for seen in tried) == 4
        back = [seen.weight for seen in rollout.timeline if seen.phase == "RollingBack"]
        assert {34, 0} <= set(back), "as its pods come back"
        assert back == sorted(back, reverse=True)


def pods_wanted(seen: Seen) -> int:
    return sum(seen.status.get(role, {}).get("desired", 0) for role in ("stable", "candidate"))


def the_better_reward_of_a_fixed_split_wins(lab: Lab) -> None:
    """`better` is right in 97 of 100 answers and `good` in 93."""
    strategy = {"abTest": {"reward": "quality", "weight": 50, "duration": "10m"}}
    analysis = {"metrics": [ERRORS, QUALITY]}
    with Rollout(lab, "abtest", rate=60, strategy=strategy, analysis=analysis) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/better")
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome == ("Promoted", "ProvenSuperior")
        assert not rollout.status["history"][0].get("unproven")
        assert "good, baseline" in rollout.status["history"][0]["message"]
        (split,) = (counts.by_version() for weight, counts in rollout.steps() if weight == 50)
        assert 0.35 <= split["v2"] / sum(split.values()) <= 0.65
        assert rollout.failures() == {}


def only_chosen_users_see_the_candidate(lab: Lab) -> None:
    matches = [{"headers": [{"name": "x-no", "value": "no"}]}, {"cookie": {"name": "bucket", "value": "b"}}]
    strategy = {"abTest": {"matches": matches, "duration": "12s"}}
    with Rollout(lab, "chosen", rate=20, strategy=strategy, analysis={"metrics": [ERRORS]}) as rollout:
        rollout.deploy()
        # Other users have a cookie that only begins like that of the chosen ones.
        others = Load(lab.gateway_url, "chosen.example.com", 10, headers={"cookie": "bucket=bb; a=b"})
        chosen = Load(lab.gateway_url, "chosen.example.com", 20, headers={"cookie": "a=1; bucket=b"})
        with others, chosen:
            rollout.release("v2", "models/good")
            rollout.wait(step_runs, "the test")
            during = answers_of(chosen, 40)
            still = rollout.timeline[-1].phase
            rollout.wait_end()
            after = answers_of(chosen, 20)
        print(rollout.measured(), f"the chosen users: {during}, and after it {after}")
        assert still == "Progressing", "the test was over before its answers were counted"
        assert (during.keys(), after.keys()) == ({"v2"}, {"v1"})
        assert rollout.counts().by_version(status=None).keys() == {"v1"}
        assert others.counts().by_version(status=None).keys() == {"v1"}
        assert chosen.counts().by_status().keys() == {200}
        assert rollout.failures() == {}
        assert rollout.outcome == ("Judged", "NotSuperior")
        weights = [seen.status.get("weights", {}) for seen in rollout.timeline]
        assert {one.get("candidate", 0) for one in weights} == {0}
        assert {one.get("matched", 0) for one in weights} == {0, 100}


def a_parameter_of_the_query_chooses_and_all_of_an_item_must_match(lab: Lab) -> None:
    nearly = {"name": "group", "type": "RegularExpression", "value": "test.*"}
    matches = [
        {"queryParams": [{"name": "bucket", "value": "b"}]},
        {"queryParams": [nearly], "headers": [{"name": "x-country", "value": "nz"}]},
    ]
    strategy = {"abTest": {"matches": matches, "duration": "1h"}}

    def asking(query: str, **headers: str) -> Load:
        return Load(lab.gateway_url, "query.example.com", 10, path=f"/predict?{query}", headers=headers)

    chosen = [asking("a=1&bucket=b"), asking("group=testers", **{"x-country": "nz"})]
    others = [asking("bucket=bb&a=b"), asking("Bucket=b&a=bucket=b"), asking("group=testers")]
    with Rollout(lab, "query", rate=10, strategy=strategy, analysis={"metrics": [ERRORS]}) as rollout:
        rollout.deploy()
        with contextlib.ExitStack() as loads:
            for load in (*chosen, *others):
                loads.enter_context(load)
            rollout.release("v2", "models/good")
            rollout.wait(step_runs, "the test")
            during = [answers_of(load, 30) for load in chosen]
            elsewhere = [answers_of(load, 30) for load in others]
            rollout.annotate("abort", rollout.status["candidate"]["revision"])
            rollout.wait_end()
            after = [answers_of(load, 10) for load in chosen]
        print(rollout.measured(), f"chosen: {during}, others: {elsewhere}, chosen ones after it: {after}")
        assert [one.keys() for one in during] == [{"v2"}] * len(chosen)
        assert [one.keys() for one in after] == [{"v1"}] * len(chosen)
        for load in (*others, rollout):
            assert load.counts().by_version(status=None).keys() == {"v1"}
        for load in (*chosen, *others, rollout):
            assert load.counts().by_status().keys() == {200}


def a_canary_begins_with_requests_that_are_chosen(lab: Lab) -> None:
    tester = {"queryParams": [{"name": "tester", "value": "yes"}]}
    steps = [
        {"weight": 0, "matches": [tester], "size": 50, "duration": "2s", "approval": True},
        {"weight": 50, "duration": "3s"},
    ]
    testers = Load(lab.gateway_url, "testers.example.com", 10, path="/predict?tester=yes")
    changes = {"strategy": {"canary": {"steps": steps}}, "analysis": {"metrics": [ERRORS]}}
    with Rollout(lab, "testers", rate=30, **changes) as rollout:
        rollout.deploy()
        rollout.release("v2", "models/good")
        rollout.wait(lambda seen: seen.phase == "Paused", "the wait for an approval")
        with testers:
            rollout.wait_answers(50)
            assert answers_of(testers, 20).keys() == {"v2"}
            assert rollout.counts().by_version(status=None).keys() == {"v1"}
            step = rollout.status["step"]
            rollout.annotate("approve", f"{rollout.status['candidate']['revision']}/{step['id']}")
            rollout.wait(lambda seen: seen.weight == 50 and step_runs(seen), "the split")
            assert answers_of(testers, 30).keys() == {"v1", "v2"}, "they are drawn as all others"
            rollout.wait_end()
        print(rollout.measured(), f"testers {testers.counts().by_version()}")
        assert rollout.outcome == ("Promoted", "ProvenHarmless")
        assert rollout.failures() == {}
        assert testers.counts().by_status().keys() == {200}


def who_keeps_the_cookie_stays_on_one_side_until_the_test_ends(lab: Lab) -> None:
    sticky = {"weight": 30, "duration": "1h", "stickiness": {"cookie": "side", "lifetime": "1h"}}
    changes = {"strategy": {"abTest": sticky}, "analysis": {"metrics": [ERRORS]}}
    with Rollout(lab, "sticky", rate=40, **changes) as rollout, contextlib.ExitStack() as ends:
        rollout.deploy()
        users = [User(lab.gateway_url, "sticky.example.com") for _ in range(80)]
        for user in users:
            ends.callback(user.close)
        early, late = users[:40], users[40:]
        assert answered(early) == {"v1"}
        assert not any(user.cookies for user in early), "a cookie without a test"
        rollout.release("v2", "models/good")
        rollout.wait(step_runs, "the test")
        others = rollout.counts()
        sides = Counter(assert_they_stay(early))
        rollout.wait_answers(300)
        split = rollout.counts().since(others).by_version()
        assert (rollout.status["phase"], rollout.timeline[-1].weight) == ("Progressing", 30)

        revision = rollout.status["candidate"]["revision"]
        for pod in rollout.pods(revision):
            lab.client.delete(path_of("v1", "pods", rollout.namespace, pod["metadata"]["name"]))
        rollout.wait(lambda seen: seen.weight == 0, "the loss of the weight")
        wait_until(lambda: answered(early) == {"v1"}, timeout=PATIENCE, what="the baseline for all")
        rollout.wait(lambda seen: seen.weight == 30 and step_runs(seen), "the weight's return")
        rollout.wait_answers(20, "v2")
        assert answered(early) == {"v1"}, "who was moved stays there"
        assert set(assert_they_stay(late)) == {"v1", "v2"}

        rollout.annotate("abort", revision)
        rollout.wait_end()
        after = answered(users)
        print(rollout.measured(), f"users {dict(sides)}, requests without a cookie {split}")
        assert after == {"v1"}, "what is taken back is taken back for all"
        # Five standard deviations of what is drawn.
        assert split["v2"] / sum(split.values()) == pytest.approx(0.3, abs=0.13)
        assert sides["v2"] / len(early) == pytest.approx(0.3, abs=0.36)
        assert sides.keys() == {"v1", "v2"}
        assert rollout.failures() == {}
        assert {status for user in users for _, status in user.versions} == {200}


def what_is_promoted_is_for_those_too_who_kept_the_cookie_of_the_baseline(lab: Lab) -> None:
    sticky = {"weight": 50, "duration": "1h", "stickiness": {"cookie": "side"}}
    changes = {"strategy": {"abTest": sticky}, "analysis": {"metrics": [ERRORS]}}
    with Rollout(lab, "loyal", rate=20, **changes) as rollout, contextlib.ExitStack() as ends:
        rollout.deploy()
        users = [User(lab.gateway_url, "loyal.example.com") for _ in range(20)]
        for user in users:
            ends.callback(user.close)
        rollout.release("v2", "models/good")
        rollout.wait(step_runs, "the test")
        assert set(assert_they_stay(users)) == {"v1", "v2"}
        rollout.annotate("promote", rollout.status["candidate"]["revision"])
        rollout.wait_end()
        print(rollout.measured())
        assert rollout.outcome[0] == "Promoted"
        assert answered(users) == {"v2"}
        assert rollout.failures() == {}
        assert {status for user in users for _, status in user.versions} == {200}


def answered(users: Sequence[User]) -> set[str]:
    """The versions that answer one request of each."""
    return {user.ask() for user in users}


def assert_they_stay(users: Sequence[User]) -> list[str]:
    """The versions that users got, request after request, with the one cookie that they were given."""
    sides = [user.ask() for user in users]
    for _ in range(10):
        assert [user.ask() for user in users] == sides
    assert all(user.cookies.keys() == {"side"} for user in users)
    return sides


def answers_of(load: Load, count: int) -> dict[str, int]:
    """The next answers of a load, by version."""
    before = load.counts()

    def answers() -> dict[str, int]:
        return load.counts().since(before).by_version(status=None)

    wait_until(lambda: sum(answers().values()) >= count, timeout=PATIENCE, what=f"{count} answers")
    return answers()


STORIES: list[Story] = [
    the_better_reward_of_a_fixed_split_wins,
    only_chosen_users_see_the_candidate,
    a_parameter_of_the_query_chooses_and_all_of_an_item_must_match,
    a_canary_begins_with_requests_that_are_chosen,
    who_keeps_the_cookie_stays_on_one_side_until_the_test_ends,
    what_is_promoted_is_for_those_too_who_kept_the_cookie_of_the_baseline,
    a_shadow_answers_copies_that_nobody_sees_and_is_judged,
    a_shadow_that_fails_is_found_and_nobody_saw_it,
    a_blue_green_switch_is_one_change_of_the_weights,
    a_preview_reaches_the_candidate_before_an_approved_switch,
    pods_are_replaced_in_batches_without_a_router,
    an_elastic_release_is_taken_back_pod_by_pod_and_no_request_fails,
]


@pytest.mark.parametrize("story", STORIES, ids=sentence)
def test_strategies(play: Callable[[Story], None], story: Story) -> None:
    play(story)
