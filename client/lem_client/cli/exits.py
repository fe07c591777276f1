"""Exit codes of `lemctl`, and the lines that an error prints."""

from __future__ import annotations

from enum import IntEnum

from lem_client.errors import AnswerError, CredentialsError, FileError, InvalidRequest, Unauthenticated
from lem_domain.errors import ConfigurationError, LemError


class ExitCode(IntEnum):
    """Exit codes. Only `gate` has 3."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_ENOUGH_EVIDENCE = 3
    INTERRUPTED = 130


class UsageError(LemError):
    """The command line is invalid."""


class RefusedFile(FileError):
    """The server refused the content of a campaign file; `problems` name its lines."""


def exit_code_of(error: LemError) -> ExitCode:
    """Return 2 for an error in the user's input, 1 for any other."""
    wrong_input = (FileError, UsageError, ConfigurationError, CredentialsError, InvalidRequest)
    return ExitCode.USAGE if isinstance(error, wrong_input) else ExitCode.FAILED


def sentences_of(error: LemError) -> tuple[str, ...]:
    """Return one sentence per problem."""
    if isinstance(error, FileError):
        return error.problems
    if isinstance(error, Unauthenticated):
        return (f"{str(error).rstrip('.')}. The token comes from --token-file, LEM_TOKEN or LEM_TOKEN_FILE.",)
    if isinstance(error, AnswerError) and error.field_problems:
        return tuple(f"{one.pointer}: {one.message}" if one.pointer else one.message for one in error.field_problems)
    return (str(error),)
