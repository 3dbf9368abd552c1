"""The scenarios that every peer has been bitten by, and the tests that play them on a real API server or with real traffic.

One row each: what happens and what must come of it, in our words, and where it is played, as `folder/module.py::test` or
`folder/module.py::story`. `tests/unit/test_scenarios.py` holds the table against the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

RELEASES, DISTURBANCES = "cluster/test_releases.py", "cluster/test_disturbances.py"
SCENARIOS_, OPERATORS, KILLS = (
    "cluster/test_scenarios.py",
    "cluster/test_operators.py",
    "cluster/test_kills.py",
)
LAB, LAB_ROUTERS = "lab/test_rollouts.py", "lab/test_routers.py"


@dataclass(frozen=True)
class Scenario:
    number: int
    what: str
    tests: tuple[str, ...]


def _row(number: int, what: str, *tests: str) -> Scenario:
    return Scenario(number, what, tests)


SCENARIOS = (
    _row(
        1,
        "A step with a timed wait is aborted, tried again and finished; the events come in exactly this order.",
        f"{SCENARIOS_}::a_step_is_aborted_tried_again_and_finished_and_the_events_tell_it_in_order",
    ),
    _row(
        2,
        "Somebody promotes from the middle of the plan; the history says that nothing was proven.",
        f"{RELEASES}::promote_skips_what_is_left_and_the_history_says_that_nothing_was_proven",
    ),
    _row(
        3,
        "The new image does not exist: what serves keeps all its pods, and a second bad revision replaces the first.",
        f"{SCENARIOS_}::an_image_that_is_not_there_takes_nothing_from_what_serves_and_the_next_bad_one_replaces_it",
        f"{LAB}::an_image_that_does_not_exist_is_named",
    ),
    _row(
        4,
        "The very first deployment is broken and then fixed.",
        f"{RELEASES}::a_first_deployment_that_is_broken_is_replaced_by_the_fixed_one",
    ),
    _row(
        5,
        "Template and replicas change in one apply, twice, in the middle of a pause.",
        f"{RELEASES}::template_and_replicas_may_change_in_one_apply_in_the_middle_of_a_pause",
    ),
    _row(
        6,
        "A spec that can't be accepted stops only what goes forward, and a good one heals it.",
        f"{DISTURBANCES}::a_template_that_the_api_server_refuses_is_told_in_its_words_and_healed_by_a_good_one",
        f"{DISTURBANCES}::an_invalid_edit_in_the_middle_of_a_step_freezes_only_what_goes_forward",
    ),
    _row(
        7,
        "A pause may last longer than the progress deadline.",
        f"{SCENARIOS_}::a_pause_that_is_longer_than_the_progress_deadline_is_no_timeout",
    ),
    _row(
        8,
        "Pods that are lost during a pause are waited for until the progress deadline, and no longer.",
        f"{SCENARIOS_}::a_candidate_that_loses_its_pods_while_paused_is_rolled_back_at_the_deadline",
    ),
    _row(
        9,
        "Replicas go up and down while the rollout is paused and while a pod is not ready.",
        f"{SCENARIOS_}::replicas_go_up_and_down_while_paused_and_while_a_pod_is_not_ready",
        f"{RELEASES}::replicas_written_through_the_scale_subresource_grow_both_sides_without_a_drop_of_the_weight",
    ),
    _row(
        10,
        "The plan is raised, lowered and taken away in the middle of a step; no edit raises the weight.",
        f"{SCENARIOS_}::a_plan_that_is_raised_or_taken_away_in_a_step_raises_no_weight_by_itself",
        f"{RELEASES}::an_edit_of_the_plan_never_raises_the_weight_and_keeps_the_evidence",
    ),
    _row(
        11,
        "The candidate's size is set apart from its weight.",
        f"{SCENARIOS_}::the_size_of_the_candidate_is_set_apart_from_its_weight",
    ),
    _row(
        12,
        "The baseline has shrunk: an abort moves traffic only as pods can carry it, and then drains.",
        f"{SCENARIOS_}::the_way_back_to_a_shrunken_baseline_moves_traffic_only_as_pods_can_carry_it",
    ),
    _row(
        13,
        "A third revision comes while the baseline is shrunk.",
        f"{SCENARIOS_}::a_third_revision_waits_until_a_shrunken_baseline_has_grown_again",
    ),
    _row(
        14,
        "A release is interrupted by the next one: no weight on a version without pods at any time.",
        f"{RELEASES}::the_third_revision_in_a_row_is_what_gets_promoted",
        f"{LAB}::three_revisions_in_a_row_end_with_the_last",
    ),
    _row(
        15,
        "The router does not take a write: the step waits and says why.",
        f"{SCENARIOS_}::a_router_that_refuses_a_write_holds_the_step_and_is_named_until_it_takes_it",
        f"{RELEASES}::a_route_that_the_gateway_refuses_is_rolled_back_once_it_is_read_back",
    ),
    _row(
        16,
        "After an abort the pods stay for the drain delay.",
        f"{SCENARIOS_}::an_abort_keeps_the_pods_for_the_drain_delay",
    ),
    _row(
        17,
        "The analysis goes on through a pause, and finds harm in it.",
        f"{RELEASES}::a_pause_holds_weight_and_clock_until_it_is_resumed",
        f"{SCENARIOS_}::harm_is_found_in_a_pause_as_well",
    ),
    _row(
        18,
        "Nothing is proven in time: a pause with the reason, until somebody decides.",
        f"{SCENARIOS_}::what_can_not_be_proven_in_time_pauses_with_the_reason_until_somebody_decides",
    ),
    _row(
        19,
        "One of several metrics is bad, and that is enough.",
        f"{LAB}::a_wrong_but_up_model_is_rolled_back_for_its_quality",
        f"{LAB}::a_model_with_a_slow_tail_is_rolled_back_for_its_latency",
    ),
    _row(
        20,
        "A guardrail in dry run tells and decides nothing.",
        f"{RELEASES}::a_guardrail_that_is_breached_rolls_back_and_one_in_dry_run_only_tells",
    ),
    _row(
        21,
        "Failures of a guardrail count only in a row.",
        f"{SCENARIOS_}::a_guardrail_counts_only_failures_in_a_row",
    ),
    _row(
        22,
        "Prometheus answers with NaN, Inf, nothing, two series, 503, HTML, or late: all of it holds, none of it decides.",
        *(
            f"{DISTURBANCES}::prometheus_that_answers_with_{mode}_for_a_while_holds_and_then_the_release_is_finished"
            for mode in ("nan", "inf", "empty", "duplicate", "503", "html", "slow")
        ),
        f"{LAB}::pods_do_not_wait_for_a_prometheus_that_hangs",
    ),
    _row(
        23,
        "The spec goes back to the old version during the watch: no new release.",
        f"{RELEASES}::going_back_to_the_old_version_during_the_watch_is_no_new_release",
    ),
    _row(
        24,
        "The operator's view of the cluster is seconds old: what it writes meanwhile is refused or still right.",
        f"{OPERATORS}::an_operator_whose_watches_are_late_ends_as_one_whose_are_not",
        f"{DISTURBANCES}::another_client_that_writes_the_status_and_labels_only_causes_new_decisions",
    ),
    _row(
        25,
        "The pods for the promotion do not come: back, and the candidate never carried more than its step.",
        f"{SCENARIOS_}::a_promotion_whose_pods_do_not_come_goes_back_and_the_candidate_never_carried_more_than_its_step",
    ),
    _row(
        26,
        "A new revision comes during the analysis.",
        f"{RELEASES}::the_third_revision_in_a_row_is_what_gets_promoted",
    ),
    _row(
        27,
        "Injected errors are found and rolled back, with real requests.",
        f"{LAB}::a_failing_model_is_rolled_back_for_its_errors",
    ),
    _row(
        28,
        "The promoted spec applied again starts nothing; a rejected one is tried again only on request.",
        f"{SCENARIOS_}::the_promoted_spec_applied_again_starts_nothing",
        f"{RELEASES}::a_harmful_model_is_rolled_back_and_only_tried_again_on_request",
    ),
    _row(
        29,
        "An image that can't start is not promoted even without an analysis.",
        f"{SCENARIOS_}::without_an_analysis_an_image_that_can_not_start_is_not_promoted",
    ),
    _row(
        30,
        "Odd lists of steps are walked as they are written, or refused.",
        f"{SCENARIOS_}::one_step_of_99_percent_and_no_length",
        f"{SCENARIOS_}::one_step_of_1_percent",
        f"{SCENARIOS_}::twelve_steps_of_the_same_weight",
        f"{SCENARIOS_}::steps_without_a_length",
        "cluster/test_crd.py::test_refused_with_the_field_and_the_sentence_that_python_says",
    ),
    _row(
        31,
        "The operator is killed at each of its writes, on either side of it.",
        f"{KILLS}::test_killed_at_each_write_it_ends_the_same",
        "cluster/test_crashes.py::test_the_outcome_is_as_if_nothing_had_happened",
    ),
    _row(
        32,
        "Prometheus is away for long: everything is held, then parked, and nothing is rolled back.",
        f"{DISTURBANCES}::a_prometheus_that_is_stopped_holds_all_rollouts_and_none_is_rolled_back",
        f"{DISTURBANCES}::a_long_outage_parks_the_candidate_without_traffic_and_keeps_its_pods",
        f"{LAB}::without_prometheus_a_release_is_held_and_then_finished",
    ),
    _row(
        33,
        "A GitOps tool applies its route again in the middle of a step.",
        f"{DISTURBANCES}::a_route_that_another_writer_reverts_is_put_right_and_contested_after_three_times",
        f"{LAB_ROUTERS}::what_a_gitops_tool_puts_back_is_put_right_and_deletion_restores_it",
    ),
    _row(
        34,
        "Two objects name one target: the later one is refused until the first is gone.",
        f"{DISTURBANCES}::of_two_rollouts_on_one_service_the_later_waits_until_the_first_is_gone",
    ),
    _row(
        35,
        "The API server is away for longer than the operator may lead: nothing is lost.",
        f"{OPERATORS}::test_an_api_server_that_is_away_for_longer_than_the_lease_lives_loses_nothing",
        f"{OPERATORS}::test_an_api_server_that_is_killed_and_comes_back_loses_nothing",
    ),
    _row(
        36,
        "Fifty rollouts at once while everything fails: none stuck, none wrong.",
        "cluster/test_fifty.py::test_each_has_the_outcome_that_it_deserves",
        "cluster/test_fifty.py::test_no_weight_was_given_to_what_had_no_ready_pod",
    ),
)
