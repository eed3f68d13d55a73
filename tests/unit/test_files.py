"""Atomic writing: the old content or the new, whatever happens in between."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from labrig import files


def test_text_arrives_as_utf8_with_its_line_ends_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.sh"
    files.write_atomically(file, "ü\n\r\nend", mode=0o755)
    assert file.read_bytes() == b"\xc3\xbc\n\r\nend"
    assert file.stat().st_mode & 0o777 == 0o755
    files.write_atomically(file, "second")
    assert file.read_text() == "second"
    assert file.stat().st_mode & 0o777 == 0o644
    assert [f.name for f in file.parent.iterdir()] == ["a.sh"]


def test_text_that_cannot_be_written_leaves_the_old(tmp_path: Path) -> None:
    file = tmp_path / "a"
    files.write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(file, "new \ud800")
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_a_folder_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.write_atomically(tmp_path / "a", "text")
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "b").is_dir()


def test_an_interrupt_before_the_rename_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    files.write_atomically(file, "old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def write_for_ever(file: Path) -> None:
    for number in range(10**9):
        files.write_atomically(file, f"{number % 10}" * 100_000)


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for _ in range(3):
        writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(file,))
        writer.start()
        time.sleep(0.15)
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        text = file.read_text()
        assert len(text) == 100_000 and len(set(text)) == 1
