"""Delays between attempts, and which statuses are transient."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lem_domain.retries import CLIENT_RETRIES, STREAM_RETRIES, WORKER_RETRIES, RetryPolicy

EVERY = (CLIENT_RETRIES, STREAM_RETRIES, WORKER_RETRIES)


def longest(policy: RetryPolicy) -> RetryPolicy:
    return replace(policy, uniform=lambda _, high: high)


def shortest(policy: RetryPolicy) -> RetryPolicy:
    return replace(policy, uniform=lambda low, _: low)


@pytest.mark.parametrize("policy", EVERY)
def test_delays_double_up_to_the_longest_one(policy: RetryPolicy) -> None:
    delays = [longest(policy).delay_s(attempt) for attempt in range(1, 10)]
    assert delays[0] == policy.first_delay_s
    assert delays[1] == 2 * policy.first_delay_s
    assert delays[-1] == policy.longest_delay_s


def test_a_worker_that_retries_for_days_does_not_overflow() -> None:
    assert longest(WORKER_RETRIES).delay_s(10**6) == WORKER_RETRIES.longest_delay_s


@pytest.mark.parametrize("policy", EVERY)
def test_the_delay_that_the_server_asks_for_is_the_least_within_its_bound(policy: RetryPolicy) -> None:
    assert shortest(policy).delay_s(1, "3") == 3
    assert longest(policy).delay_s(5, "3") == 3 + policy.first_delay_s
    assert shortest(policy).delay_s(1, "86400") == policy.longest_asked_s


@pytest.mark.parametrize("asked", [None, "", "0", "Wed, 21 Oct 2015 07:28:00 GMT", "-1", "1.5"])
def test_what_is_no_number_of_seconds_is_ignored(asked: str | None) -> None:
    assert longest(CLIENT_RETRIES).delay_s(1, asked) == CLIENT_RETRIES.first_delay_s


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_transient_statuses_are_those_of_every_policy(status: int) -> None:
    assert all(policy.is_transient(status) for policy in EVERY)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 409, 422])
def test_other_statuses_are_final(status: int) -> None:
    assert not any(policy.is_transient(status) for policy in EVERY)


def test_a_worker_retries_every_server_error() -> None:
    assert WORKER_RETRIES.is_transient(500)
    assert not CLIENT_RETRIES.is_transient(500)
