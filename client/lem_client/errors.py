"""What can go wrong between a client and its server; each text is one sentence that tells what to change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from lem_domain.errors import FieldProblem, LemError, Problem, ProblemCode


class ServerUnreachable(LemError):
    """Nobody answers at the server's address."""

    def __init__(self, url: str, detail: str = "") -> None:
        super().__init__(f"no LEM server answers at {url}; start one with `lemctl up` or set LEM_SERVER.")
        self.url = url
        self.detail = detail
        """What the network said, for `--debug`."""


class NoAnswerInTime(LemError):
    """The server took the request and did not answer it in time."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(f"the server at {url} did not answer within {seconds:g} s; look at its log, then try again.")


class TransferBroken(LemError):
    """The server ended the transfer before all was there."""

    def __init__(self) -> None:
        super().__init__(
            "the transfer ended before the bundle was whole: the campaign changed meanwhile, or the connection broke; "
            "export it again (the server's log says more)."
        )


class CredentialsError(LemError):
    """The token can't be read."""


class FileError(LemError):
    """A campaign file, or one that it names, can't be used; `problems` holds one sentence each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


class AnswerError(LemError):
    """The server refused a request, or could not carry it out."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.status = status
        self.problem = problem

    @property
    def code(self) -> ProblemCode:
        """The stable code to branch on."""
        return self.problem.code

    @property
    def findings(self) -> tuple[FieldProblem, ...]:
        """Every problem of the input, where it applies."""
        return self.problem.errors


class Unauthenticated(AnswerError):
    """No token, or one that the server doesn't accept."""


class Forbidden(AnswerError):
    """The token doesn't allow this."""


class NotFound(AnswerError):
    """There is no such thing on this server."""


class InvalidRequest(AnswerError):
    """What was sent can't be accepted; `findings` lists every problem."""


class Conflict(AnswerError):
    """The state of things doesn't allow it now."""


class ServerFailed(AnswerError):
    """The server could not carry it out, or answers in a way this client doesn't understand."""


_BY_STATUS: Final[Mapping[int, type[AnswerError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
}


def error_of(status: int, body: bytes, *, url: str) -> AnswerError:
    """The error that an answer other than a success stands for."""
    refused = 400 <= status < 500 and status != 429
    kind = _BY_STATUS.get(status) or (InvalidRequest if refused else ServerFailed)
    try:
        return kind(status, Problem.model_validate(json.loads(body)))
    except (ValueError, ValidationError):
        return ServerFailed(status, unexpected(status, f"{url} answered {status}, but not as a LEM server does"))


def unexpected(status: int, what: str) -> Problem:
    """The problem for an answer that no LEM server of this version gives."""
    return Problem(
        type="about:blank",
        title="Unexpected answer",
        status=status,
        code=ProblemCode.INTERNAL,
        detail=f"{what}; check LEM_SERVER and that client and server have the same version.",
    )
