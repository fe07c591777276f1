"""What follows the end of an attempt, as a truth table."""

from __future__ import annotations

import itertools

import pytest

from lem_domain.states import FailureReason, RunState
from lem_server.attempts.endings import FollowUp, follow_up
from lem_server.attempts.queries import Outcome

NOTHING = FollowUp(None)
AGAIN_FOR_A_LOSS = FollowUp(RunState.QUEUED, losses=1)
AGAIN_FOR_A_RETRY = FollowUp(RunState.QUEUED, retries=1)
PUT_ASIDE = FollowUp(RunState.FAILED)


@pytest.mark.parametrize(
    ("outcome", "retries_left", "losses_left", "expected"),
    [
        ("interrupted", 0, 0, PUT_ASIDE),
        ("interrupted", 5, 0, PUT_ASIDE),
        ("interrupted", 0, 1, AGAIN_FOR_A_LOSS),
        ("interrupted", 5, 3, AGAIN_FOR_A_LOSS),
        ("failed", 0, 0, NOTHING),
        ("failed", 0, 3, NOTHING),
        ("failed", 1, 0, AGAIN_FOR_A_RETRY),
        ("failed", 5, 3, AGAIN_FOR_A_RETRY),
        ("cancelled", 5, 3, NOTHING),
    ],
)
def test_each_kind_of_ending_costs_its_own_budget(
    outcome: Outcome, retries_left: int, losses_left: int, expected: FollowUp
) -> None:
    assert (
        follow_up(
            outcome,
            FailureReason.WORKER_LOST,
            retries_left=retries_left,
            losses_left=losses_left,
            cancel_requested=False,
            campaign_cancelled=False,
        )
        == expected
    )


OUTCOMES: tuple[Outcome, ...] = ("failed", "interrupted", "cancelled")


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("reason", [FailureReason.WORKER_LOST, FailureReason.USER_PAUSED])
@pytest.mark.parametrize(("cancel_requested", "campaign_cancelled"), [(True, False), (False, True), (True, True)])
def test_nothing_follows_when_no_one_wants_the_run_any_more(
    outcome: Outcome, reason: FailureReason, cancel_requested: bool, campaign_cancelled: bool
) -> None:
    for retries_left, losses_left in itertools.product((0, 1, 3), repeat=2):
        assert (
            follow_up(
                outcome,
                reason,
                retries_left=retries_left,
                losses_left=losses_left,
                cancel_requested=cancel_requested,
                campaign_cancelled=campaign_cancelled,
            )
            == NOTHING
        )


@pytest.mark.parametrize(("retries_left", "losses_left"), [(0, 0), (2, 3)])
def test_a_pause_costs_nothing(retries_left: int, losses_left: int) -> None:
    assert follow_up(
        "interrupted",
        FailureReason.USER_PAUSED,
        retries_left=retries_left,
        losses_left=losses_left,
        cancel_requested=False,
        campaign_cancelled=False,
    ) == FollowUp(RunState.QUEUED)
