"""Finds the server's address and the token: options, then the environment, then the owner's token on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lem_client.errors import CredentialsError

DEFAULT_SERVER = "http://127.0.0.1:8420"
OWNER_TOKEN_FILE = "owner.token"  # noqa: S105 - a file name


def server_url(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the server's address: `given`, else LEM_SERVER, else this machine.

    Raises:
        CredentialsError: it is not an http(s) address.
    """
    url = (given or environment.get("LEM_SERVER") or DEFAULT_SERVER).rstrip("/")
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest or any(character.isspace() for character in rest):
        raise CredentialsError(
            f"{url!r} is not a server address; give one like {DEFAULT_SERVER} (--server, LEM_SERVER)."
        )
    return url


def data_dir(given: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Return a local server's data folder: `given`, LEM_DATA_DIR, $XDG_DATA_HOME/lem or ~/.local/share/lem."""
    if given is not None:
        return given
    if chosen := environment.get("LEM_DATA_DIR"):
        return Path(chosen)
    base = environment.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "lem"


def find_token(token_file: Path | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token from the given file, LEM_TOKEN, LEM_TOKEN_FILE or the owner's file; None if there is none.

    Raises:
        CredentialsError: a named file can't be read or holds no token.
    """
    if token_file is not None:
        return _read(token_file)
    if token := environment.get("LEM_TOKEN", "").strip():
        return _checked(token, "LEM_TOKEN")
    if named := environment.get("LEM_TOKEN_FILE"):
        return _read(Path(named))
    owner = data_dir(environment=environment) / OWNER_TOKEN_FILE
    return _read(owner) if owner.exists() else None


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CredentialsError(f"the token file {path} can't be read ({error.strerror}); name another one.") from error
    except UnicodeDecodeError:
        raise CredentialsError(f"the token file {path} is not text; name the file that holds the token.") from None
    if not text:
        raise CredentialsError(f"the token file {path} is empty; write the token into it.")
    return _checked(text, f"the token file {path}")


def _checked(token: str, origin: str) -> str:
    # A header allows nothing else, and httpx's own error would show the secret.
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialsError(f"{origin} holds more than one token; it must hold the token alone, on one line.")
    return token
