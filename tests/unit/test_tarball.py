"""Layers' tars, read back by tarfile, zlib, gzip and tar, none of which had a part in writing them."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labrig.files import EPOCH
from labrig.tarball import FILE, FOLDER, LARGEST, SYMLINK, Writer, stored, zeros

SIZES = [0, 1, 511, 512, 513, 1024, 65534, 65535, 65536, 131070, 131071, 200_000]
LONG = [  # paths at the limits of ustar's name (100 bytes) and prefix (155)
    "a",
    "a/b",
    *("n" * length for length in (98, 99, 100, 101, 155, 156, 255, 256)),
    *("d/" + "n" * length for length in (97, 98, 99, 100, 101, 200)),
    *("d" * length + "/n" for length in (97, 98, 99, 154, 155, 156, 157, 255)),
    *("d" * 154 + "/" + "n" * length for length in (99, 100, 101)),
    *("d" * 155 + "/" + "n" * length for length in (99, 100, 101)),
    *("d" * 156 + "/" + "n" * length for length in (99, 100)),
    "d" * 50 + "/" + "e" * 50 + "/" + "f" * 50 + "/" + "n" * 50,
    "/".join(["d" * 20] * 12),
    "/".join(["d" * 20] * 13),
    "/".join(["d"] * 200),
    "ü",
    "日本/語.txt",
    "ü" * 49 + "a",
    "ü" * 50,
    "ü" * 51,
    "d" * 99 + "ü",
    "ein Leerzeichen",
    "line\nbreak",
    "tab\tand = sign",
    "x" * 3900,
]


@dataclass(frozen=True)
class One:
    """What was put in."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    kind: bytes = FILE
    link: str = ""
    owner: tuple[int, int] = (0, 0)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311


def deflated(content: bytes, level: int = 9) -> bytes:
    pressing = zlib.compressobj(level, wbits=-15)
    return pressing.compress(content) + pressing.flush()


def written(ones: Sequence[One], way: str = "data") -> tuple[bytes, Writer]:
    """The file that a writer makes of them; ``way`` is how contents get in."""
    out = io.BytesIO()
    writer = Writer(out)
    for one in ones:
        writer.start(one.path, len(one.content), one.mode, one.kind, one.link, one.owner)
        if one.kind != FILE:
            continue
        if way == "data":
            writer.data(one.content)
        elif way == "stream" and one.content:
            packed = deflated(one.content)
            writer.begin()
            for at in range(0, len(packed), 1000):
                writer.stream(packed[at : at + 1000], b"")
            writer.stream(b"", one.content)
            writer.end(zlib.crc32(one.content), len(one.content))
    writer.close()
    return out.getvalue(), writer


def read(packed: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of a tar, as tarfile sees them, with their contents."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed)), mode="r:") as tar:
        found = []
        for info in tar:
            file = tar.extractfile(info) if info.isfile() else None
            found.append((info, file.read() if file else b""))
        return found


def check(ones: Sequence[One], way: str = "data") -> bytes:
    """Write and read back; every property has to be what was put in."""
    packed, writer = written(ones, way)
    plain = gzip.decompress(packed)
    assert writer.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
    assert writer.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert (writer.size, writer.plain_size) == (len(packed), len(plain))
    assert len(plain) % 512 == 0
    assert plain.endswith(bytes(1024))
    found = read(packed)
    assert [info.name for info, _ in found] == [one.path for one in ones]
    for (info, content), one in zip(found, ones, strict=True):
        assert content == one.content
        assert info.size == len(one.content)
        assert info.mode == one.mode
        assert info.linkname == one.link
        assert (info.uid, info.gid, info.uname, info.gname) == (*one.owner, "", "")
        assert info.mtime == int(EPOCH)
        assert info.type == one.kind
    return packed


# --- what is in it ----------------------------------------------------------------------------------------------


def test_no_files_at_all_are_an_empty_tar() -> None:
    packed, writer = written([])
    assert gzip.decompress(packed) == bytes(1024)
    assert read(packed) == []
    assert writer.plain_size == 1024


@pytest.mark.parametrize("way", ["data", "stream"])
def test_files_of_every_size_around_a_block_come_back(way: str) -> None:
    check([One(f"noise-{size}", noise(size)) for size in SIZES], way)
    check([One(f"zeros-{size}", bytes(size)) for size in SIZES], way)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_one_size_comes_back_alone_and_before_another(size: int) -> None:
    check([One("alone", noise(size))])
    check([One("first", noise(size)), One("last", b"x")])


@pytest.mark.parametrize("path", LONG, ids=range(len(LONG)))
def test_a_path_of_any_length_and_alphabet_comes_back(path: str) -> None:
    check([One(path, b"content"), One("after", b"after")])
    check([One(path, mode=0o755, kind=FOLDER), One("after")])
    check([One(path, kind=SYMLINK, link="target", mode=0o777), One("after")])


@pytest.mark.parametrize(
    ("path", "extended"),
    [
        ("n" * 99, False),
        ("n" * 100, False),
        ("n" * 101, True),  # there is nowhere to split
        ("d/" + "n" * 100, False),
        ("d/" + "n" * 101, True),
        ("d" * 155 + "/" + "n" * 100, False),
        ("d" * 156 + "/n", True),
        ("ü", True),
    ],
)
def test_only_a_path_that_ustar_cannot_hold_has_an_extended_header(path: str, extended: bool) -> None:
    plain = gzip.decompress(written([One(path)])[0])
    assert (plain[156:157] == b"x") is extended
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        assert tar.getmember(path).pax_headers == ({"path": path} if extended else {})


@pytest.mark.parametrize("length", [1, 99, 100, 101, 155, 500, 3900])
@pytest.mark.parametrize("letter", ["t", "ü"])
def test_a_link_target_of_any_length_and_alphabet_comes_back(letter: str, length: int) -> None:
    check([One("link", kind=SYMLINK, link=letter * length), One("d/" + "n" * 101, b"x")])
    check([One("n" * 101, kind=SYMLINK, link=letter * length, mode=0o777), One("after", b"x")])


def test_modes_and_owners_come_back() -> None:
    modes = [One(f"mode-{mode:o}", b"x", mode) for mode in (0, 0o644, 0o755, 0o4755, 0o1777, 0o7777)]
    owners = [One(f"owner-{at}", b"x", owner=(at, at + 1)) for at in (0, 1, 1000, 65534, 0o7777776)]
    check([*modes, *owners, One("home", mode=0o700, kind=FOLDER, owner=(1000, 1000))])


@pytest.mark.parametrize("size", [LARGEST, LARGEST + 1, 9 << 30, 1 << 40])
def test_a_size_beyond_the_octal_digits_is_in_an_extended_header(size: int) -> None:
    out = io.BytesIO()
    Writer(out).start("large", size)
    plain = gzip.decompress(out.getvalue())
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size) == ("large", size)
    assert info.pax_headers == ({"size": str(size)} if size > LARGEST else {})
    header = plain[-512:]
    summed = 256 + sum(header[:148]) + sum(header[156:])
    assert int(header[148:154], 8) == summed
    assert header[:6] == b"large\0"


def test_a_record_counts_its_own_length_where_that_gains_a_digit() -> None:
    for length in [*range(80, 110), *range(980, 1005)]:
        check([One("ü" + "x" * length)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60)
                .filter(lambda part: part not in (".", "..")),
                min_size=1,
                max_size=6,
            ).map("/".join),
            st.one_of(st.binary(max_size=2000), st.sampled_from(SIZES).map(noise)),
            st.sampled_from([0o644, 0o755, 0o600]),
        ),
        max_size=8,
    ),
    st.sampled_from(["data", "stream"]),
)  # fmt: skip
def test_any_files_come_back(files: list[tuple[str, bytes, int]], way: str) -> None:
    check([One(*file) for file in files], way)


# --- the bytes themselves ---------------------------------------------------------------------------------------


def members(packed: bytes) -> list[tuple[bytes, bytes]]:
    """Every gzip member: its deflate stream and what zlib makes of it; header and trailer are proven."""
    found = []
    while packed:
        assert packed[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
        inflate = zlib.decompressobj(-15)
        plain = inflate.decompress(packed[10:]) + inflate.flush()
        assert inflate.eof
        rest = inflate.unused_data
        assert struct.unpack("<II", rest[:8]) == (zlib.crc32(plain), len(plain))
        found.append((packed[10 : len(packed) - len(rest)], plain))
        packed = rest[8:]
    return found


SAMPLE = [
    One("folder", mode=0o755, kind=FOLDER),
    *(One(f"folder/{size}", noise(size), 0o755) for size in SIZES),
    One("folder/link", kind=SYMLINK, link="t" * 150),
    One("folder/" + "ü" * 60, b"x"),
    One("d" * 150 + "/" + "n" * 90, bytes(1000)),
]


@pytest.mark.parametrize("way", ["data", "stream"])
def test_every_member_is_a_gzip_file_with_its_own_sum_and_size(way: str) -> None:
    packed = check(SAMPLE, way)
    found = members(packed)
    assert b"".join(plain for _, plain in found) == gzip.decompress(packed)
    assert len(found) > len(SAMPLE)


def test_the_deflate_stream_of_a_file_is_in_the_layer_as_it_was_given() -> None:
    content = b"a sentence that repeats; " * 1000
    streams = {level: deflated(content, level) for level in (1, 6, 9)}
    assert len(set(streams.values())) > 1
    for packed in streams.values():
        out = io.BytesIO()
        writer = Writer(out)
        writer.start("file", len(content))
        writer.begin()
        writer.stream(packed, content)
        writer.end(zlib.crc32(content), len(content))
        writer.close()
        assert members(out.getvalue())[1] == (packed, content)


def test_what_the_writer_makes_itself_is_stored_and_fixed_blocks_only() -> None:
    """No dynamic block, which is what a compressor decides; and contents lie in the file as they are."""
    packed, _ = written([One("a", noise(70_000)), One("b", b"text " * 100)])
    assert noise(70_000)[:65535] in packed
    assert b"text " * 100 in packed
    assert all(stream[0] & 7 != 0b100 and stream[0] & 7 != 0b101 for stream, _ in members(packed))


def test_the_bytes_are_those_of_every_day() -> None:
    """Another digest here is another blob for every user: labrig.layers.VERSION has to change with it."""
    first, second = written(SAMPLE)[0], written(SAMPLE)[0]
    assert hashlib.sha256(first).hexdigest() == "b6b0c1847367625b2d6c1400106912bdb993bef04f6b4d21c61bff3baa4ffb78"
    assert first == second
    assert len(first) < sum(len(one.content) for one in SAMPLE) + 400 * (len(SAMPLE) + 10)


@pytest.mark.parametrize("last", [True, False], ids=["last", "then more"])
def test_a_run_of_zeros_inflates_to_as_many_zeros(last: bool) -> None:
    for count in [*range(1600), 2048, 4096, 5000, 65535, 65536, 100_000]:
        inflate = zlib.decompressobj(-15)
        packed = zeros(count, last=last)
        if last:
            assert inflate.decompress(packed) == bytes(count)
            assert inflate.eof
            assert inflate.unused_data == b""
        else:
            block = b"\3\0\xfc\xffabc"  # the rest of a stored block whose first byte the zeros end with
            assert inflate.decompress(packed + block + b"\3\0") == bytes(count) + b"abc"
            assert inflate.eof
            assert inflate.unused_data == b""


def test_a_stored_block_inflates_to_its_content() -> None:
    for content in (b"", b"x", noise(65535)):
        assert zlib.decompress(stored(content, last=True), -15) == content
        assert zlib.decompress(stored(content, last=False) + stored(b"end", last=True), -15) == content + b"end"


# --- other programs' opinion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["data", "stream"])
def test_gzip_and_tar_accept_it(way: str, tmp_path: Path) -> None:
    file = tmp_path / "layer.tar.gz"
    file.write_bytes(check(SAMPLE, way))
    gzipped = subprocess.run(["gzip", "-t", file], capture_output=True, text=True, check=False)
    assert (gzipped.returncode, gzipped.stdout, gzipped.stderr) == (0, "", "")
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tzf", file],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [name.rstrip("/") for name in listed.stdout.splitlines()] == [one.path for one in SAMPLE]
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        ["tar", "-xzf", file, "-C", tmp_path / "out", "--no-same-owner"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for one in SAMPLE:
        place = tmp_path / "out" / one.path
        if one.kind == FILE:
            assert place.read_bytes() == one.content
            assert place.stat().st_mode & 0o100 == one.mode & 0o100
            assert place.stat().st_mtime == int(EPOCH)
        elif one.kind == SYMLINK:
            assert str(place.readlink()) == one.link


# --- a tar that is there already --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_whole_tar_is_packed_and_known_by_both_digests(size: int) -> None:
    plain = (noise(1000) * (size // 1000 + 1))[:size]
    out = io.BytesIO()
    writer = Writer(out)
    writer.pack(io.BytesIO(plain))
    assert gzip.decompress(out.getvalue()) == plain
    assert writer.digest == f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"
    assert writer.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert (writer.size, writer.plain_size) == (len(out.getvalue()), size)
