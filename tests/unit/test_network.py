"""LABRIG_CA and LABRIG_PROXY against a TLS index with a CA of its own and a forwarding proxy, both on 127.0.0.1."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certificates
import proxies
import pytest
import samples
from servers import IndexServer

from labrig import base, condatool, crew, indexes, lock, matrix, native, network, registry, resolver, wheelhouse
from labrig.errors import BuildError, DistributeError, FetchError, LabrigError, UsageError
from labrig.lock import Wheel

CREDENTIALS = "schueler:ge%2Fheim"
SETTINGS = (
    *network.TRUST, network.CA, network.PROXY, "SSL_CERT_DIR", "ALL_PROXY", "all_proxy", "no_proxy", "NO_PROXY",
    "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "PIP_PROXY", "PIP_FIND_LINKS", "UV_DEFAULT_INDEX",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of the settings, no settings files of pip's and uv's, a cache of our own, no long waits."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(crew, "BACKOFF", 0.01)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CA, and a certificate that it signed."""
    return certificates.make(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1,DNS:localhost,DNS:packages.test")


NAME, CONTENT = "alpha-1.0-py3-none-any.whl", b"not opened by a fetch"
ALPHA = Wheel("alpha", "1.0", NAME, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def fetch(index: str, store: Path) -> int:
    """Bring a wheel as `invoke fetch` does, by the settings of the environment; gives how many were downloaded."""
    sources = indexes.read_sources({}, environ={**os.environ, "UV_DEFAULT_INDEX": index, "UV_HTTP_TIMEOUT": "5"})
    return wheelhouse.fetch([ALPHA], sources, pinned={}, store=store).downloaded


# --- the CA -----------------------------------------------------------------------------------------------------------


def test_an_index_with_a_ca_of_its_own(
    authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, leaf = authority
    with IndexServer({NAME: CONTENT}, tls=leaf) as index:
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            fetch(index.url, tmp_path / "store")
        assert "LABRIG_CA=FILE" in caught.value.fix
        monkeypatch.setenv("LABRIG_CA", str(ca))
        assert fetch(index.url, tmp_path / "store") == 1


def test_another_ca_does_not_help_and_is_named(
    authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    other, _ = certificates.make(tmp_path / "other")
    monkeypatch.setenv("LABRIG_CA", str(other))
    with IndexServer({NAME: CONTENT}, tls=authority[1]) as index, pytest.raises(FetchError) as caught:
        fetch(index.url, tmp_path / "store")
    assert f"not in {other} (LABRIG_CA)" in caught.value.fix


def test_a_certificate_for_another_host_is_no_matter_of_the_ca() -> None:
    said = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: IP address mismatch"
    assert network.cure(said, "look there") == "look there"


def test_the_ca_is_added_to_what_is_trusted_anyway(
    authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import certifi

    assert network.ca() is None
    assert network.variables() == {}
    monkeypatch.setenv("LABRIG_CA", str(authority[0]))
    bundle = network.ca()
    assert bundle
    known = set(network.CERTIFICATE.findall(Path(certifi.where()).read_text()))
    found = network.CERTIFICATE.findall(bundle.read_text())
    assert len(known) > 50
    assert known | set(network.CERTIFICATE.findall(authority[0].read_text())) <= set(found)
    assert len(found) == len(set(found))
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o644
    assert bundle.stem == hashlib.sha256(bundle.read_bytes()).hexdigest()[:16]
    assert network.ca() == bundle
    # A bundle that is named by another setting is what is trusted anyway, then; and what was altered is made anew.
    (tmp_path / "second").mkdir()
    second, _ = certificates.make(tmp_path / "second")
    monkeypatch.setenv("SSL_CERT_FILE", str(second))
    both = network.ca()
    assert both
    assert both != bundle
    assert both.read_text() == second.read_text() + authority[0].read_text()
    assert indexes.read_sources({}).cert == both
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "second"))  # a folder: of its files the certificates only
    folder = network.ca()
    assert folder
    assert "PRIVATE KEY" not in folder.read_text()
    assert second.read_text() in folder.read_text()
    folder.write_text("altered")
    assert network.ca() == folder
    assert folder.read_text() != "altered"


def test_each_variable_leads_to_the_bundle_and_nests(
    authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABRIG_CA", str(authority[0]))
    variables = network.variables()
    assert variables == dict.fromkeys(network.TRUST, str(network.ca()))
    # labrig that is started by labrig adds nothing more.
    assert network.variables({**os.environ, **variables}) == variables
    assert native.inherited(os.environ)["SSL_CERT_FILE"] == str(network.ca())
    assert condatool._environment()["MAMBA_SSL_VERIFY"] == str(network.ca())
    mounts, inner = network.inside()
    assert mounts == {network.INSIDE: (network.ca(), False)}
    assert inner == dict.fromkeys(network.TRUST, network.INSIDE)


def broken(folder: Path, kind: str) -> Path:
    ca, leaf = certificates.make(folder)
    file = folder / "given.pem"
    text = ca.read_text()
    if kind == "absent":
        return folder / "gone.pem"
    if kind == "folder":
        return folder
    content = {
        "no certificate": "hello\n",
        "a key": text + leaf.read_text(),
        "DER": "",
        "cut": text[:200] + text[300:],
        "second cut": text + text[:200] + text[300:],
    }[kind]
    file.write_text(content)
    if kind == "DER":
        file.write_bytes(ssl.PEM_cert_to_DER_cert(text))
    return file


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("absent", "cannot be read"),
        ("folder", "cannot be read"),
        ("no certificate", "no certificate"),
        ("DER", "no certificate"),
        ("a key", "private key"),
        ("cut", "certificate that cannot be read"),
        ("second cut", "certificate that cannot be read"),
    ],
)
def test_a_file_that_is_no_ca(kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = broken(tmp_path, kind)
    monkeypatch.setenv("LABRIG_CA", str(file))
    with pytest.raises(UsageError, match=what) as caught:
        network.ca()
    assert str(file) in caught.value.found
    assert not (tmp_path / "cache").exists()
    if kind == "second cut":
        assert "number 2" in caught.value.found


# --- the proxy --------------------------------------------------------------------------------------------------------


def test_a_fetch_goes_through_the_proxy_and_never_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        IndexServer({NAME: CONTENT}) as index,
        proxies.forward(int(index.host[10:]), credentials="schueler:ge/heim") as way,
    ):
        monkeypatch.setenv("LABRIG_PROXY", f"http://{CREDENTIALS}@127.0.0.1:{way.port}")
        assert fetch("http://packages.test/simple", tmp_path / "one") == 1
        assert way.seen[0] == "GET http://packages.test/simple/alpha/"
        assert len(way.seen) == 2
        assert fetch(index.url, tmp_path / "two") == 1
        assert len(way.seen) == 2
        monkeypatch.setenv("NO_PROXY", "example.test, packages.test")
        with pytest.raises(FetchError):  # there is no such host
            fetch("http://packages.test/simple", tmp_path / "three")
        assert len(way.seen) == 2
    said = capsys.readouterr()
    assert "heim" not in said.out + said.err


def test_tls_goes_through_the_proxy_unopened(
    authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexServer({NAME: CONTENT}, tls=authority[1]) as index, proxies.forward(int(index.host[10:])) as way:
        monkeypatch.setenv("LABRIG_PROXY", way.url)
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch("https://packages.test/simple", tmp_path / "store")
        monkeypatch.setenv("LABRIG_CA", str(authority[0]))
        assert fetch("https://packages.test/simple", tmp_path / "store") == 1
        assert set(way.seen) == {"CONNECT packages.test:443"}


def test_our_proxy_wins_over_that_of_pip_and_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_PROXY", "http://pips.test:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://general.test:1")
    monkeypatch.setenv("LABRIG_PROXY", "http://ours.test:3128/")
    sources = indexes.read_sources({})
    assert sources.proxy == "http://ours.test:3128"
    assert sources.uv_environment()["HTTPS_PROXY"] == "http://ours.test:3128"
    assert sources.uv_environment()["NO_PROXY"] == "127.0.0.1,localhost,::1"
    assert network.variables() == {
        **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://ours.test:3128"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost,::1"),
    }


@pytest.mark.parametrize(
    ("theirs", "url", "through"),
    [
        ("", "https://a.test/x", True),
        ("", "https://127.0.0.1:5000/v2/", False),
        ("", "http://localhost/v2/", False),
        ("", "http://[::1]:5000/v2/", False),
        ("", "http://127.1.2.3:5000/v2/", False),
        ("b.test,10.0.0.0/8", "https://10.1.2.3/v2/", False),
        ("b.test", "https://registry.b.test/v2/", False),
        (".b.test", "https://b.test.example/v2/", True),
        ("*", "https://a.test/v2/", False),
    ],
)
def test_which_addresses_of_a_registry_go_through(
    theirs: str, url: str, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABRIG_PROXY", "http://ours.test:3128")
    monkeypatch.setenv("NO_PROXY", theirs)
    assert network.routes(url).get("https", "") == ("http://ours.test:3128" if through else "")


def test_entries_of_no_proxy_as_the_client_writes_them() -> None:
    entries = [
        "b.test",
        ".c.test",
        "*.d.test",
        "192.0.2.1",
        "10.0.0.0/8",
        "::1",
        "[fd00::1]",
        "fd00::/8",
        "e.test:8080",
    ]
    wrong = ["10.0.0.0/99", "a/b", "a:b:c", "[::1"]
    assert list(indexes._patterns([*entries, *wrong])) == [
        "all://*b.test", "all://*.c.test", "all://*.d.test", "all://192.0.2.1", "all://10.0.0.0/8", "all://[::1]",
        "all://[fd00::1]", "all://[fd00::]/8", "all://*e.test:8080", "all://[::1]",
    ]  # fmt: skip
    where = indexes.Sources(default=None, proxy="http://p.test:1", direct=(*entries, *wrong))
    indexes.open_client(where).close()


def test_everything_is_reached_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with IndexServer({NAME: CONTENT}) as index, proxies.forward(int(index.host[10:])) as way:
        monkeypatch.setenv("LABRIG_PROXY", way.url)
        monkeypatch.setenv("no_proxy", "*")
        assert network.variables()["NO_PROXY"] == "*"
        with pytest.raises(FetchError):
            fetch("http://packages.test/simple", tmp_path / "store")
        assert not way.seen


@pytest.mark.parametrize("kind", ["refused", "password"])
def test_a_proxy_that_does_not_let_us_through(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with proxies.forward(9, credentials="another:one") as way:
        port = 9 if kind == "refused" else way.port  # nothing listens on the discard port
        monkeypatch.setenv("LABRIG_PROXY", f"http://{CREDENTIALS}@127.0.0.1:{port}")
        with pytest.raises(FetchError) as caught:
            fetch("https://packages.test/simple", tmp_path / "store")
        with pytest.raises(DistributeError) as refused:
            registry.pull_base(f"packages.test/lab/cpu@sha256:{'0' * 64}", "linux_x86_64")
    if kind == "password":
        assert "407" in caught.value.found
        assert "407" in refused.value.found
    for error in (caught.value, refused.value):
        assert f"LABRIG_PROXY: connections go through 127.0.0.1:{port}" in error.fix
    said = capsys.readouterr()
    assert "heim" not in f"{caught.value}{refused.value}{said.out}{said.err}"


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("proxy.test:3128", "http://"),
        ("https://u:geheim@proxy.test:3128", "http://"),
        ("socks5://proxy.test:3128", "http://"),
        ("http://:3128", "no host"),
        ("http://u:geheim@", "no host"),
        ("http://proxy.test", "no port"),
        ("http://u:ge/heim@proxy.test:3128", "cannot be read"),
        ("http://u:ge#heim@proxy.test:3128", "cannot be read"),
        ("http://u:geheim", "cannot be read"),
        ("http://proxy.test:99999", "cannot be read"),
        ("http://proxy.test:3128/path", "more behind"),
        ("http://u:g eheim@proxy.test:3128", "space"),
    ],
)
def test_an_address_that_is_no_proxy(value: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_PROXY", value)
    with pytest.raises(UsageError, match="LABRIG_PROXY") as caught:
        network.proxy()
    assert wrong in caught.value.found
    assert "eheim" not in str(caught.value).replace("USER:PASSWORD", "")
    assert "heim@" not in str(caught.value)


@pytest.mark.parametrize("setting", ["LABRIG_PROXY=socks5://u:geheim@p.test:1", "LABRIG_CA=gone/geheim-not.pem"])
def test_a_wrong_setting_is_exit_2(setting: str, tmp_path: Path) -> None:
    name, _, value = setting.partition("=")
    command = [sys.executable, "-m", "invoke", "fetch", "--target=cpu"]
    done = subprocess.run(
        command, cwd=samples.ROOT, env={**os.environ, name: value}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"labrig: {name} ")
    assert "u:geheim" not in done.stderr
    assert "fix:" in done.stderr


def test_a_proxy_on_the_loopback_is_said_to_be_out_of_a_containers_reach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for host, said in (("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("172.17.0.1", False)):
        monkeypatch.setenv("LABRIG_PROXY", f"http://u:geheim@{host}:3128")
        assert network.inside()[1]["https_proxy"] == f"http://u:geheim@{host}:3128"
        text = capsys.readouterr().err
        assert ("cannot reach" in text) == said
        assert "geheim" not in text


# --- registries on this machine ---------------------------------------------------------------------------------------


def test_http_is_spoken_where_a_handshake_is_answered_without_tls(authority: tuple[Path, Path]) -> None:
    with IndexServer({}) as open_one, IndexServer({}, tls=authority[1]) as tls:
        assert not registry._speaks_tls(open_one.host)
        assert registry._speaks_tls(tls.host)
        assert registry._speaks_tls(f"localhost:{tls.host.rpartition(':')[2]}")
        assert not tls.requests  # nothing is said in the handshake


def test_who_hangs_up_or_is_not_there_is_not_spoken_to_in_clear() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        assert registry._speaks_tls(host)
        thread.join()
    assert registry._speaks_tls(host)


# --- programs that are started ----------------------------------------------------------------------------------------


@contextmanager
def page(leaf: Path) -> Iterator[str]:
    """A TLS server with one page, not this machine by its name."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    server.RequestHandlerClass = Handler
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that refuse are tested
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


PROGRAMS = {
    "urllib": [sys.executable, "-c", "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=10).read()"],
    "requests": [
        sys.executable,
        "-c",
        "import sys, requests; requests.get(sys.argv[1], timeout=10).raise_for_status()",
    ],
    "curl": ["curl", "--silent", "--show-error", "--max-time", "10"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_in_a_native_session_trusts_the_ca_and_goes_through_the_proxy(
    name: str, authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which(PROGRAMS[name][0]):
        pytest.skip(f"no {name} here")

    def run() -> int:
        command = [*PROGRAMS[name], "https://packages.test/"]
        return subprocess.run(command, env=native.inherited(os.environ), capture_output=True, timeout=60).returncode

    with page(authority[1]) as address, proxies.forward(int(address.rpartition(":")[2])) as way:
        monkeypatch.setenv("LABRIG_PROXY", way.url)
        assert run() != 0
        monkeypatch.setenv("LABRIG_CA", str(authority[0]))
        assert run() == 0
        assert way.seen == ["CONNECT packages.test:443"] * 2


def test_uv_resolves_through_the_proxy_from_an_index_with_a_ca_of_its_own(
    authority: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    variant = matrix.default_variant(samples.TORCH, "linux_x86_64")
    target = samples.target(variant=variant, index=None)
    wheels = samples.torch_wheel() | samples.wheel("alpha", "1.0") | samples.wheel("beta", "1.0")
    credentials = "schueler:geheim"
    with (
        IndexServer(wheels, tls=authority[1]) as index,
        proxies.forward(int(index.host[10:]), credentials=credentials) as way,
    ):
        monkeypatch.setenv("LABRIG_PROXY", way.url)
        where = {**os.environ, "UV_DEFAULT_INDEX": "https://packages.test/simple"}
        with pytest.raises(LabrigError) as caught:
            resolver.solve(target, "linux_x86_64", indexes.read_sources({}, environ=where))
        assert "LABRIG_CA=FILE" in caught.value.fix
        monkeypatch.setenv("LABRIG_CA", str(authority[0]))
        where = {**where, "LABRIG_CA": str(authority[0])}
        locked = resolver.solve(target, "linux_x86_64", indexes.read_sources({}, environ=where))
        assert {one.name for one in locked.wheels} == {"torch", "alpha", "beta"}
        assert "geheim" not in lock.serialize(locked) + str(caught.value)
        assert set(way.seen) == {"CONNECT packages.test:443"}


@pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap here")
def test_the_base_is_made_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = samples.SHIPPED.targets["cpu"].suite
    assert suite
    with proxies.forward(9) as way:  # nothing listens on the discard port
        monkeypatch.setenv("LABRIG_PROXY", way.url.replace("//", f"//{CREDENTIALS}@"))
        with pytest.raises(BuildError) as caught:
            base._bootstrap(suite, "linux_x86_64")
    assert way.seen
    assert all(one.startswith("GET http://") for one in way.seen)
    assert "LABRIG_PROXY" in caught.value.fix
    assert "heim" not in str(caught.value)


def test_hooks_of_the_base_name_the_bundle_and_take_it_away(tmp_path: Path) -> None:
    assert base._trusting(None) == []
    place = tmp_path / "a folder" / "ca.pem"
    upload, configure, forget = base._trusting(place)
    assert upload == f"--setup-hook=upload '{place}' /etc/apt/labrig-ca.pem"
    root = tmp_path / "root"
    (root / "etc/apt/apt.conf.d").mkdir(parents=True)
    (root / "etc/apt/labrig-ca.pem").touch()
    for hook in (configure, forget):
        subprocess.run(["sh", "-exc", hook.partition("=")[2], "hook", str(root)], check=True)
        settings = [*(root / "etc/apt/apt.conf.d").iterdir()]
        if hook == configure:
            assert settings[0].read_text() == f'Acquire::https::CAInfo "{root}/etc/apt/labrig-ca.pem";\n'
    assert not [file for file in root.rglob("*") if file.is_file()]
