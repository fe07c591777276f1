"""The form of a token: `lem_<kind>_<secret>_<checksum>`. Only its SHA-256 is stored.

A slow hash is not needed for 256 random bits, and would cost about 200 ms per request.
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
    """Generate a token."""
    head = f"lem_{kind.value}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
    return f"{head}_{_checksum(head)}"


def is_well_formed(token: str) -> bool:
    """Check form and checksum, which distinguishes a mistyped token from an unknown one."""
    return _FORM.fullmatch(token) is not None and _checksum(token.rpartition("_")[0]) == token.rpartition("_")[2]


def digest(token: str) -> bytes:
    """Return the digest under which a token is stored."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(head: str) -> str:
    return f"{zlib.crc32(head.encode()):08x}"
