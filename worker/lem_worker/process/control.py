"""The process's end of the two pipes to the daemon, and how a failure is told."""

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
    decode_to_process,
    encode,
)
from lem_worker.process.spool import EvidenceWriter


class DaemonGone(LemError):
    """The other end of a pipe is closed; nobody wants the result any more."""


class ControlPipes:
    """Sends messages to the daemon and receives its own."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._buffer = b""
        for descriptor in (read_fd, write_fd):
            # An engine's children must not hold the pipes open after this process is gone.
            os.set_inheritable(descriptor, False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ControlPipes:
        """The pipes that the daemon named.

        Raises:
            LemError: this process was not started by the daemon.
        """
        try:
            return cls(int(environment[CONTROL_IN]), int(environment[CONTROL_OUT]))
        except (KeyError, ValueError):
            raise LemError(
                f"{CONTROL_IN} and {CONTROL_OUT} don't name two pipes; let lem-worker start this module."
            ) from None

    @classmethod
    def connect(cls, socket_path: str, joined: Joined) -> ControlPipes:
        """Both pipes as one socket of the daemon, which is told who connects.

        Raises:
            DaemonGone: nobody listens any more.
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
        """Raises DaemonGone when nobody reads."""
        line = encode(message)
        try:
            while line:
                line = line[os.write(self._write_fd, line) :]
        except BrokenPipeError:
            raise DaemonGone("the daemon closed the control pipe.") from None

    def receive(self, timeout_s: float | None = None) -> ToProcess | None:
        """The next message, or None when none came in time; without a timeout it waits for ever.

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
        return decode_to_process(line)


def send_failure(control: ControlPipes, writer: EvidenceWriter, reason: FailureReason, message: str) -> None:
    """Seal what evidence there is and tell the daemon why the process ends."""
    try:
        streams = writer.seal()
    except LemError as error:  # the disk may be what failed
        streams = ()
        message = f"{message} The evidence so far is lost: {error}"
    control.send(Failed(reason=reason, message=message, streams=streams))
