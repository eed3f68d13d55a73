"""The wheelhouse against real servers on 127.0.0.1, good and bad ones, real processes and a really full disk."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from certificates import make as make_certificates
from servers import CHUNK, IndexServer, Manners

from labrig import crew, wheelhouse
from labrig import progress as progress_module
from labrig.download import size_asker
from labrig.errors import FetchError, Interrupted
from labrig.indexes import Sources
from labrig.lock import Wheel
from labrig.progress import Progress, megabytes

SIZE = 40 * CHUNK
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port
ROOT = Path(__file__).parents[2]


def content(name: str, size: int = SIZE) -> bytes:
    return random.Random(name).randbytes(size)  # noqa: S311


def wheel(name: str, data: bytes | None = None) -> Wheel:
    data = content(name) if data is None else data
    return Wheel(name, "1.0+cpu", f"{name}-1.0+cpu-py3-none-any.whl", hashlib.sha256(data).hexdigest(), len(data))


def served(*names: str, manners: Manners | None = None, tls: Path | None = None) -> IndexServer:
    return IndexServer({wheel(name).file: content(name) for name in names}, manners, tls)


def sources(default: str | None = None, **more: object) -> Sources:
    return Sources(default=default, **{"timeout": 5.0, **more})  # type: ignore[arg-type]


def bring(wheels: Sequence[Wheel], where: Sources, store: Path, **more: object) -> wheelhouse.Fetched:
    return wheelhouse.fetch(wheels, where, **{"pinned": {}, "store": store, **more})  # type: ignore[arg-type]


def stored(store: Path) -> list[str]:
    """Every file in the store, relative."""
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "BACKOFF", 0.01)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


# --- the plain case ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manners", [Manners(), Manners(hashes=False), Manners(json=True)], ids=["html", "bare", "json"]
)
def test_wheels_of_an_index_come_verified(store: Path, manners: Manners, capsys: pytest.CaptureFixture[str]) -> None:
    wheels = [wheel("one"), wheel("two")]
    assert wheelhouse.missing(wheels, store) == wheels
    with served("one", "two", "three", manners=manners) as index:
        done = bring(wheels, sources(index.url), store)
        asked = len(index.requests)
        again = bring(wheels, sources(index.url), store)
    assert (done.downloaded, done.received, done.reused) == (2, 2 * SIZE, 0)
    assert (again.downloaded, again.reused, again.reused_bytes) == (0, 2, 2 * SIZE)
    assert asked == len(index.requests) == 4, "what is there is not asked for again"
    for item in wheels:
        path = store / item.sha256[:2] / item.sha256 / item.file
        assert path == wheelhouse.find(item, store)
        assert path.read_bytes() == content(item.name)
    assert wheelhouse.missing(wheels, store) == []
    assert len(stored(store)) == 2, "nothing unfinished is left"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "2 downloaded" in printed.err


def test_nothing_to_do_needs_neither_places_nor_a_writable_store(store: Path) -> None:
    assert bring([], sources(), store).reused == 0
    assert not store.exists()


def test_a_folder_is_linked_and_no_index_is_asked(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my wheels"
    folder.mkdir()
    (folder / wheel("one").file).write_bytes(content("one"))
    with served("one") as index:
        done = bring([wheel("one")], sources(index.url, find_links=(str(tmp_path / "gone"), str(folder))), store)
        assert index.requests == []
    assert (done.linked, done.linked_bytes, done.downloaded, done.received) == (1, SIZE, 0, 0)
    assert wheelhouse.find(wheel("one"), store).samefile(folder / wheel("one").file)


def test_a_folder_on_another_disk_is_copied(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / wheel("one").file).write_bytes(content("one"))
    done = bring([wheel("one")], sources(find_links=((tmp_path / "folder").as_uri(),)), store, offline=True)
    assert (done.linked, done.received) == (1, 0)
    path = wheelhouse.find(wheel("one"), store)
    assert path.read_bytes() == content("one")
    assert path.stat().st_nlink == 1


def test_another_build_of_the_same_name_in_a_folder_is_passed_over(store: Path, tmp_path: Path) -> None:
    (tmp_path / wheel("one").file).write_bytes(b"another build")
    with served("one") as index:
        done = bring([wheel("one")], sources(index.url, find_links=(str(tmp_path),)), store)
    assert (done.linked, done.downloaded) == (0, 1)


def test_a_folder_can_be_a_simple_index_and_lack_packages(store: Path, tmp_path: Path) -> None:
    page = tmp_path / "simple" / "one"
    page.mkdir(parents=True)
    (tmp_path / wheel("one").file).write_bytes(content("one"))
    page.joinpath("index.html").write_text(f'<a href="../../{wheel("one").file}#sha256={wheel("one").sha256}">x</a>')
    with served("two") as index:
        where = sources(index.url, extra=((tmp_path / "simple").as_uri(),))
        done = bring([wheel("one"), wheel("two")], where, store)
    assert (done.linked, done.downloaded) == (1, 1)
    assert {request.path for request in index.requests} == {"/simple/two/", f"/files/{wheel('two').file}"}


def test_a_page_of_links_serves(store: Path) -> None:
    with served("one") as index, served("one") as other:
        bring([wheel("one")], sources(other.url, find_links=(index.links,)), store)
        assert len(index.downloads()) == 1
        assert other.requests == []


def test_a_link_may_name_a_wheel_itself(store: Path) -> None:
    with served("one") as index:
        bring([wheel("one")], sources(find_links=(f"{index.base}/files/{wheel('one').file}",)), store)
        assert [request.path for request in index.requests] == [f"/files/{wheel('one').file}"]


def test_an_extra_index_out_of_reach_is_said_and_the_next_is_asked(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("one", "two") as index:
        bring([wheel("one"), wheel("two")], sources(index.url, extra=(NOWHERE,)), store)
    said = capsys.readouterr().err
    assert said.count(f"index {NOWHERE} cannot be reached") == 1


def test_a_proxy_is_used(store: Path) -> None:
    with served("one") as proxy:
        bring([wheel("one")], sources("http://packages.invalid/simple", proxy=proxy.base), store)
        assert len(proxy.downloads()) == 1


# --- transfers that go wrong ------------------------------------------------------------------------------------


def test_a_dropped_connection_is_taken_up_where_it_broke(store: Path) -> None:
    with served("one", manners=Manners(drop_after=10 * CHUNK)) as index:
        done = bring([wheel("one")], sources(index.url), store)
        starts = [request.headers.get("Range") for request in index.downloads()]
    assert starts == [None, *(f"bytes={n * 10 * CHUNK}-" for n in (1, 2, 3))]
    assert done.received == SIZE


def test_a_server_without_ranges_begins_anew(store: Path) -> None:
    with served("one", manners=Manners(drop_after=10 * CHUNK, drops=1, ranges=False)) as index:
        done = bring([wheel("one")], sources(index.url), store)
        assert [request.headers.get("Range") for request in index.downloads()] == [None, f"bytes={10 * CHUNK}-"]
    assert done.received == SIZE + 10 * CHUNK
    assert wheelhouse.find(wheel("one"), store).read_bytes() == content("one")


@pytest.mark.parametrize("left", [b"of another file", content("one") + b"too long", content("another")])
def test_what_was_left_and_does_not_fit_is_thrown_away(
    store: Path, left: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "partial").mkdir(parents=True)
    (store / "partial" / wheel("one").sha256).write_bytes(left)
    with served("one") as index:
        bring([wheel("one")], sources(index.url), store)
    assert wheelhouse.find(wheel("one"), store).read_bytes() == content("one")
    assert len(stored(store)) == 1
    assert len(left) > SIZE or "does not fit" in capsys.readouterr().err


def test_what_was_left_whole_is_not_fetched_again(store: Path) -> None:
    (store / "partial").mkdir(parents=True)
    (store / "partial" / wheel("one").sha256).write_bytes(content("one"))
    with served("one") as index:
        done = bring([wheel("one")], sources(index.url), store)
        assert index.downloads() == []
    assert done.received == 0
    assert wheelhouse.missing([wheel("one")], store) == []


@pytest.mark.parametrize(
    "wrong", [content("evil"), b"short", content("one") + b"more"], ids=["same size", "short", "long"]
)
@pytest.mark.parametrize("hashes", [True, False])
def test_wrong_bytes_name_file_digests_and_source_and_nothing_stays(store: Path, wrong: bytes, hashes: bool) -> None:
    one = wheel("one")
    lying = Manners(hashes=hashes, stated={one.file: one.sha256}, credentials="someone:secret")
    with IndexServer({one.file: wrong}, lying) as index, pytest.raises(FetchError) as caught:
        bring([one], sources(index.with_credentials("someone:secret")), store)
    text = str(caught.value)
    assert one.file in text
    assert one.sha256 in text
    assert hashlib.sha256(wrong).hexdigest() in text
    assert index.host in text
    assert "secret" not in text
    assert stored(store) == []


def test_an_index_that_states_another_hash_is_not_downloaded_from(store: Path) -> None:
    with IndexServer({wheel("one").file: b"another build"}) as index:
        with pytest.raises(FetchError) as caught:
            bring([wheel("one")], sources(index.url), store)
        assert index.downloads() == []
    assert wheel("one").sha256 in str(caught.value)
    assert hashlib.sha256(b"another build").hexdigest() in str(caught.value)


def test_busy_servers_are_asked_again(store: Path) -> None:
    with served("one", manners=Manners(failures=2)) as index:
        bring([wheel("one")], sources(index.url), store)
        index.manners.failures = 0
        assert len(index.requests) == 4
    with IndexServer({wheel("two").file: content("two")}) as index:
        page = sources(find_links=(f"{index.base}/files/{wheel('two').file}",))
        index.manners.failures = 3
        bring([wheel("two")], page, store)
        assert len(index.downloads()) == 4


def test_a_server_that_stays_busy_is_given_up(store: Path) -> None:
    with (
        served("one", manners=Manners(failures=1000)) as index,
        pytest.raises(FetchError, match=r"Server Error\(503\)"),
    ):
        bring([wheel("one")], sources(index.url), store)
    with served("one", manners=Manners(failures=1000)) as index, pytest.raises(FetchError, match="HTTP 503"):
        bring([wheel("one")], sources(find_links=(f"{index.base}/files/{wheel('one').file}",)), store)


@pytest.mark.parametrize("manners", [Manners(hang=True), Manners(hang_files=True)], ids=["page", "file"])
def test_a_server_that_never_answers_is_given_up(store: Path, manners: Manners) -> None:
    began = time.monotonic()
    with served("one", manners=manners) as index, pytest.raises(FetchError, match="ReadTimeout"):
        bring([wheel("one")], sources(index.url, timeout=0.3), store)
    assert time.monotonic() - began < 4


def test_a_file_that_is_gone_is_an_error_with_its_status(store: Path) -> None:
    with served("one") as index:
        gone = f"{index.base}/files/{wheel('two').file}"
        with pytest.raises(FetchError, match="HTTP 404"):
            bring([wheel("two")], sources(find_links=(gone,)), store)


# --- HTTPS and credentials --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def test_a_certificate_authority_of_ones_own(store: Path, certificates: tuple[Path, Path]) -> None:
    ca, leaf = certificates
    with served("one", tls=leaf) as index:
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            bring([wheel("one")], sources(index.url), store)
        assert bring([wheel("one")], sources(index.url, cert=ca), store).downloaded == 1


def test_a_trusted_host_is_not_verified(store: Path, certificates: tuple[Path, Path]) -> None:
    with served("one", tls=certificates[1]) as index:
        assert bring([wheel("one")], sources(index.url, trusted_hosts=(index.host,)), store).downloaded == 1


def test_credentials_of_a_url_are_used_and_never_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served("one", manners=Manners(credentials="someone:s3cr/et"), tls=None) as index:
        where = sources(index.with_credentials("someone:s3cr%2Fet"))
        assert bring([wheel("one")], where, store).downloaded == 1
        with pytest.raises(FetchError) as caught:
            bring([wheel("two")], where, store)
        with pytest.raises(FetchError, match="401"):
            bring([wheel("one")], sources(index.url), store / "other")
    with pytest.raises(FetchError) as refused:
        bring([wheel("one")], sources(where.default), store / "other")
    printed = capsys.readouterr()
    for text in (str(caught.value), str(refused.value), printed.out, printed.err, repr(where)):
        assert "s3cr" not in text
        assert "someone" not in text
    assert index.host in str(caught.value)


# --- pinned to an index -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [NOWHERE, "http://packages.invalid/simple"], ids=["refused", "unresolvable"])
def test_a_pinned_wheel_out_of_reach_stops_before_any_download(store: Path, address: str) -> None:
    began = time.monotonic()
    with served("one", "torch") as index:
        where = sources(index.url, named={"pytorch-cpu": address}, find_links=(str(store / "gone"),))
        with pytest.raises(FetchError) as caught:
            bring([wheel("one"), wheel("torch")], where, store, pinned={"Torch": "pytorch-cpu"})
        assert index.requests == []
    assert time.monotonic() - began < 5
    text = str(caught.value)
    for part in (wheel("torch").file, address, "cannot be reached", str(store / "gone"), "no such folder"):
        assert part in text
    for part in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "--index pytorch-cpu=URL", "LABRIG_INDEX_PYTORCH_CPU"):
        assert part in caught.value.fix
    assert stored(store) == []


def test_a_pinned_wheel_comes_from_its_index_alone(store: Path) -> None:
    with served("one", "torch") as index, served("torch") as named:
        where = sources(index.url, named={"special": named.url})
        bring([wheel("one"), wheel("torch")], where, store, pinned={"torch": "special"})
        assert [request.path for request in index.downloads()] == [f"/files/{wheel('one').file}"]
        assert [request.path for request in named.downloads()] == [f"/files/{wheel('torch').file}"]


def test_a_pinned_wheel_is_not_looked_for_elsewhere(store: Path) -> None:
    with served("torch") as index, served("one") as named:
        where = sources(index.url, named={"special": named.url})
        with pytest.raises(FetchError, match="not there"):
            bring([wheel("torch")], where, store, pinned={"torch": "special"})
        assert index.requests == []


@pytest.mark.parametrize("named", [{"special": None}, {}], ids=["off", "unknown"])
def test_an_index_switched_off_leaves_the_ordinary_places(store: Path, named: dict[str, str | None]) -> None:
    with served("torch") as index:
        done = bring([wheel("torch")], sources(index.url, named=named), store, pinned={"torch": "special"})
    assert done.downloaded == 1


def test_a_folder_comes_before_the_pinned_index(store: Path, tmp_path: Path) -> None:
    (tmp_path / wheel("torch").file).write_bytes(content("torch"))
    where = sources(named={"special": NOWHERE}, find_links=(str(tmp_path),))
    assert bring([wheel("torch")], where, store, pinned={"torch": "special"}).linked == 1


def test_a_refused_page_says_nothing_of_the_others(store: Path) -> None:
    with served("one", manners=Manners(status=403)) as closed, served("one", "two") as index:
        bring([wheel("one"), wheel("two")], sources(index.url, extra=(closed.url,)), store, jobs=1)
        assert len(closed.requests) == 2


# --- the store --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_corrupt_file_is_reported_and_fetched_again(
    store: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with served("one", "two") as index:
        bring([wheel("one"), wheel("two")], sources(index.url), store)
        path = wheelhouse.find(wheel("one"), store)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "flip" else data[:1000])
        done = bring([wheel("one"), wheel("two")], sources(index.url), store)
    assert (done.corrupt, done.downloaded, done.reused) == ((wheel("one").file,), 1, 1)
    assert path.read_bytes() == content("one")
    assert f"{path} is corrupt" in capsys.readouterr().err


def test_a_corrupt_file_does_not_stay_when_it_cannot_be_fetched(store: Path) -> None:
    path = wheelhouse.find(wheel("one"), store)
    path.parent.mkdir(parents=True)
    path.write_bytes(content("evil"))
    with pytest.raises(FetchError):
        bring([wheel("one")], sources(), store)
    assert stored(store) == []


def test_offline_opens_no_connection(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        opened.append(arguments)
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / wheel("one").file).write_bytes(content("one"))
    where = sources(
        NOWHERE, named={"special": NOWHERE}, find_links=(f"{NOWHERE}/links", str(folder)), extra=("http://x.invalid",)
    )
    assert bring([wheel("one")], where, store, offline=True).linked == 1
    with pytest.raises(FetchError) as caught:
        lost = [wheel("two"), wheel("torch"), wheel("one")]
        bring(lost, where, store, offline=True, pinned={"torch": "special", "two": "special"})
    assert opened == []
    for part in ("two 1.0+cpu", "torch 1.0+cpu", megabytes(SIZE), megabytes(2 * SIZE), "--offline"):
        assert part in str(caught.value)
    with pytest.raises(AssertionError, match="a connection was opened"):
        bring([wheel("two")], where, store)  # the guard itself works
    assert opened != []


def test_the_same_folder_for_uv(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = [wheel("one"), wheel("two")]
    flat = tmp_path / "flat"
    with pytest.raises(FetchError, match="not in the wheelhouse: 2 of 2 wheels"):
        wheelhouse.link_folder(wheels, store, flat)
    with served("one", "two") as index:
        bring(wheels, sources(index.url), store)
    flat.mkdir()
    (flat / wheels[0].file).write_bytes(b"of an earlier lock")
    for _ in range(2):
        assert wheelhouse.link_folder(wheels, store, flat) == flat
        assert stored(flat) == [item.file for item in wheels]
        assert all((flat / item.file).samefile(wheelhouse.find(item, store)) for item in wheels)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    wheelhouse.link_folder(wheels, store, tmp_path / "symbolic")
    assert (tmp_path / "symbolic" / wheels[0].file).is_symlink()
    monkeypatch.setattr(os, "symlink", refuse)
    wheelhouse.link_folder(wheels, store, tmp_path / "copies")
    assert (tmp_path / "copies" / wheels[0].file).read_bytes() == content("one")
    assert not (tmp_path / "copies" / wheels[0].file).is_symlink()


# --- processes --------------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from labrig import wheelhouse
from labrig.errors import LabrigError
from labrig.indexes import Sources
from labrig.lock import Wheel
store, url, *rest = sys.argv[1:]
wheels = [Wheel(*line.split(",")[:4], int(line.split(",")[4])) for line in rest]
try:
    print(wheelhouse.fetch(wheels, Sources(default=url, timeout=30.0), pinned={}, store=Path(store)).received)
except LabrigError as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)
"""


def command(store: Path, url: str, *wheels: Wheel, script: str = FETCH) -> list[str]:
    lines = [",".join(map(str, dataclasses.astuple(item))) for item in wheels]
    return [sys.executable, "-W", "error", "-c", script, str(store), url, *lines]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def wait_for(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_killed_fetch_is_taken_up(store: Path, processes: list[subprocess.Popen[str]]) -> None:
    one, partial = wheel("one"), store / "partial" / wheel("one").sha256
    with served("one", manners=Manners(pause=0.05)) as index:
        processes.append(start(command(store, index.url, one)))
        wait_for(lambda: size_of(partial) >= 5 * CHUNK)
        processes[0].send_signal(signal.SIGKILL)
        assert processes[0].wait(10) == -signal.SIGKILL
        assert stored(store) == [f"partial/{one.sha256}"]
        left = size_of(partial)
        assert partial.read_bytes() == content("one")[:left]
        index.manners.pause = 0
        shown = Progress(stream=io.StringIO())
        done = bring([one], sources(index.url), store, progress=shown)
        assert (shown.total, shown.done) == (SIZE, SIZE)
        assert index.downloads()[-1].headers["Range"] == f"bytes={left}-"
    assert done.received == SIZE - left
    assert wheelhouse.find(one, store).read_bytes() == content("one")
    assert len(stored(store)) == 1


@pytest.mark.parametrize("manners", [Manners(pause=0.05), Manners(hang_files=True), Manners(hang=True)])
def test_ctrl_c_stops_within_two_seconds(store: Path, processes: list[subprocess.Popen[str]], manners: Manners) -> None:
    with served("one", "two", "three", manners=manners) as index:
        process = start(command(store, index.url, wheel("one"), wheel("two"), wheel("three")))
        processes.append(process)
        ready = "/simple/" if manners.hang else "/files/"
        wait_for(lambda: sum(request.path.startswith(ready) for request in index.requests) == 3)
        time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        assert time.monotonic() - began < 2
    assert process.returncode == Interrupted.code
    assert "goes on where it stopped" in said
    assert "Traceback" not in said
    assert all(name.startswith("partial/") for name in stored(store))


def test_two_processes_fetch_the_same_wheel_once(store: Path, processes: list[subprocess.Popen[str]]) -> None:
    with served("one", "two", manners=Manners(pause=0.02)) as index:
        processes += [start(command(store, index.url, wheel("one"), wheel("two"))) for _ in range(2)]
        answers = [process.communicate(timeout=20) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], answers
        assert sorted(request.path for request in index.downloads()) == sorted(
            f"/files/{wheel(name).file}" for name in ("one", "two")
        )
    assert sum(int(out) for out, _ in answers) == 2 * SIZE
    assert "waiting for another process" in answers[0][1] + answers[1][1]
    assert len(stored(store)) == 2
    for name in ("one", "two"):
        assert wheelhouse.find(wheel(name), store).read_bytes() == content(name)


def test_a_waiting_process_takes_over_from_a_killed_one(store: Path, processes: list[subprocess.Popen[str]]) -> None:
    with served("one", manners=Manners(pause=0.05)) as index:
        processes.append(start(command(store, index.url, wheel("one"))))
        wait_for(lambda: size_of(store / "partial" / wheel("one").sha256) >= 3 * CHUNK)
        processes.append(start(command(store, index.url, wheel("one"))))
        wait_for(lambda: len(index.requests) == 3)  # its page
        processes[0].kill()
        processes[0].wait(10)
        index.manners.pause = 0
        out, said = processes[1].communicate(timeout=20)
        assert processes[1].returncode == 0, said
        assert index.downloads()[-1].headers["Range"].startswith("bytes=")
    assert 0 < int(out) < SIZE
    assert wheelhouse.find(wheel("one"), store).read_bytes() == content("one")


# --- disks ------------------------------------------------------------------------------------------------------


def on_small_disk(folder: Path, arguments: list[str], between: str = "true") -> subprocess.CompletedProcess[str]:
    """Run a command with a disk of 1 MiB mounted on ``folder``, for it alone; ``between``: shell code run before."""
    if sys.platform != "linux":
        pytest.skip("mounts a small disk with Linux's unshare")
    ways = [["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]]
    way = next((w for w in ways if subprocess.run([*w, "true"], capture_output=True, timeout=10).returncode == 0), None)
    if way is None:
        pytest.skip("this container allows neither mounts nor user namespaces: no small disk can be made")
    folder.mkdir(parents=True)
    script = f'mount -t tmpfs -o size=1m tmpfs "$0" && {between} && exec "$@"'
    return subprocess.run(
        [*way, "sh", "-ec", script, str(folder), *arguments], capture_output=True, text=True, timeout=30, cwd=ROOT
    )


def test_a_disk_too_small_is_seen_before_anything_is_fetched(store: Path) -> None:
    with served("one", "two") as index:
        done = on_small_disk(store, command(store, index.url, wheel("one"), wheel("two")))
        assert index.downloads() == []
    assert done.returncode == FetchError.code, done.stderr
    assert f"not enough room in {store}" in done.stderr
    assert f"1.0 MB free, {megabytes(2 * SIZE)} needed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_up_on_the_way(store: Path) -> None:
    # Somebody else fills the disk after the check: the check sees it empty.
    blind = "import shutil; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)\n" + FETCH
    with served("one", "two") as index:
        done = on_small_disk(store, command(store, index.url, wheel("one"), wheel("two"), script=blind))
        assert len(index.downloads()) == 2
    assert done.returncode == FetchError.code, done.stderr
    for part in ("No space left on device", str(store), "free", f"{megabytes(2 * SIZE)} needed", "LABRIG_CACHE"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_store(store: Path, tmp_path: Path) -> None:
    with served("one", "two") as index:
        done = on_small_disk(store, command(store, index.url, wheel("one")), between='mount -o remount,ro "$0"')
        assert done.returncode == FetchError.code, done.stderr
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
        bring([wheel("one")], sources(index.url), tmp_path / "full")
        shutil.rmtree(store)
        filled = f'cp -r "{tmp_path / "full"}/." "$0" && mount -o remount,ro "$0"'
        whole = on_small_disk(store, command(store, NOWHERE, wheel("one")), between=filled)
        assert whole.returncode == 0, whole.stderr


def test_a_store_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with served("one") as index, pytest.raises(FetchError, match="LABRIG_CACHE"):
        bring([wheel("one")], sources(index.url), tmp_path / "file" / "store")


# --- sizes and progress -----------------------------------------------------------------------------------------


def test_a_server_is_asked_for_a_size() -> None:
    with served("one", manners=Manners(credentials="a:b")) as index, size_asker(sources()) as ask_size:
        url = f"http://a:b@{index.host}/files/{wheel('one').file}"
        assert ask_size(url) == SIZE
        assert index.requests[-1].method == "HEAD"
        with pytest.raises(FetchError, match="404") as caught:
            ask_size(url + "x")
        assert "a:b" not in str(caught.value)
    with size_asker(sources()) as ask_size, pytest.raises(FetchError, match="refused"):
        ask_size(url)


def test_a_log_gets_few_lines_and_the_rest_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "PAUSE", 0.0)
    out = io.StringIO()
    with Progress("fetch", out) as shown:
        shown.start(1_000_000, done=500_000)
        for _ in range(500):
            shown.advance(1000)
    lines = out.getvalue().splitlines()
    assert [line.split(" of ")[0] for line in lines] == [f"fetch: {n}%" for n in (60, 70, 80, 90, 100)]
    assert all("1.0 MB" in line and "/s, " in line and " s left" in line for line in lines)
    monkeypatch.setattr(progress_module, "PAUSE", 5.0)
    with Progress("fetch", out) as shown:
        shown.start(1000)
        shown.advance(1000)
    assert out.getvalue().splitlines() == lines, "a short fetch needs no lines on its way"


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Progress("fetch", out) as shown:
        shown.start(2_000_000)
        shown.advance(1_000_000)
        shown.say("[not] markup: a/b")
        shown.advance(1_000_000)
    text = out.getvalue()
    assert "2.0/2.0 MB" in text
    assert "[not] markup: a/b" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (191794682, "191.8 MB"), (27e8, "2.70 GB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert megabytes(int(count)) == text
