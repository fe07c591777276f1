"""The form of a token: `lem_<kind>_<secret>_<checksum>`. Only its SHA-256 is ever stored.

256 random bits need no slow hash: guessing them is hopeless, and a slow hash would cost 200 ms per request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

from lem_domain.wire.access import TokenKind

_ALPHABET = string.ascii_letters + string.digits
_SECRET_LENGTH = 43  # 43 × log2(62) = 256.03 bits
_FORM = re.compile(r"lem_(owner|user|worker|ci)_([A-Za-z0-9]{43})_([0-9a-f]{8})")


def mint(kind: TokenKind) -> str:
    """A new token."""
    head = f"lem_{kind.value}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    return f"{head}_{_checksum(head)}"


def is_well_formed(token: str) -> bool:
    """Whether the form and the checksum are right, so that a mistyped token is told from an unknown one."""
    return _FORM.fullmatch(token) is not None and _checksum(token.rpartition("_")[0]) == token.rpartition("_")[2]


def digest(token: str) -> bytes:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(head: str) -> str:
    return f"{zlib.crc32(head.encode()):08x}"
