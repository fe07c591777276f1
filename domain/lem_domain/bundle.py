"""The archive of a campaign: which members it has, how it is written and read, and how it is told whole.

A plain tar (ustar, uncompressed: the evidence in it is compressed already), so that any tool unpacks it and
`sha256sum -c SHA256SUMS` checks it. Its first member is the header, its last the list of all digests. Reading is strict
and streams: a member that is no regular file of the layout below is refused by its name, before any of it is used.
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
"""64 GiB: the campaigns that people measure are a thousandth of it."""

HEADER: Final = "bundle.json"
CAMPAIGN: Final = "campaign.json"
SUMS: Final = "SHA256SUMS"

_BLOCK = 512
_PIECE = 2**20
_JSON_BYTES = 8 * 2**20
"""Of a member of JSON; the server takes bodies of 1 MB, and prompts of 4 MB, so nothing that it stored is larger."""
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
    # 160 bytes a line: as long as the number of members makes it.
    (re.compile(re.escape(SUMS)), 2**33 - 1),
)


class BundleError(LemError):
    """An archive that can't be used; says what is wrong and what to do."""


class BundleHeader(BaseModel):
    """What a bundle says of itself, in its first member."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["lem-bundle"]
    version: int = Field(ge=1, description="Of the format; a reader refuses one that it doesn't know.")
    lem_version: str = Field(max_length=100, description="The version of LEM that wrote it.")
    method: str = Field(max_length=40, description="Version of the formulas that the server computes with.")
    campaign_id: CampaignId
    campaign_name: str = Field(max_length=200)
    experiments: int = Field(ge=0)
    runs: int = Field(ge=0)
    attempts: int = Field(ge=0)
    chunks: int = Field(ge=0)
    evidence_bytes: int = Field(ge=0, description="Raw evidence, without what stands around it.")


class Verified(NamedTuple):
    """What is known of a bundle that is whole."""

    header: BundleHeader
    sha256: Sha256
    """Of its list of digests, and so of all that it holds."""
    members: int
    bytes: int


class Member(NamedTuple):
    """One file of a bundle."""

    name: str
    size: int


class Readable(Protocol):
    """A binary file, read from where it stands."""

    def read(self, size: int, /) -> bytes: ...


Progress = Callable[[int], None]
"""Told how many bytes were handled since the last time."""


def member_head(name: str, size: int) -> bytes:
    """What stands before a member's bytes. Owner, mode and time are always the same: equal contents, equal archives."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT)


def member_tail(size: int) -> bytes:
    """What stands behind a member's bytes."""
    return b"\0" * (-size % _BLOCK)


def sums_line(name: str, sha256: str) -> bytes:
    """A member's line in the list of digests."""
    return f"{sha256}  {name}\n".encode()


ARCHIVE_END: Final = b"\0" * (2 * _BLOCK)


class BundleReader:
    """Goes through an archive once, from its beginning, and holds one piece of it at a time."""

    def __init__(self, file: Readable, progress: Progress | None = None) -> None:
        self._file = file
        self._progress = progress
        self._left = 0
        self._name = ""
        self._padding = 0
        self._begun = False

    def members(self) -> Iterator[Member]:
        """Every member in order; what is not read of one is passed over.

        Raises:
            BundleError: the archive is cut off, or holds what no bundle does.
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
        """The next bytes of the present member; none at its end."""
        data = self._exactly(min(most, self._left))
        self._left -= len(data)
        return data

    def whole(self) -> bytes:
        """All that is left of the present member; its size was checked against the layout."""
        return self.read(self._left)

    def _member(self, head: bytes) -> Member:
        if not self._begun:
            _refuse_compressed(head)
        try:
            entry = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            if not self._begun:
                raise BundleError("this is no bundle; give a file that `lemctl export --bundle` wrote.") from None
            raise BundleError(f"the bundle is damaged behind {self._name}; get it again.") from None
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BundleError(f"{entry.name!r} in the bundle is no plain file; import the file as it was exported.")
        limit = next((limit for pattern, limit in _LAYOUT if pattern.fullmatch(entry.name)), None)
        if limit is None or (not self._begun and entry.name != HEADER):
            raise BundleError(f"the archive holds {entry.name!r}, which no bundle does; give one that was exported.")
        if not 0 <= entry.size <= limit:
            raise BundleError(
                f"{entry.name} in the bundle is {entry.size} bytes, above the {limit} that it may have; "
                "export the campaign again."
            )
        self._begun = True
        return Member(entry.name, entry.size)

    def _require_end(self) -> None:
        """Nothing but zeros, as `tar` fills up its last record."""
        while data := self._file.read(_PIECE):
            if any(data):
                raise BundleError("something stands behind the bundle's end; import the file as it was exported.")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._file.read(size - len(data))
            if not piece:
                if not self._begun:
                    raise BundleError("this is no bundle; give a file that `lemctl export --bundle` wrote.")
                raise BundleError(f"the bundle ends in the middle of {self._name}: it was cut off; get it again.")
            data = data + piece if data else piece
        if self._progress is not None:
            self._progress(size)
        return data


def verify(file: Readable, progress: Progress | None = None) -> Verified:
    """Read a bundle from its beginning to its end and check every digest; memory stays small whatever its size.

    Raises:
        BundleError: it is cut off, damaged, of a newer format, or no bundle; says which.
    """
    reader = BundleReader(file, progress)
    header: BundleHeader | None = None
    listed = hashlib.sha256()
    sums: str | None = None
    members = total = 0
    for member in reader.members():
        if sums is not None:
            raise BundleError(f"{member.name} stands behind the bundle's list of digests; get the bundle again.")
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
        raise BundleError(f"the bundle has no {SUMS} at its end: it was cut off; get it again.")
    if listed.hexdigest() != sums:
        raise BundleError(
            f"what the bundle holds is not what its {SUMS} says: it was damaged or changed; get it again "
            f"(`tar -xf` and `sha256sum -c {SUMS}` name the file)."
        )
    return Verified(header, sums, members, total)


def read_header(content: bytes) -> BundleHeader:
    """The header, if this version can read what it announces.

    Raises:
        BundleError: it can't.
    """
    try:
        header = BundleHeader.model_validate_json(content)
    except ValidationError:
        raise BundleError(f"the bundle's {HEADER} is not one; give a file that `lemctl export` wrote.") from None
    if header.version > FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format {header.version} (of LEM {header.lem_version}) and this version reads up to "
            f"{FORMAT_VERSION}; update it."
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
