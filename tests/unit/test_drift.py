"""`invoke update`: a real listing of the package index (2026-11-27), served on 127.0.0.1, against the tables."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_matrix import CACHED, raw

from labrig import drift, matrix, spec
from labrig.errors import FetchError, PendingError, UsageError

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("index")
TABLE = spec.read(ROOT / "images" / spec.TABLE)
TODAY = date(2026, 11, 27)
NEWEST = "2.15.0"  # of the recorded listing


class Server:
    """The recorded index under /simple, and a PyTorch index under /whl: variant -> file names, None for no answer."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {p: json.loads((RECORDED / f"{p}.json").read_text()) for p in drift.PACKAGES}
        self.variants: dict[str, list[str]] = {}
        self.raw: dict[str, bytes] = {}  # instead of a page
        self.metadata = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = self.path.strip("/").split("/")
                body, kind, code = outer.answer(parts)
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, parts: list[str]) -> tuple[bytes, str, int]:
        if parts[0] == "simple" and parts[1] in self.raw:
            return self.raw[parts[1]], "application/vnd.pypi.simple.v1+json", 200
        if parts[0] == "simple" and parts[1] in self.pages:
            return json.dumps(self.pages[parts[1]]).encode(), "application/vnd.pypi.simple.v1+json", 200
        if parts[0] == "whl" and parts[1] in self.variants:
            links = "".join(f'<a href="/files/{name}">{name}</a><br>' for name in self.variants[parts[1]])
            return f"<html><body>{links}</body></html>".encode(), "text/html", 200
        if parts[0] == "files" and self.metadata and (RECORDED / parts[1]).is_file():
            return (RECORDED / parts[1]).read_bytes(), "text/plain", 200
        return b"", "text/plain", 404


@pytest.fixture
def confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tables as if somebody had looked at the PyTorch index: what is unconfirmed of it is not there."""
    copy = tmp_path / "confirmed"
    shutil.copytree(matrix.DATA, copy)
    file = copy / "cuda_variants.tsv"
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    columns = [header.split("\t").index(platform) for platform in matrix.PLATFORMS]
    rows = [line.split("\t") for line in lines]
    for row in rows:
        for column in columns:
            row[column] = "no" if row[column] == "unconfirmed" else row[column]
    file.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    monkeypatch.setattr(matrix, "DATA", copy)
    clear()
    yield
    clear()


@pytest.fixture
def server(confirmed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    for build in matrix.variants(matrix.releases()[-2]):
        if build.platforms:
            server.variants[build.name] = [
                wheel(torch, build.name)
                for torch in matrix.releases()
                if (row := matrix.variant(torch, build.name)) and row.platforms
            ]
    yield server
    server.http.shutdown()
    server.http.server_close()


def wheel(torch: str, variant: str, platform: str = "manylinux_2_28_x86_64") -> str:
    return f"torch-{torch}%2B{variant}-cp313-cp313-{platform}.whl"


def ask(server: Server) -> drift.Index:
    return drift.read_index(TABLE, [f"pytorch-cpu={server.url}/whl/cpu"])


def changes(server: Server) -> list[drift.Drift]:
    return drift.compare(ask(server), TABLE, TODAY)


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tables as they were before the newest release: what update finds can then be compared with what was found."""
    copy = tmp_path / "data"
    shutil.copytree(matrix.DATA, copy)
    for name in ("releases", "wheels", "cuda_variants", "gpu_arch", "macos"):
        header, *lines = (copy / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        column = header.split("\t").index("torch")
        kept = [line for line in lines if line.split("\t")[column] != NEWEST]
        assert len(kept) < len(lines)
        (copy / f"{name}.tsv").write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    monkeypatch.setattr(matrix, "DATA", copy)
    clear()
    yield copy
    clear()


def clear() -> None:
    for function in CACHED:
        function.cache_clear()


# --- comparing --------------------------------------------------------------------------------------------------------


def test_nothing_has_changed_since_the_tables_were_read(server: Server) -> None:
    index = ask(server)
    assert index.unreachable == ""
    assert set(index.variants) >= {"cpu", "cu126", "cu130", "cu132"}
    assert drift.compare(index, TABLE, TODAY) == []
    drift.require_none([])


def test_a_new_release_is_found_with_its_cuda_and_what_it_dropped(server: Server, older: Path) -> None:
    found = changes(server)
    new = [each for each in found if each.kind == "new release"]
    assert [each.what for each in new] == [f"torch {NEWEST}"]
    assert "default on Linux x86_64: cu132" in new[0].found and "3.15" in new[0].found
    lost = {each.what: each.known for each in found if each.kind == "Python lost wheels"}
    assert lost[f"torch {NEWEST} on linux_x86_64"].endswith("3.10")
    with pytest.raises(PendingError) as error:
        drift.require_none(found)
    assert error.value.code == 8


def files(server: Server, version: str) -> list[dict[str, Any]]:
    return [file for file in server.pages["torch"]["files"] if file["filename"].startswith(f"torch-{version}-")]


def drop(server: Server, unwanted: Callable[[dict[str, Any]], bool]) -> None:
    page = server.pages["torch"]
    page["files"] = [file for file in page["files"] if not unwanted(file)]


def test_a_release_that_was_withdrawn(server: Server) -> None:
    for file in files(server, "2.14.0"):
        file["yanked"] = "broken"
    assert [(each.kind, each.what) for each in changes(server)] == [("release withdrawn", "torch 2.14.0")]


def test_a_python_that_lost_its_wheels_and_one_that_gained_some(server: Server) -> None:
    drop(server, lambda file: file["filename"] == "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    extra = dict(files(server, "2.13.0")[0])
    extra["filename"] = "torch-2.13.0-cp315-cp315-win_amd64.whl"
    extra["url"] = f"/files/{extra['filename']}"
    server.pages["torch"]["files"].append(extra)
    found = {(each.kind, each.what): (each.known, each.found) for each in changes(server)}
    assert found == {
        ("Python lost wheels", "torch 2.13.0 on linux_x86_64"): ("3.11", "no wheel any more"),
        ("wheels added", "torch 2.13.0 on windows_amd64"): ("none", "3.15"),
    }


def test_a_cuda_line_that_stopped_getting_torch(server: Server) -> None:
    server.variants["cu130"] = [name for name in server.variants["cu130"] if "2.14." not in name]
    server.variants["cu126"] = []
    found = [each for each in changes(server) if each.kind == "CUDA line stopped"]
    assert [(each.what, each.found.split(",")[0]) for each in found] == [
        ("cu126", "lists none any more"), ("cu130", "newest 2.13.0"),
    ]  # fmt: skip


def test_a_new_release_without_a_cuda_line(server: Server, older: Path) -> None:
    server.variants["cu132"].append(wheel(NEWEST, "cu132"))
    stopped = {each.what for each in changes(server) if each.kind == "CUDA line stopped"}
    assert "cu126" in stopped and "cu132" not in stopped


def test_a_build_that_was_added(server: Server) -> None:
    server.variants["cu132"].append(wheel("2.11.0", "cu132"))
    assert [(each.kind, each.what) for each in changes(server)] == [("build added", "torch 2.11.0+cu132")]


def test_a_python_out_of_support_that_a_target_uses(server: Server) -> None:
    index = ask(server)
    found = [each for each in drift.compare(index, TABLE, date(2027, 11, 1)) if each.kind == "Python out of support"]
    users = {name for name, target in TABLE.targets.items() if target.python == "3.11"}
    assert {each.what.removeprefix("target ") for each in found} == users
    assert not [each for each in drift.compare(index, TABLE, date(2027, 10, 31)) if each.kind.endswith("support")]


# --- proposing --------------------------------------------------------------------------------------------------------

PROVEN = {
    "releases": ("released", "requires_python", "pypi_cuda", "torchvision", "python_all", "python_some", "glibc_x86_64",
                 "glibc_aarch64"),
    "wheels": ("wheel_tag", "python", "build"),
    "cuda_variants": ("kind", "cuda", "linux_x86_64", "linux_aarch64", "pypi_default_on", "index_path"),
    "macos": ("arch", "wheel_tag", "macos_install_min"),
}  # fmt: skip
KEYS = {"releases": ("torch",), "wheels": ("package", "platform"), "cuda_variants": ("variant",), "macos": ("torch",)}


def test_what_is_written_is_what_a_person_once_found_out(server: Server, older: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    table = spec.read(tmp_path / "images" / spec.TABLE)
    index = ask(server)
    changed = drift.propose(index, table, TODAY, older)
    assert {path.name for path in changed} == {
        "sources.tsv", "releases.tsv", "wheels.tsv", "cuda_variants.tsv", "gpu_arch.tsv", "macos.tsv", "targets.toml",
    }  # fmt: skip
    for name, columns in PROVEN.items():
        ours = {tuple(r[k] for k in KEYS[name]): r for r in raw(name, older) if r["torch"] == NEWEST}
        theirs = {tuple(r[k] for k in KEYS[name]): r for r in raw(name, Path(drift.__file__).parent / "data")
                  if r["torch"] == NEWEST and r.get("package") != "torchaudio"}  # fmt: skip
        for key, row in ours.items():
            for column in columns:
                if column == "linux_x86_64" and row["variant"] == "cpu":
                    continue  # the default index does not tell of the PyTorch index's CPU wheel
                assert row[column] == theirs[key][column] or row[column] == "unconfirmed", (name, key, column)
        assert any(value not in ("unconfirmed", "-") for row in ours.values() for value in row.values())
    clear()
    assert matrix.releases()[-1] == NEWEST
    assert matrix.archs(NEWEST, "cu132", "linux_x86_64") is None, "not read, so not known"
    again = spec.read(table.path)
    name = f"cuda-{NEWEST.replace('.', '-')}"
    added = again.targets[name]
    assert (added.torch, added.variant, added.cuda) == (NEWEST, "cu132", "13.2")
    assert "Proposed by invoke update on 2026-11-27" in added.why
    assert set(again.targets) == {*TABLE.targets, name}
    assert table.path.read_text().startswith((ROOT / "images" / spec.TABLE).read_text().rstrip())

    before = {path: path.read_bytes() for path in (*older.iterdir(), table.path)}
    assert drift.propose(index, again, TODAY, older) == []
    assert {path: path.read_bytes() for path in before} == before
    assert [each.kind for each in drift.compare(index, again, TODAY) if each.kind == "new release"] == []


def test_without_metadata_the_build_is_unconfirmed_and_no_row_is_proposed(
    server: Server, older: Path, tmp_path: Path
) -> None:
    server.metadata = False
    shutil.copytree(ROOT / "images", tmp_path / "images")
    table = spec.read(tmp_path / "images" / spec.TABLE)
    changed = drift.propose(ask(server), table, TODAY, older)
    assert table.path not in changed
    clear()
    (row,) = [row for row in raw("releases", older) if row["torch"] == NEWEST]
    assert row["pypi_cuda"] == row["torchvision"] == "unconfirmed"
    assert matrix.default_variant(NEWEST, "linux_x86_64") is None


# --- indexes that misbehave -------------------------------------------------------------------------------------------


def test_a_pytorch_index_out_of_reach_is_said_and_is_no_drift(server: Server) -> None:
    index = drift.read_index(TABLE, ["pytorch-cpu=http://127.0.0.1:9/whl/cpu"])
    assert index.unreachable and index.variants == {}
    assert drift.compare(index, TABLE, TODAY) == []
    assert drift.to_json([], index)["not compared"] == index.unreachable
    off = drift.read_index(TABLE, ["pytorch-cpu=none"])
    assert "switched off" in off.unreachable


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b'{"files": 3}', b'{"files": [{"filename": 1}]}', b"<html>", b'{"name": "torch", "files": []}',
     b'{"files": [{"filename": "torch-abc.whl", "url": "x"}]}', b"\xff\xfe", b"[" * 100_000],
)  # fmt: skip
def test_a_garbage_answer_is_exit_4(server: Server, garbage: bytes) -> None:
    server.raw["torch"] = garbage
    with pytest.raises(FetchError) as error:
        ask(server)
    assert error.value.code == 4 and error.value.fix


def test_of_what_is_unconfirmed_the_index_tells_either_way(server: Server) -> None:
    """The tables as they are: whether the newest torch has these builds was not seen."""
    file = matrix.DATA / "cuda_variants.tsv"
    file.write_text((Path(drift.__file__).parent / "data" / file.name).read_text(encoding="utf-8"), encoding="utf-8")
    clear()
    row = matrix.variant(NEWEST, "cu130")
    assert row is not None and "linux_x86_64" in row.unconfirmed
    assert ("CUDA line stopped", "cu130") in {(each.kind, each.what) for each in changes(server)}
    server.variants["cu130"].append(wheel(NEWEST, "cu130"))
    found = {(each.kind, each.what) for each in changes(server)}
    assert ("build added", f"torch {NEWEST}+cu130") in found and ("CUDA line stopped", "cu130") not in found


def test_a_build_whose_folder_is_refused_is_a_line_that_stopped(server: Server) -> None:
    """Object stores answer 403 for what is not there; that the rest answers shows that it is not the network."""
    del server.variants["cu126"]
    index = ask(server)
    assert index.unreachable == ""
    assert ("CUDA line stopped", "cu126") in {(each.kind, each.what) for each in drift.compare(index, TABLE, TODAY)}


def test_a_write_that_was_cut_off_is_done_again_without_double_rows(
    server: Server, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    table = spec.read(tmp_path / "images" / spec.TABLE)
    index, written = ask(server), []

    def cut_off(path: Path, text: str) -> None:
        if path.name == "macos.tsv":
            raise OSError("the disk is full")
        written.append(path.name)
        path.write_text(text, encoding="utf-8")

    with monkeypatch.context() as context:
        context.setattr(drift, "write_atomically", cut_off)
        with pytest.raises(OSError, match="full"):
            drift.propose(index, table, TODAY, older)
    assert "wheels.tsv" in written and "releases.tsv" not in written
    clear()
    assert matrix.releases()[-1] != NEWEST, "it is still new"
    drift.propose(index, table, TODAY, older)
    clear()
    assert matrix.pythons(NEWEST, "linux_x86_64") and matrix.variants(NEWEST)


def test_no_index_at_all_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(FetchError, match="cannot be read"):
        ask(server)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UsageError, match="no package index"):
        ask(server)


def invoke(server: Server, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", "update", *flags, "--index=pytorch-cpu=none"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_as_a_command(server: Server) -> None:
    assert invoke(server).returncode == 2
    assert invoke(server, "--check", "--write").returncode == 2
    same = invoke(server, "--check")
    assert (same.returncode, same.stdout) == (0, ""), same.stderr
    assert "nothing has changed" in same.stderr
    for file in files(server, "2.14.0"):
        file["yanked"] = True
    told = invoke(server, "--check", "--json")
    assert told.returncode == 8 and "1 differences" in told.stderr
    assert json.loads(told.stdout)["changed"][0]["kind"] == "release withdrawn"


NAMES = st.one_of(
    st.text(max_size=40),
    st.from_regex(
        r"torch-[0-9.a-z+]{1,12}-(cp3[0-9]{1,2}|py3|pp39)-(cp3[0-9]{1,2}t?|none|abi3)-[a-z0-9_]{1,24}\.whl",
        fullmatch=True,
    ),
)


@given(NAMES)
def test_any_file_name_is_understood_or_passed_over(name: str) -> None:
    found = drift.parse(name)
    assert found is None or (found.name == name and found.version and found.python and found.platform)


@given(st.dictionaries(st.sampled_from(list(matrix.releases())), st.text(max_size=60), max_size=3))
def test_any_metadata_is_read_without_a_traceback(texts: Mapping[str, str]) -> None:
    named = {f"torch-{version}-cp313-cp313-manylinux_2_28_x86_64.whl": text for version, text in texts.items()}
    listed = tuple(file for name in named if (file := drift.parse(name)))
    index = drift.Index({"torch": listed, "torchvision": ()}, metadata=named)
    for version in texts:
        drift.cuda_of(version, "linux_x86_64", index)
        drift._companion(version, dataclasses.replace(index, files={"torch": (), "torchvision": listed}))
