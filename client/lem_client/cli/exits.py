"""Exit codes, and what an error's lines are."""

from __future__ import annotations

from enum import IntEnum

from lem_client.errors import AnswerError, CredentialsError, FileError, InvalidRequest, Unauthenticated
from lem_domain.errors import ConfigurationError, LemError


class Exit(IntEnum):
    """What the shell is told. 3 is reserved for `gate`: not enough evidence."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class UsageProblem(LemError):
    """The command line can't be meant as it stands."""


class ProblemsInFile(LemError):
    """The server refused what a file says."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


def exit_code_of(error: LemError) -> Exit:
    """2 where the user's input is wrong, 1 where something failed."""
    wrong_input = (FileError, ProblemsInFile, UsageProblem, ConfigurationError, CredentialsError, InvalidRequest)
    return Exit.USAGE if isinstance(error, wrong_input) else Exit.FAILED


def sentences_of(error: LemError) -> tuple[str, ...]:
    """One sentence per problem."""
    if isinstance(error, FileError | ProblemsInFile):
        return error.problems
    if isinstance(error, Unauthenticated):
        return (f"{_sentence(error)} The token comes from --token-file, LEM_TOKEN or LEM_TOKEN_FILE.",)
    if isinstance(error, AnswerError) and error.findings:
        return tuple(f"{one.pointer}: {one.message}" if one.pointer else one.message for one in error.findings)
    return (str(error),)


def _sentence(error: LemError) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."
