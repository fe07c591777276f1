"""The memory that decoding an Arrow IPC stream would need, read from its headers without decompressing it.

pyarrow allocates the length that each compressed buffer declares, so a small body can demand gigabytes. The layout
is the Arrow columnar format's "Encapsulated message format" and Message.fbs (format version 1.0 and later): every
message is 0xFFFFFFFF, the length of its metadata, a flatbuffer `Message`, and a body; a compressed buffer begins with
its decompressed length as a little-endian 64-bit integer, -1 meaning that it is not compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_CONTINUATION: Final = 0xFFFFFFFF
_HEADER_TYPE_RECORD_BATCH: Final = 3
# Field numbers in Message.fbs and RecordBatch.
_MESSAGE_HEADER_TYPE: Final = 1
_MESSAGE_HEADER: Final = 2
_MESSAGE_BODY_LENGTH: Final = 3
_BATCH_BUFFERS: Final = 2
_BATCH_COMPRESSION: Final = 3


class MalformedStream(ValueError):
    """The bytes are not an Arrow IPC stream."""


def declared_bytes(body: bytes) -> int:
    """Return the bytes that decoding would allocate for the buffers of all record batches.

    Raises:
        MalformedStream: the framing is invalid.
    """
    try:
        return sum(_batch_bytes(metadata, content) for metadata, content in _messages(memoryview(body)))
    except (struct.error, IndexError) as error:
        raise MalformedStream("the message framing is broken") from error


def _messages(body: memoryview) -> Iterator[tuple[memoryview, memoryview]]:
    at = 0
    while at + 8 <= len(body):
        marker, length = struct.unpack_from("<Ii", body, at)
        if marker != _CONTINUATION or length < 0:
            raise MalformedStream("a message has no valid prefix")
        at += 8
        if length == 0:
            if at != len(body):
                raise MalformedStream("there are bytes after the end of the stream")
            return
        metadata = body[at : at + length]
        if len(metadata) < length:
            raise MalformedStream("a message is truncated")
        at += length
        size = _int64(metadata, _field(metadata, _root(metadata), _MESSAGE_BODY_LENGTH))
        content = body[at : at + size]
        if size < 0 or len(content) < size:
            raise MalformedStream("the body of a message is truncated")
        at += size
        yield metadata, content
    raise MalformedStream("the stream has no end marker")


def _batch_bytes(metadata: memoryview, content: memoryview) -> int:
    message = _root(metadata)
    type_at = _field(metadata, message, _MESSAGE_HEADER_TYPE)
    if type_at is None or metadata[type_at] != _HEADER_TYPE_RECORD_BATCH:
        return 0
    batch = _target(metadata, _field(metadata, message, _MESSAGE_HEADER))
    if _field(metadata, batch, _BATCH_COMPRESSION) is None:
        return len(content)
    buffers_at = _field(metadata, batch, _BATCH_BUFFERS)
    if buffers_at is None:
        return 0
    vector = _target(metadata, buffers_at)
    (count,) = struct.unpack_from("<I", metadata, vector)
    total = 0
    for number in range(count):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)
        if offset < 0 or length < 0 or offset + length > len(content):
            raise MalformedStream("a buffer lies outside its message")
        if length >= 8:
            (declared,) = struct.unpack_from("<q", content, offset)
            total += length if declared < 0 else declared
    return total


def _root(table: memoryview) -> int:
    return int(struct.unpack_from("<I", table, 0)[0])


def _field(table: memoryview, at: int, number: int) -> int | None:
    """Return the offset of a field of the flatbuffer table at `at`; None for a default value, which is not stored."""
    vtable = at - int(struct.unpack_from("<i", table, at)[0])
    (vtable_size,) = struct.unpack_from("<H", table, vtable)
    slot = 4 + 2 * number
    if slot + 2 > vtable_size:
        return None
    (offset,) = struct.unpack_from("<H", table, vtable + slot)
    return at + offset if offset else None


def _target(table: memoryview, at: int | None) -> int:
    if at is None:
        raise MalformedStream("a message lacks its header")
    return at + int(struct.unpack_from("<I", table, at)[0])


def _int64(table: memoryview, at: int | None) -> int:
    return 0 if at is None else int(struct.unpack_from("<q", table, at)[0])
