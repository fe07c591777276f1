"""A process's end of its two pipes to the daemon, and the report of a failure."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping

from lem_domain.errors import LemError
from lem_domain.states import FailureReason
from lem_worker.process.protocol import (
    CONTROL_IN,
    CONTROL_OUT,
    ControlMessage,
    Failed,
    Joined,
    ToProcess,
    encode,
    to_process,
)
from lem_worker.process.spool import EvidenceWriter


class DaemonGone(LemError):
    """The daemon closed its end of a pipe, so no result is wanted any more."""


class ControlPipes:
    """Sends messages to the daemon and receives messages from it."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = b""
        for descriptor in (read_fd, write_fd):
            # An engine's children must not inherit the pipes: the daemon would not see that this process has ended.
            os.set_inheritable(descriptor, False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ControlPipes:
        """Open the pipes whose numbers the daemon put into the environment.

        Raises:
            LemError: this process was not started by the daemon.
        """
        try:
            return cls(int(environment[CONTROL_IN]), int(environment[CONTROL_OUT]))
        except (KeyError, ValueError):
            raise LemError(
                f"{CONTROL_IN} and {CONTROL_OUT} don't hold two pipe numbers; only lem-worker starts this module."
            ) from None

    @classmethod
    def connect(cls, socket_path: str, joined: Joined) -> ControlPipes:
        """Connect to the daemon's socket instead of two pipes, and send `joined` first.

        Raises:
            DaemonGone: the daemon does not listen any more.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(socket_path)
        except OSError:
            raise DaemonGone("the daemon closed its socket.") from None
        read_fd = connection.detach()
        pipes = cls(read_fd, os.dup(read_fd))
        pipes.send(joined)
        return pipes

    def send(self, message: ControlMessage) -> None:
        """Send a message.

        Raises:
            DaemonGone: the pipe is closed.
        """
        line = encode(message)
        try:
            while line:  # a pipe may take a part of a long line only
                line = line[os.write(self._write_fd, line) :]
        except BrokenPipeError:
            raise DaemonGone("the daemon closed the control pipe.") from None

    def receive(self, timeout_s: float | None = None) -> ToProcess | None:
        """Return the next message; None when none arrives in time. Without a timeout it waits without limit.

        Raises:
            DaemonGone: the pipe is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._read_fd], [], [], left)
            if not readable:
                return None
            received = os.read(self._read_fd, 65_536)
            if not received:
                raise DaemonGone("the daemon closed the control pipe.")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return to_process.validate_json(line)


def send_failure(control: ControlPipes, writer: EvidenceWriter, reason: FailureReason, message: str) -> None:
    """Seal the evidence so far and report to the daemon why the process ends."""
    try:
        streams = writer.seal()
    except LemError as error:  # a full disk may be the failure itself
        streams = ()
        message = f"{message} The evidence so far is lost: {error}"
    control.send(Failed(reason=reason, message=message, streams=streams))
