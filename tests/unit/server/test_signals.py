"""A signal ends what runs before uvicorn listens, wherever Python is in that moment."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from lem_server.signals import Terminated, TerminationSignals

pytestmark = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def test_what_waits_on_a_loop_is_cancelled_and_cleans_up(number: signal.Signals) -> None:
    cleaned = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
        try:
            await _for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with TerminationSignals(0) as signals, pytest.raises(Terminated) as told:
        signals.run(work())
    assert told.value.code == 0
    assert cleaned == [True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_comes_while_garbage_is_collected_is_not_lost(number: signal.Signals) -> None:
    class Garbage:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            sum(range(10))  # the handler runs before the next instruction

    async def work() -> None:
        Garbage()
        await _for_ever()

    with TerminationSignals(None) as signals, pytest.raises(Terminated) as told:
        signals.run(work())
    assert told.value.code == 128 + number


def test_one_that_came_before_ends_it_before_it_begins(number: signal.Signals) -> None:
    begun = []

    async def work() -> None:
        begun.append(True)

    with TerminationSignals(0) as signals:
        with pytest.raises(Terminated):
            os.kill(os.getpid(), number)
            sum(range(10))
        with pytest.raises(Terminated):
            signals.run(work())
    assert begun == []


def test_without_a_signal_its_answer_comes_back(number: signal.Signals) -> None:
    async def work() -> int:
        return int(number)

    with TerminationSignals(0) as signals:
        assert signals.run(work()) == number
