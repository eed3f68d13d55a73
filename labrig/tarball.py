"""A gzip'd tar whose bytes no compression library decides: what a layer is written with.

A gzip file may consist of many members (RFC 1952, 2.2), so each file of a tar can bring its own. A file that comes out
of a zip archive brings its deflate stream as it is stored there, between a gzip header and the CRC-32 and size that the
zip directory carries too; nothing is compressed again. What we write ourselves (tar headers, padding, small files) goes
into stored blocks (RFC 1951, 3.2.4) and, for runs of zeros, into blocks of fixed codes, spelled out here bit by bit. So
the same files are the same bytes with every zlib and every Python. docs/layers.md has the picture.

Tar headers are POSIX ustar (IEEE 1003.1-2017, pax), with an extended header only for a path that ustar cannot hold.
Owner is root unless said, and there is one time: :data:`labrig.files.EPOCH`.
"""

from __future__ import annotations

import functools
import hashlib
from typing import BinaryIO

from isal import isal_zlib

from labrig.files import CHUNK, EPOCH

MEMBER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # a gzip header: deflate, no name, no time, system unknown
BLOCK = 512  # bytes of a tar's block
STORED = 65535  # bytes that one stored block can hold
FILE, SYMLINK, FOLDER, EXTENDED = b"0", b"2", b"5", b"x"
TIME = b"%011o\0" % int(EPOCH)
LARGEST = 8**11 - 1  # bytes: what the octal digits of a header can say


class Writer:
    """Writes a tar into ``out``, as gzip members; knows both digests when :meth:`close` has been called.

    A file is announced by :meth:`start`; its content follows by :meth:`data` (ours) or, as the deflate stream of a zip
    archive, by :meth:`stream` and :meth:`end`.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._padding = 0  # zeros that the last file still needs; they go before the next header
        self.size = self.plain_size = 0
        self.digest = self.diff_id = ""

    def start(self, path: str, size: int = 0, mode: int = 0o644, kind: bytes = FILE, link: str = "",
              owner: tuple[int, int] = (0, 0)) -> None:  # fmt: skip
        """A file of ``size`` bytes follows; ``path`` has no leading slash. A folder or a link has no content."""
        name, prefix, extended = _name(path.encode() + (b"/" if kind == FOLDER else b""))
        target = link.encode()
        if len(target) > 100:
            extended += _pax(b"linkpath", target)
            target = target[:100]
        if size > LARGEST:
            extended += _pax(b"size", b"%d" % size)
        if extended:
            self._header(b"pax", b"", len(extended), 0o644, EXTENDED, b"", (0, 0))
            self.data(extended)
        self._header(name, prefix, size if size <= LARGEST else 0, mode, kind, target, owner)
        self._padding = -size % BLOCK

    def _header(self, name: bytes, prefix: bytes, size: int, mode: int, kind: bytes, link: bytes,
                owner: tuple[int, int]) -> None:  # fmt: skip
        begin = b"%07o\0%07o\0%07o\0%011o\0%b" % (mode, *owner, size, TIME)
        # The sum of all bytes of the header, where the eight of the sum itself count as spaces.
        checksum = b"%06o\0 " % (8 * 32 + _CONSTANT + sum(name) + sum(begin) + sum(kind) + sum(link) + sum(prefix))
        middle = begin + checksum + kind
        plain = b"%b%b%b%b%b%b%b%b%b" % (
            bytes(self._padding), name, bytes(100 - len(name)), middle, link, bytes(100 - len(link)),
            b"ustar\x0000", bytes(80) + prefix, bytes(167 - len(prefix)),
        )  # fmt: skip
        packed = b"%b%b%b%b%b%b%b%b" % (
            MEMBER, zeros(self._padding), _stored(name), zeros(100 - len(name)), _stored(middle),
            _tail(link, prefix) if link or prefix else _TAIL,
            isal_zlib.crc32(plain).to_bytes(4, "little"), len(plain).to_bytes(4, "little"),
        )  # fmt: skip
        self._plain.update(plain)
        self.plain_size += len(plain)
        self._write(packed)

    def data(self, content: bytes) -> None:
        """The content of the file that was announced, from memory, in stored blocks."""
        if content:
            self._write(MEMBER)
            for at in range(0, len(content), STORED):
                piece = content[at : at + STORED]
                self.stream(stored(piece, last=at + STORED >= len(content)), piece)
            self.end(isal_zlib.crc32(content), len(content))
        self._padding = -len(content) % BLOCK

    def begin(self) -> None:
        """The content of the file that was announced follows as a deflate stream, by pieces."""
        self._write(MEMBER)

    def stream(self, packed: bytes, plain: bytes) -> None:
        """A piece of the deflate stream, as it is, and what came out of it."""
        self._write(packed)
        self._plain.update(plain)
        self.plain_size += len(plain)

    def end(self, crc: int, size: int) -> None:
        """The stream has ended; CRC-32 and size are those of the whole file."""
        self._write(crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"))

    def close(self) -> None:
        """The end of the tar: two blocks of zeros."""
        count = self._padding + 2 * BLOCK
        plain = bytes(count)
        crc = isal_zlib.crc32(plain)
        self.begin()
        self.stream(zeros(count, last=True), plain)
        self.end(crc, count)
        self._seal()

    def pack(self, tar: BinaryIO) -> None:
        """A whole tar that is there already, compressed here, instead of all else.

        By ISA-L, whose version the toolkit pins: another compression would give another blob for the same tar.
        """
        pressing = isal_zlib.compressobj(isal_zlib.ISAL_BEST_COMPRESSION, wbits=-15)
        crc = 0
        self.begin()
        while plain := tar.read(CHUNK):
            crc = isal_zlib.crc32(plain, crc)
            self.stream(pressing.compress(plain), plain)
        self.stream(pressing.flush(), b"")
        self.end(crc, self.plain_size)
        self._seal()

    def _seal(self) -> None:
        self.digest, self.diff_id = (f"sha256:{one.hexdigest()}" for one in (self._packed, self._plain))

    def _write(self, packed: bytes) -> None:
        self._packed.update(packed)
        self._out.write(packed)
        self.size += len(packed)


def _name(path: bytes) -> tuple[bytes, bytes, bytes]:
    """A path as a header's name and prefix, and the extended header that it needs, mostly none."""
    if path.isascii():
        if len(path) <= 100:
            return path, b"", b""
        cut = path.find(b"/", len(path) - 101, -1)
        if 0 < cut <= 155:
            return path[cut + 1 :], path[:cut], b""
    return path[:100], b"", _pax(b"path", path)


def _pax(key: bytes, value: bytes) -> bytes:
    """One record of an extended header: its own length, key and value."""
    rest = b" %b=%b\n" % (key, value)
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return b"%d%b" % (length, rest)


def stored(content: bytes, *, last: bool) -> bytes:
    """A stored block, at a byte boundary."""
    return (b"\1" if last else b"\0") + _stored(content)


def _stored(content: bytes) -> bytes:
    """The rest of a stored block after the byte that says that it is one."""
    length = len(content)
    return b"%b%b%b" % (length.to_bytes(2, "little"), (length ^ 0xFFFF).to_bytes(2, "little"), content)


@functools.cache
def zeros(count: int, *, last: bool = False) -> bytes:
    """Deflate for a run of zeros, from one byte boundary to the next.

    The last one ends the stream. Any other is followed by the first byte of a stored block, which needs the boundary:
    what comes next is that block's length. No zeros at all are that byte alone.
    """
    bits: list[int] = []
    if count or last:
        bits += [int(last), 1, 0]  # final?, fixed codes (01, lowest bit first)
        if count:
            bits += _code(0x30, 8)  # the literal 0
            count -= 1
        while count >= 3:
            length = min(count, 258 if count - 258 not in (1, 2) else 255)
            bits += _length(length) + [0] * 5  # at distance 1
            count -= length
        bits += _code(0x30, 8) * count
        bits += [0] * 7  # end of block
    if not last:
        bits += [0, 0, 0]  # a stored block that is not the final one
    bits += [0] * (-len(bits) % 8)
    return bytes(sum(bit << at for at, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))


def _code(value: int, width: int) -> list[int]:
    """A Huffman code, highest bit first."""
    return [value >> at & 1 for at in reversed(range(width))]


def _length(length: int) -> list[int]:
    """The fixed code of a match's length, 3 to 258, with its extra bits (RFC 1951, 3.2.5 and 3.2.6)."""
    if length == 258:
        return _code(0b11000101, 8)
    symbol, extra, low = 257, 0, 3
    while not low <= length < low + (1 << extra):
        low += 1 << extra
        symbol += 1
        extra = max(0, (symbol - 261) // 4)
    code = _code(symbol - 256, 7) if symbol < 280 else _code(0b11000000 + symbol - 280, 8)
    return code + [length - low >> at & 1 for at in range(extra)]


def _tail(link: bytes, prefix: bytes) -> bytes:
    """Deflate for a header after its kind, to the end of the member."""
    return b"%b%b%b%b%b%b" % (
        stored(link, last=False), zeros(100 - len(link)), _stored(b"ustar\x0000"),
        zeros(80), _stored(prefix), zeros(167 - len(prefix), last=True),
    )  # fmt: skip


_CONSTANT = sum(b"ustar\x0000")
_TAIL = zeros(100) + _stored(b"ustar\x0000") + zeros(247, last=True)
