"""The bundle of a campaign: the members of the archive, reading, writing and verification.

A bundle is a plain tar (ustar, uncompressed: its evidence is already compressed), so any tool unpacks it and
`sha256sum -c SHA256SUMS` checks it. Its first member is the header, its last the list of all digests. It is read as a
stream, and strictly: a member that is not a regular file of the layout below is refused before its content is used.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lem_domain.errors import LemError
from lem_domain.evidence.streams import MAX_CHUNK_BYTES
from lem_domain.ids import CampaignId, Sha256

FORMAT: Final = "lem-bundle"
FORMAT_VERSION: Final = 1
MEDIA_TYPE: Final = "application/x-tar"
MAX_BUNDLE_BYTES: Final = 2**36
"""64 GiB, about a thousand times the size of a usual campaign."""

HEADER: Final = "bundle.json"
CAMPAIGN: Final = "campaign.json"
SUMS: Final = "SHA256SUMS"

_BLOCK = 512
_PIECE = 2**20
_JSON_BYTES = 8 * 2**20
"""Largest JSON member; the server accepts bodies of 1 MB and prompts of 4 MB, so nothing that it stores is larger."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}

_ATTEMPT = r"attempts/att_[0-9a-f]{32}"
_PROCESS = r"(?:rank-(?:0|[1-9][0-9]{0,3})|sampler)"
_PAGE = r"[0-9]{6,10}"
_LAYOUT = (
    (re.compile(re.escape(HEADER)), 64 * 2**10),
    (re.compile(re.escape(CAMPAIGN)), _JSON_BYTES),
    (re.compile(r"datasets/[0-9a-f]{64}\.json"), _JSON_BYTES),
    (re.compile(rf"(?:workers|experiments|runs|transitions)/{_PAGE}\.jsonl"), _JSON_BYTES),
    (re.compile(rf"{_ATTEMPT}/attempt\.json"), _JSON_BYTES),
    (re.compile(rf"{_ATTEMPT}/processes/{_PROCESS}\.json"), _JSON_BYTES),
    (re.compile(rf"{_ATTEMPT}/(?:lease_events|logs)/{_PAGE}\.jsonl"), _JSON_BYTES),
    (re.compile(rf"{_ATTEMPT}/evidence/{_PROCESS}/[a-z_]{{1,20}}/[0-9]{{6,10}}\.arrow"), MAX_CHUNK_BYTES),
    (re.compile(rf"{_ATTEMPT}/aggregates/[0-9a-f]{{64}}(?:\.result)?\.json"), _JSON_BYTES),
    # 160 bytes per member; the number of members is not limited.
    (re.compile(re.escape(SUMS)), 2**33 - 1),
)


class BundleError(LemError):
    """An invalid bundle; the message has the cause and the remedy."""


class BundleHeader(BaseModel):
    """The first member of a bundle."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["lem-bundle"]
    version: int = Field(ge=1, description="Version of the format; a reader refuses a newer one.")
    lem_version: str = Field(max_length=100, description="The version of LEM that wrote it.")
    method: str = Field(max_length=40, description="Version of the server's formulas.")
    campaign_id: CampaignId
    campaign_name: str = Field(max_length=200)
    experiments: int = Field(ge=0)
    runs: int = Field(ge=0)
    attempts: int = Field(ge=0)
    chunks: int = Field(ge=0)
    evidence_bytes: int = Field(ge=0, description="Size of the raw evidence.")


class Verified(NamedTuple):
    """A verified bundle."""

    header: BundleHeader
    sha256: Sha256
    """Of its list of digests, which covers every member."""
    members: int
    bytes: int


class Member(NamedTuple):
    """One file of a bundle."""

    name: str
    size: int


class Readable(Protocol):
    """A binary file, read from its current position."""

    def read(self, size: int, /) -> bytes: ...


OnBytes = Callable[[int], None]
"""Called with the number of bytes transferred since the last call."""


def member_head(name: str, size: int) -> bytes:
    """The tar header of a member. Owner, mode and time are constant, so equal contents give equal archives."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT)


def member_tail(size: int) -> bytes:
    """The padding after a member's bytes."""
    return b"\0" * (-size % _BLOCK)


def sums_line(name: str, sha256: str) -> bytes:
    """A member's line in the list of digests."""
    return f"{sha256}  {name}\n".encode()


ARCHIVE_END: Final = b"\0" * (2 * _BLOCK)


class BundleReader:
    """Reads an archive once, from its start, with at most one piece of it in memory."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._left = 0
        self._name = ""
        self._padding = 0
        self._begun = False

    def members(self) -> Iterator[Member]:
        """Every member in order; unread bytes of a member are skipped.

        Raises:
            BundleError: the archive is truncated, or has a member that is not part of the layout.
        """
        while True:
            while self._left:
                self.read(_PIECE)
            self._exactly(self._padding)
            head = self._exactly(_BLOCK)
            if not any(head):
                self._require_end()
                return
            member = self._member(head)
            self._left, self._padding, self._name = member.size, -member.size % _BLOCK, member.name
            yield member

    def read(self, most: int) -> bytes:
        """The next bytes of the current member; none at its end."""
        data = self._exactly(min(most, self._left))
        self._left -= len(data)
        return data

    def whole(self) -> bytes:
        """The rest of the current member, whose size is within the limit of the layout."""
        return self.read(self._left)

    def _member(self, head: bytes) -> Member:
        if not self._begun:
            _refuse_compressed(head)
        try:
            entry = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            if not self._begun:
                raise BundleError("this is not a bundle; give a file that `lemctl export --bundle` wrote.") from None
            raise BundleError(f"the bundle is damaged after {self._name}; get it again.") from None
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BundleError(f"{entry.name!r} in the bundle is not a regular file; import the bundle as exported.")
        limit = next((limit for pattern, limit in _LAYOUT if pattern.fullmatch(entry.name)), None)
        if limit is None or (not self._begun and entry.name != HEADER):
            raise BundleError(f"the archive has {entry.name!r}, which is not part of a bundle; export it again.")
        if not 0 <= entry.size <= limit:
            raise BundleError(
                f"{entry.name} in the bundle has {entry.size} bytes, above the limit of {limit}; "
                "export the campaign again."
            )
        self._begun = True
        return Member(entry.name, entry.size)

    def _require_end(self) -> None:
        """Require zeros only, with which `tar` pads its last record."""
        while data := self._file.read(_PIECE):
            if any(data):
                raise BundleError("the bundle has data after its end; import the file as it was exported.")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._file.read(size - len(data))
            if not piece:
                if not self._begun:
                    raise BundleError("this is not a bundle; give a file that `lemctl export --bundle` wrote.")
                raise BundleError(f"the bundle is truncated in {self._name}; get it again.")
            data = data + piece if data else piece
        return data


def verify(file: Readable) -> Verified:
    """Read a whole bundle and check every digest, in constant memory.

    Raises:
        BundleError: it is truncated, damaged, of a newer format, or not a bundle.
    """
    reader = BundleReader(file)
    header: BundleHeader | None = None
    listed = hashlib.sha256()
    sums: str | None = None
    members = total = 0
    for member in reader.members():
        if sums is not None:
            raise BundleError(f"{member.name} is after the bundle's list of digests; get the bundle again.")
        if header is None:
            content = reader.whole()
            header = read_header(content)
            digest = hashlib.sha256(content).hexdigest()
        else:
            digest = _digest_of_member(reader)
        members, total = members + 1, total + member.size
        if member.name == SUMS:
            sums = digest
        else:
            listed.update(sums_line(member.name, digest))
    if header is None or sums is None:
        raise BundleError(f"the bundle has no {SUMS} at its end, so it is truncated; get it again.")
    if listed.hexdigest() != sums:
        raise BundleError(
            f"the bundle does not match its {SUMS}: it was damaged or changed; get it again "
            f"(`tar -xf` and `sha256sum -c {SUMS}` name the file)."
        )
    return Verified(header, sums, members, total)


def read_header(content: bytes) -> BundleHeader:
    """Parse the header.

    Raises:
        BundleError: it is invalid, or of a newer format.
    """
    try:
        header = BundleHeader.model_validate_json(content)
    except ValidationError:
        raise BundleError(
            f"the bundle's {HEADER} is invalid; give a file that `lemctl export --bundle` wrote."
        ) from None
    if header.version > FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format {header.version} (of LEM {header.lem_version}), but this version reads up to "
            f"{FORMAT_VERSION}; update LEM."
        )
    return header


def _digest_of_member(reader: BundleReader) -> str:
    whole = hashlib.sha256()
    while data := reader.read(_PIECE):
        whole.update(data)
    return whole.hexdigest()


def _refuse_compressed(head: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise BundleError(f"the file is compressed ({name}); uncompress it and import the .tar in it.")
