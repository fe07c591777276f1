"""Request and token times: every token counted once, in order, for lockstep and for interleaved engines."""

from collections.abc import Sequence

import numpy as np
import pytest

from lem_domain.evidence.codec import decode_chunk, encode_chunk
from lem_domain.evidence.streams import STREAMS, PhaseName, StreamName
from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder, RecordingError, RequestFailed, Sinks
from lem_worker.rank.token_digests import OutputLedger, digest_of_set, digest_of_tokens


class Table:
    """A stream in memory that accepts exactly the columns of the real one."""

    def __init__(self, stream: StreamName) -> None:
        self.stream = stream
        self.columns: dict[str, list[object]] = {column.name: [] for column in STREAMS[stream]}

    def append(self, **columns: object) -> None:
        self.extend(**{name: [value] for name, value in columns.items()})

    def extend(self, **columns: Sequence[object]) -> None:
        assert set(columns) == set(self.columns)
        assert len({len(values) for values in columns.values()}) == 1
        for name, values in columns.items():
            self.columns[name] += list(values)

    def rows(self) -> list[dict[str, object]]:
        """As the server would read them."""
        return decode_chunk(self.stream, encode_chunk(self.stream, self.columns)).to_pylist()


class Evidence:
    def __init__(self, *, tokens: bool = True) -> None:
        self.requests = Table(StreamName.REQUESTS)
        self.tokens = Table(StreamName.TOKENS)
        self.outputs = OutputLedger(keep_ids=True)
        self.recorder = Recorder(
            PhaseName.MEASURE, Sinks(self.requests, self.tokens if tokens else None, self.outputs), clock=lambda: 0
        )


def request(request_id: int, *token_ids: int) -> Request:
    return Request(request_id, prompt_index=10 + request_id, token_ids=token_ids or (1, 2, 3), seed=0)


def ids(*request_ids: int) -> np.ndarray:
    return np.array(request_ids, dtype=np.int64)


def test_a_lockstep_batch_becomes_rows() -> None:
    evidence = Evidence()
    recorder = evidence.recorder
    recorder.release([request(0), request(1, 9)], 100)
    recorder.scheduled(ids(0, 1), 110, batch_id=7)
    recorder.tokens(ids(0, 1), 120)
    recorder.tokens(ids(0, 1), 130)
    recorder.tokens(ids(0), 140)
    recorder.finished(0, "length", [5, 6, 7])
    recorder.finished(1, "stop", [5, 2])
    recorder.drain()
    first, second = evidence.requests.rows()
    assert first == {
        "request_id": 0,
        "prompt_index": 10,
        "arrival_ns": 100,
        "scheduled_ns": 110,
        "first_token_ns": 120,
        "last_token_ns": 140,
        "prompt_tokens": 3,
        "cached_prompt_tokens": None,
        "generated_tokens": 3,
        "finish_reason": "length",
        "batch_id": 7,
        "error": None,
        "released_ns": None,
    }
    assert (second["last_token_ns"], second["generated_tokens"], second["finish_reason"]) == (130, 2, "stop")
    assert [tuple(row.values()) for row in evidence.tokens.rows()] == [
        (0, 0, 120),
        (0, 1, 130),
        (0, 2, 140),
        (1, 0, 120),
        (1, 1, 130),
    ]
    assert (recorder.requests_done, recorder.generated_tokens, recorder.last_token_ns) == (2, 5, 140)


def test_several_tokens_of_a_request_in_one_step_share_a_time() -> None:
    evidence = Evidence()
    evidence.recorder.release([request(0)], 0)
    evidence.recorder.tokens(ids(0, 0, 0), 50)
    evidence.recorder.finished(0, "length", [1, 2, 3])
    evidence.recorder.drain()
    assert [(row["index"], row["time_ns"]) for row in evidence.tokens.rows()] == [(0, 50), (1, 50), (2, 50)]


def test_a_drain_in_the_middle_of_a_request_changes_nothing() -> None:
    def record(drain_after: set[int]) -> tuple[list[dict[str, object]], list[tuple[object, ...]]]:
        evidence = Evidence()
        recorder = evidence.recorder
        recorder.release([request(0), request(1), request(2)], 0)
        steps = [(0,), (0, 1), (2, 1, 0), (2, 1), (2, 2)]
        for number, step in enumerate(steps):
            recorder.tokens(ids(*step), 10 * number)
            if number in drain_after:
                recorder.drain()
        for request_id, count in ((0, 3), (1, 3), (2, 4)):
            recorder.finished(request_id, "length", list(range(count)))
        recorder.drain()
        return evidence.requests.rows(), sorted(tuple(row.values()) for row in evidence.tokens.rows())

    assert record(set()) == record({0}) == record({1, 2}) == record({0, 1, 2, 3, 4})


def test_the_buffers_grow_without_losing_anything() -> None:
    evidence = Evidence()
    evidence.recorder.release([request(0)], 0)
    count = 200_000
    for begin in range(0, count, 1000):
        evidence.recorder.tokens(ids(*[0] * 1000), begin)
    evidence.recorder.finished(0, "length", range(count))
    evidence.recorder.drain()
    assert evidence.tokens.columns["index"] == list(range(count))


def test_without_token_times_the_counts_and_latencies_stay() -> None:
    evidence = Evidence(tokens=False)
    evidence.recorder.release([request(0)], 0)
    evidence.recorder.tokens(ids(0), 5)
    evidence.recorder.tokens(ids(0), 9)
    evidence.recorder.finished(0, "length", [1, 2])
    evidence.recorder.drain()
    assert evidence.tokens.columns["index"] == []
    row = evidence.requests.rows()[0]
    assert (row["generated_tokens"], row["first_token_ns"], row["last_token_ns"]) == (2, 5, 9)


def test_an_adapter_that_miscounts_is_found_out() -> None:
    evidence = Evidence()
    evidence.recorder.release([request(0)], 0)
    evidence.recorder.tokens(ids(0), 5)
    evidence.recorder.finished(0, "length", [1, 2])
    with pytest.raises(RecordingError, match="1 token times but 2 tokens"):
        evidence.recorder.drain()


def test_requests_in_flight_at_a_failure_are_written_as_failed() -> None:
    evidence = Evidence()
    evidence.recorder.release([request(0), request(1)], 0)
    evidence.recorder.tokens(ids(0, 1), 5)
    evidence.recorder.finished(0, "length", [1])
    evidence.recorder.abandon("the engine fell over.")
    rows = evidence.requests.rows()
    assert [(row["request_id"], row["generated_tokens"], row["error"]) for row in rows] == [
        (0, 1, None),
        (1, 1, "the engine fell over."),
    ]


def test_without_sinks_it_only_counts() -> None:
    recorder = Recorder(PhaseName.WARMUP)
    recorder.release([request(0)], 0)
    recorder.tokens(ids(0), 5)
    recorder.finished(0, "length", [1])
    recorder.drain()
    assert (recorder.requests_done, recorder.generated_tokens) == (1, 1)


def test_the_digest_is_of_the_first_repetition_and_knows_whether_others_differ() -> None:
    ledger, again = OutputLedger(keep_ids=True), OutputLedger(keep_ids=False)
    for index, tokens in ((1, [4, 5]), (0, [1, 2, 3])):
        ledger.add(index, tokens)
    for index, tokens in ((0, [1, 2, 3]), (1, [4, 5]), (0, [1, 2, 3]), (1, [4, 6])):
        again.add(index, tokens)
    assert ledger.digest() == again.digest()
    assert (ledger.repeats, again.repeats) == (True, False)
    assert list(ledger.kept()) == [(0, [1, 2, 3]), (1, [4, 5])]
    assert list(again.kept()) == []
    assert digest_of_set([(0, digest_of_tokens([1]))]) != digest_of_set([(1, digest_of_tokens([1]))])


def test_a_request_that_the_engine_gives_up_is_kept_with_its_error_and_the_others_continue() -> None:
    evidence = Evidence()
    recorder = evidence.recorder
    recorder.release([request(0), request(1)], 100)
    recorder.tokens(ids(0, 1), 120)
    recorder.failed(0, "the engine gave it up.")
    recorder.tokens(ids(1), 130)
    recorder.finished(1, "length", [5, 6])
    assert (recorder.requests_done, recorder.requests_failed, recorder.requests_ended) == (1, 1, 2)
    recorder.drain()
    given_up, done = sorted(evidence.requests.rows(), key=lambda row: str(row["request_id"]))
    assert (given_up["error"], given_up["finish_reason"], given_up["generated_tokens"]) == (
        "the engine gave it up.",
        None,
        1,
    )
    assert (done["error"], done["generated_tokens"]) == (None, 2)
    assert [index for index, _ in evidence.outputs.kept()] == [11], "what came of it is no output"


def test_a_request_that_is_given_up_before_the_window_ends_the_attempt() -> None:
    recorder = Recorder(PhaseName.WARMUP, clock=lambda: 0)
    recorder.release([request(0)], 100)
    with pytest.raises(RequestFailed, match="gave it up"):
        recorder.failed(0, "the engine gave it up.")
