import json

import pytest

from rl.config import WatchdogSection
from rl.records import ScoredGroup
from rl.runs.watchdog import TEACHER_GOAL, Alarm, StepSignals, Watchdog, WatchdogState, collapse_metrics
from tests.reference.scored_groups import scored_group

SETTINGS = WatchdogSection(patience=3, max_drop=0.15, max_answer_share=0.5, max_unparsable_share=0.9, window=3)


def steps(dog: Watchdog, *, shares: list[float] | None = None, unparsable: list[float] | None = None,
          num_questions: int = 32) -> list[Alarm | None]:
    length = len(shares or unparsable or [])
    signals = zip(shares or [0.1] * length, unparsable or [0.0] * length, strict=True)
    return [dog.observe_step(StepSignals(step, 0.5, num_questions, share, no_answer))
            for step, (share, no_answer) in enumerate(signals, start=1)]


def evaluations(dog: Watchdog, *pairs: tuple[float, float | None], noise: float = 0.0) -> list[Alarm | None]:
    return [
        dog.observe_evaluation(10 * index, accuracy, reward, noise) for index, (accuracy, reward) in enumerate(pairs)]


def test_accuracy_that_falls_for_patience_evaluations_while_reward_rises_alarms() -> None:
    alarms = evaluations(Watchdog(SETTINGS), (0.50, None), (0.48, 0.4), (0.46, 0.5), (0.44, 0.6))
    assert alarms[:3] == [None, None, None]
    assert alarms[3] is not None and alarms[3].rule == "falling_accuracy" and alarms[3].step == 30
    for part in ("0.500 > 0.480 > 0.460 > 0.440", "0.400 to 0.600", "watchdog.patience"):
        assert part in alarms[3].message


@pytest.mark.parametrize("pairs", [
    # the reward falls too: learning goes badly, nothing is gamed
    [(0.50, None), (0.48, 0.6), (0.46, 0.5), (0.44, 0.4)],
    [(0.50, None), (0.48, 0.4), (0.49, 0.5), (0.44, 0.6)],  # not in a row
    [(0.50, None), (0.48, 0.4), (0.48, 0.5), (0.44, 0.6)],  # an equal accuracy is no fall
    [(0.50, None), (0.48, 0.4), (0.46, 0.5)],  # one too few
    [(0.30, None), (0.50, 0.4), (0.70, 0.6), (0.95, 0.9)],  # a good run
])
def test_sequences_that_are_no_gamed_reward_stay_silent(pairs: list[tuple[float, float | None]]) -> None:
    assert evaluations(Watchdog(SETTINGS), *pairs) == [None] * len(pairs)


def test_without_rewards_the_alarms_speak_of_the_teacher() -> None:
    [*_, fell] = evaluations(Watchdog(SETTINGS, TEACHER_GOAL), (0.50, None), (0.48, -0.4), (0.46, -0.3), (0.44, -0.2))
    assert fell is not None and fell.rule == "falling_accuracy"
    assert (
        "while minus the distance to the teacher (distillation/reverse_kl) rose from -0.400 to -0.200" in fell.message)
    assert (
        "the reward" not in fell.message
        and "with another teacher, rewards beside it or a lower optim.lr" in fell.message)


def test_a_fall_within_the_accuracys_noise_stays_silent() -> None:
    pairs: list[tuple[float, float | None]] = [(0.970, 0.90), (0.968, 0.91), (0.966, 0.92), (0.964, 0.93)]
    assert evaluations(Watchdog(SETTINGS), *pairs, noise=0.01) == [None] * 4
    assert evaluations(Watchdog(SETTINGS), *pairs, noise=0.001)[3] is not None


def test_patience_one_compares_the_reward_with_that_of_the_evaluation_before() -> None:
    settings = WatchdogSection(patience=1)
    assert evaluations(Watchdog(settings), (0.5, 0.4), (0.49, 0.5))[1] is not None
    assert evaluations(Watchdog(settings), (0.5, None), (0.49, 0.5))[1] is None


def test_accuracy_further_below_the_best_than_max_drop_alarms_and_exactly_max_drop_does_not() -> None:
    dog = Watchdog(SETTINGS)
    assert evaluations(dog, (0.35, None), (0.70, 0.5), (0.55, 0.4)) == [None] * 3
    alarm = dog.observe_evaluation(30, 0.549, 0.4)
    assert alarm is not None and alarm.rule == "accuracy_drop"
    for part in ("0.549", "0.700 at step 10", "watchdog.max_drop", "0.15"):
        assert part in alarm.message


def test_a_reward_that_rises_without_any_gained_accuracy_alarms() -> None:
    """The accuracies go up and down, so that no fall in a row is seen, and have no room for a deep one."""
    pairs: list[tuple[float, float | None]] = [
        (0.07, None), (0.05, 0.1), (0.08, 0.2), (0.05, 0.3), (0.07, 0.4), (0.06, 0.5)]
    alarms = evaluations(Watchdog(SETTINGS), *pairs, noise=0.02)
    assert alarms[:5] == [None] * 5
    assert alarms[5] is not None and alarms[5].rule == "nothing_gained" and alarms[5].step == 50
    for part in ("0.100 to 0.500", "0.062 on average, 0.070 before", "watchdog.max_vain_evaluations"):
        assert part in alarms[5].message
    more_patient = SETTINGS.model_copy(update={"max_vain_evaluations": 6})
    assert evaluations(Watchdog(more_patient), *pairs, noise=0.02) == [None] * 6


@pytest.mark.parametrize("pairs", [
    [(0.07, None), (0.05, 0.1), (0.08, 0.2), (0.05, 0.3), (0.07, 0.3), (0.06, 0.5)],  # the reward stood still once
    # gained, then a plateau
    [(0.40, None), (0.60, 0.4), (0.61, 0.5), (0.60, 0.6), (0.61, 0.7), (0.60, 0.8), (0.61, 0.9)],
    # a gain of half of the reward's, 0.05 on average
    [(0.07, None), (0.09, 0.1), (0.10, 0.2), (0.12, 0.3), (0.14, 0.4), (0.15, 0.5)],
    # a reward on a larger scale: 0.026 is above the noise
    [(0.07, None), (0.09, 1.0), (0.10, 2.0), (0.09, 3.0), (0.10, 4.0), (0.10, 5.0)],
])
def test_gain_or_standing_reward_is_not_in_vain(pairs: list[tuple[float, float | None]]) -> None:
    assert evaluations(Watchdog(SETTINGS), *pairs, noise=0.02) == [None] * len(pairs)


def test_a_student_may_come_near_a_teacher_that_is_as_often_right() -> None:
    rising = [(0.50, None), *((0.50, -0.5 + 0.1 * step) for step in range(8))]
    assert evaluations(Watchdog(WatchdogSection()), *rising)[-1] is not None
    assert set(evaluations(Watchdog(WatchdogSection(), TEACHER_GOAL), *rising)) == {None}


def test_a_gain_below_a_tenth_of_the_rewards_rise_is_in_vain() -> None:
    """0.009 and 0.011 on average, for a reward that rose by 0.1: the bound is 0.01."""
    rewards = [0.20, 0.22, 0.25, 0.27, 0.30]
    for gain, is_vain in ((0.009, True), (0.011, False)):
        alarm = evaluations(
            Watchdog(SETTINGS), (0.10, None), *((0.10 + gain, reward) for reward in rewards), noise=0.03
        )[-1]
        assert (alarm is not None) == is_vain


def test_one_majority_answer_for_window_steps_in_a_row_alarms() -> None:
    alarms = steps(Watchdog(SETTINGS), shares=[0.6, 0.7, 0.2, 0.6, 0.7, 0.8])
    assert alarms[:5] == [None] * 5
    assert alarms[5] is not None and alarms[5].rule == "one_answer"
    for part in ("3 steps in a row", "80% of 32", "50%", "watchdog.max_answer_share"):
        assert part in alarms[5].message


def test_a_share_at_its_bound_does_not_alarm() -> None:
    assert steps(Watchdog(SETTINGS), shares=[0.5] * 5, unparsable=[0.9] * 5) == [None] * 5


def test_batches_of_fewer_than_four_questions_never_alarm_for_one_answer_and_do_not_break_a_row() -> None:
    assert steps(Watchdog(SETTINGS), shares=[1.0] * 6, num_questions=3) == [None] * 6
    dog = Watchdog(SETTINGS)
    steps(dog, shares=[0.9, 0.9])
    assert steps(dog, shares=[0.3], num_questions=3) == [None]
    assert steps(dog, shares=[0.9])[0] is not None


def test_unparsable_completions_for_window_steps_in_a_row_alarm() -> None:
    alarms = steps(Watchdog(SETTINGS), unparsable=[0.95, 0.1, 0.95, 0.96, 1.0])
    assert alarms[:4] == [None] * 4
    assert (
        alarms[4] is not None
        and alarms[4].rule == "unparsable"
        and "watchdog.max_unparsable_share" in alarms[4].message)


def test_a_watchdog_that_is_switched_off_never_alarms() -> None:
    dog = Watchdog(WatchdogSection(enabled=False))
    assert steps(dog, shares=[1.0] * 5, unparsable=[1.0] * 5) == [None] * 5
    assert evaluations(dog, (0.9, None), (0.1, 0.5)) == [None, None]


@pytest.mark.parametrize("cut", range(6))
def test_a_resumed_watchdog_judges_as_the_uninterrupted_one(cut: int) -> None:
    shares = [0.2, 0.6, 0.7, 0.2, 0.6, 0.6, 0.6]
    accuracies = [(0.50, None), (0.52, 0.3), (0.50, 0.4), (0.48, 0.5), (0.46, 0.6), (0.47, 0.7), (0.3, 0.7)]

    def run(dog: Watchdog, start: int, end: int) -> tuple[Watchdog, list[Alarm | None]]:
        alarms = []
        for index in range(start, end):
            dog.measure([scored_group(str(question), [str(index // 2)] * 2) for question in range(4)])
            alarms.append(dog.observe_step(StepSignals(index, 0.5, 32, shares[index], 0.0)))
            alarms.append(dog.observe_evaluation(index, *accuracies[index]))
        return dog, alarms

    whole, expected = run(Watchdog(SETTINGS), 0, 7)
    first, before = run(Watchdog(SETTINGS), 0, cut)
    second = Watchdog(SETTINGS)
    second.load_state(WatchdogState.from_json(json.loads(json.dumps(first.state().to_json()))))
    second, after = run(second, cut, 7)
    assert before + after == expected
    assert {alarm.rule for alarm in expected if alarm} == {
        "falling_accuracy", "nothing_gained", "accuracy_drop", "one_answer"}
    assert second.state() == whole.state()


def batch() -> list[ScoredGroup]:
    return [
        scored_group("a", ["7", "7", "7", "7"]),
        scored_group("b", [" 7", " 7", "8", None]),
        scored_group("c", ["1", "1", "2", "2"]),  # a tie: no majority
        scored_group("d", [None, None, None, None], truncated=[0, 1]),
    ]


def test_hand_counted_collapse_metrics() -> None:
    metrics, majorities = collapse_metrics(batch(), {"a": "5", "b": "7", "z": "1"})
    assert majorities == {"a": "7", "b": "7", "z": "1"}
    assert metrics == {
        "num_questions": 4.0,
        "majority_answer_share": 0.5,  # 7 for a and b, of four questions
        "num_distinct_answers": 4.0,  # 7, 8, 1, 2
        "unanimous_share": 0.25,  # a; four completions without an answer do not agree
        "majority_flip_share": 0.5,  # a changed, b did not
        "completion_length": 5.0,
        "no_reasoning_share": 0.0,
        "unparsable_share": 5 / 16,
        "truncated_share": 2 / 16,
    }


def test_collapse_metrics_do_not_depend_on_the_order_of_groups_and_leave_the_memory_alone() -> None:
    memory = {"a": "5"}
    assert collapse_metrics(batch(), memory) == collapse_metrics(batch()[::-1], memory)
    assert memory == {"a": "5"}


def test_a_question_that_comes_twice_in_a_batch_counts_once() -> None:
    groups = [scored_group("a", ["7", "7"]), scored_group("a", ["7", "7"]), scored_group("b", ["1", "1"])]
    metrics, _ = collapse_metrics(groups, {})
    assert metrics["num_questions"] == 2 and metrics["majority_answer_share"] == 0.5


@pytest.mark.parametrize(("text", "prefix", "expected"), [
    ("\\boxed{5}", "", 1.0),
    ("$\\boxed{5}$", "", 1.0),
    ("2+3=5 so \\boxed{5}", "", 0.0),
    ("<think>\n</think>\n<answer>5</answer>", "<think>\n", 1.0),
    ("<think>\n2 and 3 make 5</think>\n<answer>5</answer>", "<think>\n", 0.0),
    ("#### 5", "", 1.0),
    ("The answer is 5", "", 0.0),
    ("5", "", 1.0),
])
def test_a_completion_that_begins_with_its_answer_has_no_reasoning(text: str, prefix: str, expected: float) -> None:
    metrics, _ = collapse_metrics(
        [scored_group("a", ["5", None], texts=[text, "nothing"], assistant_prefix=prefix)], {})
    assert metrics["no_reasoning_share"] == expected


def test_metrics_of_no_group_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        collapse_metrics([], {})
