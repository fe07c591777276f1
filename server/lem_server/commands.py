"""The commands of `lem-server`: serve, migrate, token."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from lem_domain.errors import LemError
from lem_domain.wire.access import TokenCreate
from lem_server import logs
from lem_server.access.service import create, has_tokens_besides_owner
from lem_server.app import create_app
from lem_server.database.engine import DatabaseError, database_url, make_engine, require_supported_version
from lem_server.database.migrate import require_head, upgrade
from lem_server.settings import Settings
from lem_server.signals import Terminated, TerminationSignals

EXIT_FAILURE = 1
EXIT_USAGE = 2
SHUTDOWN_S = 20
"""Of open requests; long polls end at once."""


class StartError(LemError):
    """The server can't start as it is configured."""


def run(command: str, options: dict[str, Any], signals: TerminationSignals) -> None:
    """Run a command; the process exits with 1 on failure, or with 2 for a wrong configuration."""
    try:
        kind, name = options.pop("kind", None), options.pop("name", None)
        settings = Settings(**{key: value for key, value in options.items() if value is not None})
        logs.configure(settings.log_level, settings.log_format)
        if command == "serve":
            _serve(settings, signals)
        elif command == "migrate":
            _migrate(settings, signals)
        else:
            _token(settings, signals, TokenCreate(name=name, kind=kind))
    except ValidationError as error:
        first = error.errors()[0]
        setting = "LEM_" + "_".join(str(part) for part in first["loc"]).upper()
        _exit(f"{setting}: {first['msg']}", EXIT_USAGE)
    except SettingsError:
        _exit('LEM_TRUSTED_HOSTS is not a JSON list; write for example ["lem.example", "localhost"].', EXIT_USAGE)
    except DatabaseError as error:
        _exit(str(error), EXIT_USAGE)
    except LemError as error:
        _exit(str(error), EXIT_FAILURE)
    except (SQLAlchemyError, OSError) as error:
        _exit(f"the database can't be reached ({_first_line(error)}); check LEM_DATABASE_URL.", EXIT_FAILURE)


def _serve(settings: Settings, signals: TerminationSignals) -> None:
    with _database(settings, signals, owner="server") as url:
        if settings.database_url is None:
            signals.run(upgrade(url))
        signals.run(_check(settings, url))
        listener = _bind(settings)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(
            uvicorn.Config(
                create_app(settings, url),
                # On plain asyncio, several processes answer keep-alive requests about 44 ms late (uvicorn#3149).
                loop="uvloop",
                http="httptools",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=65,
                timeout_graceful_shutdown=SHUTDOWN_S,
            ),
            ready=f"LEM server ready at {address} (data in {settings.data_dir})",
            signals=signals,
        )
        signals.check()
        try:
            server.run(sockets=[listener])
        except Terminated:
            raise
        except SystemExit as end:  # uvicorn's, where the application did not start
            raise StartError("the server did not start; the log above names the reason.") from end


class _Server(uvicorn.Server):
    """Prints a line when it is ready, and ends long polls before it waits for open requests."""

    def __init__(self, config: uvicorn.Config, ready: str, signals: TerminationSignals) -> None:
        super().__init__(config)
        self._ready = ready
        self._signals = signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._signals.ignore()  # uvicorn has installed its own handlers
        await super().startup(sockets)
        if self.started and not self.should_exit:
            print(self._ready, flush=True)  # noqa: T201 - `lemctl up` and tests wait for this line

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        context = getattr(getattr(self.config.app, "state", None), "context", None)
        if context is not None:
            context.hub.release()
        await super().shutdown(sockets)


def _migrate(settings: Settings, signals: TerminationSignals) -> None:
    with _database(settings, signals, owner="command") as url:
        signals.run(upgrade(url))
    print("the database's schema is up to date")  # noqa: T201


def _token(settings: Settings, signals: TerminationSignals, request: TokenCreate) -> None:
    with _database(settings, signals, owner="command") as url:
        print(signals.run(_create_token(url, request)))  # noqa: T201


async def _create_token(url: URL, request: TokenCreate) -> str:
    engine = make_engine(url, pool_size=1)
    try:
        await require_head(engine)
        async with engine.begin() as connection:
            return (await create(connection, request)).token
    finally:
        await engine.dispose()


@contextlib.contextmanager
def _database(settings: Settings, signals: TerminationSignals, *, owner: Literal["server", "command"]) -> Iterator[URL]:
    if settings.database_url is not None:
        url = database_url(settings.database_url)
        if settings.database_password_file is not None:
            try:
                url = url.set(password=settings.database_password_file.read_text().strip())
            except OSError as error:
                raise DatabaseError(
                    f"LEM_DATABASE_PASSWORD_FILE can't be read: {error.strerror} ({error.filename})."
                ) from error
        yield url
        return
    from lem_server.database.embedded import EmbeddedPostgres  # noqa: PLC0415 - not needed with LEM_DATABASE_URL

    with EmbeddedPostgres(settings.data_dir / "postgres", owner) as postgres:
        try:
            yield postgres.url
        finally:
            signals.ignore()  # a second signal must not interrupt the stop of PostgreSQL


async def _check(settings: Settings, url: URL) -> None:
    """Refuse to serve with a wrong database, or on a public address before access was set up."""
    engine = make_engine(url, pool_size=1)
    try:
        await require_supported_version(engine)
        await require_head(engine)
        if not _is_loopback(settings.host) and not await has_tokens_besides_owner(engine):
            raise StartError(
                f"{settings.host} can be reached from other machines, and no access was set up; create a token "
                "(lem-server token --kind worker --name NAME), then start again."
            )
    finally:
        await engine.dispose()


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        raise StartError(
            f"can't listen on {settings.host} port {settings.port} ({error.strerror}); set LEM_PORT to a free one."
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _exit(message: str, code: int) -> NoReturn:
    print(f"lem-server: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
