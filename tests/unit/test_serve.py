"""Labs in a student's folder: copied once, brought up to date, never written over; and JupyterLab's door."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labs import serve
from labs.harness import LabStop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The labs of an image."""
    folder = tmp_path / "image" / "labs"
    for name in ("01_one.py", "02_two.py", "data/rows.csv", "notebooks/01_one.ipynb", "empty.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if name == "empty.txt" else f"first {name}")
    for name in ("__pycache__/x.pyc", ".hidden", "data/.cache/y"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no lab")
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def release(source: Path, *names: str) -> None:
    """A newer image: these labs are others."""
    for name in names:
        (source / name).write_text(f"second {name}")


def test_what_is_missing_is_copied_and_a_second_time_nothing(source: Path, work: Path) -> None:
    first = serve.copy(source, work)
    names = ("01_one.py", "02_two.py", "data/rows.csv", "empty.txt", "notebooks/01_one.ipynb")
    assert first.new == tuple(f"labs/{name}" for name in names)
    for name in names:
        assert (work / "labs" / name).read_bytes() == (source / name).read_bytes()
    assert sorted(p.name for p in work.rglob("*") if p.is_file()) == sorted(
        [serve.RECORD, *(Path(n).name for n in names)]
    )
    times = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert serve.copy(source, work) == serve.Copied()
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == times


def test_an_edited_file_is_kept_and_one_as_it_was_copied_is_brought_up_to_date(source: Path, work: Path) -> None:
    serve.copy(source, work)
    mine = work / "labs" / "01_one.py"
    mine.write_text("mine")
    (work / "labs" / "mine.py").write_text("mine as well")
    (work / "labs" / "empty.txt").write_text("no longer empty")
    release(source, "01_one.py", "02_two.py", "empty.txt")
    for _ in range(2):
        done = serve.copy(source, work)
        assert done.kept == ("labs/01_one.py", "labs/empty.txt")
        assert mine.read_text() == "mine"
    assert (work / "labs" / "02_two.py").read_text() == "second 02_two.py"
    assert (work / "labs" / "mine.py").read_text() == "mine as well"
    mine.unlink()
    assert serve.copy(source, work).new == ("labs/01_one.py",), "deleted: it comes anew"
    assert mine.read_text() == "second 01_one.py"
    mine.write_text("first 01_one.py")  # as it once came: nobody's work is in it
    assert serve.copy(source, work).updated == ("labs/01_one.py",)


def test_a_file_that_a_student_emptied_is_edited(source: Path, work: Path) -> None:
    serve.copy(source, work)
    (work / "labs" / "01_one.py").write_text("")
    assert serve.copy(source, work).kept == ("labs/01_one.py",)


def test_an_older_image_brings_its_labs_back(source: Path, work: Path) -> None:
    serve.copy(source, work)
    release(source, "01_one.py")
    serve.copy(source, work)
    (source / "01_one.py").write_text("first 01_one.py")
    assert serve.copy(source, work).updated == ("labs/01_one.py",)


def test_links_pipes_and_folders_of_those_names_are_left_alone_and_lead_nowhere(
    source: Path, work: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "letter").write_text("dear")
    (work / "labs").mkdir()
    (work / "labs" / "data").symlink_to(outside / "deep")
    (work / "labs" / "01_one.py").symlink_to(outside / "letter")
    (work / "labs" / "02_two.py").symlink_to(outside / "nothing")
    os.mkfifo(work / "labs" / "empty.txt")
    (work / "labs" / "notebooks").write_text("a file")
    done = serve.copy(source, work)
    assert (done.new, done.updated) == ((), ())
    assert len(done.kept) == 5
    assert (outside / "letter").read_text() == "dear"
    assert sorted(path.name for path in outside.rglob("*")) == ["deep", "letter"]


@pytest.mark.parametrize("name", [serve.RECORD, f".{serve.RECORD}.labrig-new", "labs/.01_one.py.labrig-new"])
def test_no_name_that_the_copy_writes_can_be_laid_as_a_link(
    source: Path, work: Path, tmp_path: Path, name: str
) -> None:
    letter = tmp_path / "letter"
    letter.write_text("dear")
    (work / "labs").mkdir()
    (work / name).symlink_to(letter)
    serve.copy(source, work)
    assert letter.read_text() == "dear"
    assert (work / "labs" / "01_one.py").read_text() == "first 01_one.py"


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"files": 3}', '{"files": {"labs/01_one.py": 3}}', "\udcff"])
def test_a_damaged_record_overwrites_nothing(source: Path, work: Path, text: str) -> None:
    serve.copy(source, work)
    (work / "labs" / "01_one.py").write_text("mine")
    (work / serve.RECORD).write_bytes(text.encode(errors="surrogateescape"))
    release(source, "01_one.py", "02_two.py")
    assert set(serve.copy(source, work).kept) == {"labs/01_one.py", "labs/02_two.py"}
    assert (work / "labs" / "01_one.py").read_text() == "mine"


def test_a_copy_that_is_killed_goes_on(source: Path, work: Path) -> None:
    """Wherever it is killed: each file is whole, and after an update in between none counts as edited."""
    for number in range(1000):
        (source / "data" / f"{number}.bin").write_bytes(os.urandom(1000))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from labs import serve\n"
    code += f"serve.copy(Path({str(source)!r}), Path({str(work)!r}))"

    def there() -> list[Path]:
        return [path for path in (work / "labs" / "data").glob("*.bin") if not path.name.startswith(".")]

    killed = 0
    for few in (0, 1, 20, 40, 80, 120):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            while process.poll() is None and (len(there()) < few or not (work / serve.RECORD).exists()):
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        assert all(path.stat().st_size == 1000 for path in there())
    assert killed == 6 and len(there()) < 1000, "each was killed on its way"
    release(source, "01_one.py", *(f"data/{number}.bin" for number in range(0, 1000, 7)))
    assert serve.copy(source, work).kept == ()
    for path in source.rglob("*.bin"):
        assert (work / "labs" / path.relative_to(source)).read_bytes() == path.read_bytes()
    assert [path for path in work.rglob("*.labrig-new") if path.is_file()] == []


def test_a_checkout_is_served_as_it_is(source: Path) -> None:
    assert serve.copy(source, source.parent) == serve.Copied()
    assert not (source.parent / serve.RECORD).exists()


def test_what_was_kept_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    serve.tell(serve.Copied(("a",), (), tuple(f"labs/{n}" for n in range(9))))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "labs: 1 copied, 0 brought up to date",
        "kept as edited: labs/0, labs/1, labs/2 and 6 more; to get one anew, delete or rename it and start again",
    ]
    serve.tell(serve.Copied())
    assert capsys.readouterr().err == ""


# --- JupyterLab's door ----------------------------------------------------------------------------------------------


def stop(code: int, match: str) -> object:
    return pytest.raises(LabStop, match=match, check=lambda error: error.code == code)


def test_root_is_refused(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with stop(3, "does not run as root"):
        serve.serve(work)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "*", "localhost", "0"])
def test_no_address_that_is_everywhere(ip: str) -> None:
    with stop(2, "--ip"):
        serve.checked_address(ip)
    assert serve.checked_address("127.0.0.1") == "127.0.0.1"


def test_an_empty_or_weak_token_is_no_open_door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    monkeypatch.delenv("JUPYTER_TOKEN_FILE", raising=False)
    assert serve.read_token() == ""
    monkeypatch.setenv("JUPYTER_TOKEN", " ")
    assert serve.read_token() == "", "Jupyter then makes one"
    file = tmp_path / "token"
    monkeypatch.setenv("JUPYTER_TOKEN_FILE", str(file))
    with stop(2, "cannot be read: No such file"):
        serve.read_token()
    for text, why in (("\n", "is empty"), ("short", "no good token"), ("a" * 20 + " b", "no good token")):
        file.write_text(text)
        with stop(2, why):
            serve.read_token()
    file.write_text("0123456789abcdef\n")
    assert serve.read_token() == "0123456789abcdef"
    monkeypatch.setenv("JUPYTER_TOKEN", "another0123456789")
    assert serve.read_token() == "another0123456789"


def test_it_opens_the_first_notebook_or_what_there_is_to_read(source: Path, work: Path) -> None:
    assert serve.first_page(work) == "/lab"
    (work / "labs").mkdir()
    (work / "labs" / "README.md").write_text("# Labs")
    assert serve.first_page(work) == "/lab/tree/labs/README.md"
    serve.copy(source, work)
    assert serve.first_page(work) == "/lab/tree/labs/notebooks/01_one.ipynb"


def test_the_command_holds_no_token_and_every_lock(work: Path) -> None:
    command = serve.jupyter_command(work, "127.0.0.1", 8888)
    assert command[:4] == [sys.executable, "-P", "-m", "jupyterlab"]
    for flag in ("ip=127.0.0.1", "port_retries=0", "allow_root=False", "allow_remote_access=False", f"root_dir={work}"):
        assert f"--ServerApp.{flag}" in command
    assert not any("token" in part.lower() for part in command)


def test_state_goes_to_the_home_or_where_that_cannot_be_written_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert serve.state_folder() == tmp_path / "state" / "labrig" / "jupyter"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(serve.tempfile, "tempdir", str(tmp_path))
    other = serve.state_folder()
    assert other.parent == tmp_path and other.is_dir()
    variables = serve.jupyter_variables(other)
    assert {Path(place).stat().st_mode & 0o777 for place in variables.values()} == {0o700}
    overrides = json.loads((other / "config/labconfig/default_setting_overrides.json").read_text())
    assert overrides["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


def test_a_container_that_shares_the_hosts_network_listens_at_127_0_0_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "IN_CONTAINER", (Path("/"),))
    monkeypatch.setattr(serve.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "docker0")])
    monkeypatch.setattr(serve.socket, "gethostbyname", lambda name: "172.17.0.5")
    assert serve.own_address() == "127.0.0.1"
    monkeypatch.setattr(serve.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    assert serve.own_address() == "172.17.0.5"
    monkeypatch.setattr(serve, "IN_CONTAINER", ())
    assert serve.own_address() == "127.0.0.1"
