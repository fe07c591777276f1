"""The demonstration behind `make demo`: starts everything on this machine, measures, shows the table, stops.

The same as `lemctl up` in one terminal and `lemctl run examples/quickstart.yaml` in another.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
READY = "LEM is up at "


def main() -> int:
    """Run the demonstration; the exit code is that of `lemctl run`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep server and worker running until Ctrl-C")
    parser.add_argument("--file", type=Path, default=HERE / "quickstart.yaml", help="the campaign to run")
    parser.add_argument("--backend", default="pytorch", help="the worker to start")
    parser.add_argument("--data-dir", type=Path, default=HERE.parent / ".demo", help="folder of the database")
    options = parser.parse_args()

    environment = {**os.environ, "LEM_DATA_DIR": str(options.data_dir), "LEM_SERVER": f"http://127.0.0.1:{_port()}"}
    if options.backend == "pytorch":
        _say("preparing the model (converted once, then cached)")
        subprocess.run(
            [sys.executable, "-m", "lem_worker.models", "builtin:smollm2-135m-instruct"], env=environment, check=True
        )
    _say("starting PostgreSQL, the server and one worker (lemctl up)")
    port = environment["LEM_SERVER"].rpartition(":")[2]
    up = subprocess.Popen(
        [BIN / "lemctl", "up", "--backend", options.backend, "--port", port, "--data-dir", options.data_dir],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this script only, which then stops lemctl
    )
    try:
        if not _wait_until_up(up):
            return 1
        _say(f"lemctl run {os.path.relpath(options.file)}")
        code = subprocess.run([BIN / "lemctl", "run", options.file], env=environment, check=False).returncode
        server = environment["LEM_SERVER"]
        _say(f"raw evidence: {server}/api/v1/runs and …/attempts/<id>/streams, kept in {options.data_dir}")
        _say(f"Swagger UI:   {server}/docs (token in {options.data_dir / 'owner.token'})")
        if options.keep:
            _say("server and worker run until Ctrl-C")
            up.wait()
        return code
    except KeyboardInterrupt:
        return 130
    finally:
        _stop(up)


def _wait_until_up(up: subprocess.Popen[str]) -> bool:
    for line in up.stdout or ():
        print(line, end="", flush=True)  # noqa: T201
        if READY in line:
            return True
    _say("lemctl up ended early; see its last lines above")
    return False


def _stop(up: subprocess.Popen[str]) -> None:
    if up.poll() is None:
        _say("stopping")
        up.send_signal(signal.SIGINT)
        try:
            up.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(up.pid, signal.SIGKILL)


def _port() -> int:
    """Return the default port, or a free one if it is taken."""
    for wanted in (8420, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("no free port on 127.0.0.1")


def _say(text: str) -> None:
    print(f"── {text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
