"""Sources: what pip's and uv's settings, variables and overrides come to."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import IndexServer, Manners

from labrig import indexes
from labrig.errors import UsageError
from labrig.indexes import Sources, parse_pip_config, read_sources, redact

NAMED = {"pytorch-cpu": "https://index.example/cpu"}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without any setting of the person who runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_CONFIG_DIRS": str(home / "none"),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_CONFIG_FILE": "",
    }


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of other settings: asking pip takes half a second."""
    monkeypatch.setattr(indexes, "_pip_settings", lambda _: ({}, ""))


# --- pip config list --------------------------------------------------------------------------------------------

SECTION = st.sampled_from(["global", "install", ":env:", "download", "freeze"])
OPTION = st.from_regex(r"[a-z]+(-[a-z]+)*", fullmatch=True)


@given(st.dictionaries(st.tuples(SECTION, OPTION), st.text()), st.randoms(use_true_random=False))
def test_what_pip_prints_is_read_back(settings: dict[tuple[str, str], str], shuffled: object) -> None:
    lines = [f"{section}.{option}={value!r}" for (section, option), value in settings.items()]
    shuffled.shuffle(lines)  # type: ignore[attr-defined]
    expected = {}
    for section in ("global", "install", ":env:"):
        expected |= {option: value for (where, option), value in settings.items() if where == section}
    assert parse_pip_config("\n".join(lines)) == expected


@given(st.text() | st.from_regex(r"(global|:env:)\.[a-z-]+=.*"))
def test_any_text_is_survived(text: str) -> None:
    assert all(isinstance(value, str) for value in parse_pip_config(text).values())


def test_pip_is_asked(environ: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://global.example/simple\ntimeout = 7\nextra-index-url =\n  https://a.example/s\n"
        "  https://user:secret@b.example/s\ncert = /ca/global.pem\n[install]\nindex-url = https://install.example/simple\n"
        "find-links = ~/wheels https://links.example/page\ntrusted-host = a.example:8080\n[freeze]\ntimeout = 99\n"
    )
    where = read_sources(
        NAMED,
        environ={**environ, "PIP_CONFIG_FILE": str(config), "PIP_CERT": "/ca/env.pem", "PIP_PROXY": "p.example:3128"},
    )
    assert where.default == "https://install.example/simple"
    assert where.extra == ("https://a.example/s", "https://user:secret@b.example/s")
    assert where.find_links == (str(Path("~/wheels").expanduser()), "https://links.example/page")
    assert where.cert == Path("/ca/env.pem")
    assert where.proxy == "http://p.example:3128"
    assert where.trusted_hosts == ("a.example:8080",)
    assert where.timeout == 7
    assert where.named == NAMED
    assert where.overrides == ()
    assert "secret" not in repr(where)


def test_no_index_of_pip(environ: dict[str, str]) -> None:
    where = read_sources(
        NAMED,
        environ={**environ, "PIP_NO_INDEX": "1", "PIP_EXTRA_INDEX_URL": "https://a.example", "PIP_FIND_LINKS": "/w"},
    )
    assert (where.default, where.extra, where.find_links) == (None, (), ("/w",))


def test_settings_pip_itself_cannot_read(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    with pytest.raises(UsageError, match="pip's settings cannot be read"):
        read_sources({}, environ={**environ, "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})


def test_without_pip_its_variables_still_count_and_that_is_said(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    where = read_sources({}, environ={**environ, "PATH": str(tmp_path), "PIP_FIND_LINKS": "/w", "PIP_TIMEOUT": "3"})
    assert (where.find_links, where.timeout) == (("/w",), 3)
    assert "only the PIP_* variables" in where.overrides[0]


# --- uv's settings ----------------------------------------------------------------------------------------------


def test_uv_toml(environ: dict[str, str], no_pip: None) -> None:
    folder = Path(environ["HOME"], "uv")
    folder.mkdir()
    (folder / "uv.toml").write_text(
        'find-links = ["/from-toml"]\nextra-index-url = ["https://extra.example"]\n'
        'allow-insecure-host = ["h.example"]\n'
        '[[index]]\nname = "mine"\nurl = "https://mine.example"\n'
        '[[index]]\nurl = "https://explicit.example"\nexplicit = true\n'
        '[[index]]\nurl = "https://default.example"\ndefault = true\n'
        '[pip]\nfind-links = ["/from-pip-table"]\n'
    )
    where = read_sources({}, environ=environ)
    assert where.default == "https://default.example"
    assert where.extra == ("https://mine.example", "https://extra.example")
    assert where.find_links == ("/from-pip-table", "/from-toml")
    assert where.trusted_hosts == ("h.example",)
    ignored = read_sources({}, environ={**environ, "UV_NO_CONFIG": "1"})
    assert (ignored.default, ignored.extra) == (indexes.default_index(), ())


def test_a_config_file_that_is_named_stands_alone(environ: dict[str, str], no_pip: None, tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text('index-url = "https://named.example"\n')
    assert read_sources({}, environ={**environ, "UV_CONFIG_FILE": str(named)}).default == "https://named.example"
    named.write_text("index-url = \n")
    with pytest.raises(UsageError, match=r"named\.toml"):
        read_sources({}, environ={**environ, "UV_CONFIG_FILE": str(named)})
    with pytest.raises(UsageError, match=r"gone\.toml"):
        read_sources({}, environ={**environ, "UV_CONFIG_FILE": str(tmp_path / "gone.toml")})


def test_uv_variables_come_before_pip_and_lists_are_joined(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = {
        "index-url": "https://p.example",
        "extra-index-url": "https://pe.example",
        "find-links": "/p",
        "timeout": "9",
    }
    monkeypatch.setattr(indexes, "_pip_settings", lambda _: (pip, ""))
    environ |= {
        "UV_DEFAULT_INDEX": "main=https://u.example",
        "UV_INDEX": "https://ue.example",
        "UV_EXTRA_INDEX_URL": "https://old.example https://ue.example",
        "UV_FIND_LINKS": "/with space,/p",
        "UV_HTTP_TIMEOUT": "4",
        "UV_INSECURE_HOST": "https://h.example:8443",
        "SSL_CERT_FILE": "/ca.pem",
    }
    where = read_sources({}, environ=environ)
    assert where.default == "https://u.example"
    assert where.extra == ("https://ue.example", "https://old.example", "https://pe.example")
    assert where.find_links == ("/with space", "/p")
    assert (where.timeout, where.cert) == (4, Path("/ca.pem"))
    with pytest.raises(UsageError, match="timeout"):
        read_sources({}, environ={**environ, "UV_HTTP_TIMEOUT": "soon"})


def test_without_settings_the_index_is_the_one_pip_uses(environ: dict[str, str], no_pip: None) -> None:
    where = read_sources({}, environ=environ)
    assert where.default == indexes.default_index()
    assert where.default.startswith("https://")
    assert "UV_DEFAULT_INDEX" not in where.uv_environment()


# --- named indexes ----------------------------------------------------------------------------------------------


def test_overrides_and_their_order(environ: dict[str, str], no_pip: None) -> None:
    variable = {**environ, "LABRIG_INDEX_PYTORCH_CPU": "https://u:p@mirror.example/cpu"}
    assert read_sources(NAMED, environ=environ).named == NAMED
    by_variable = read_sources(NAMED, environ=variable)
    assert by_variable.named == {"pytorch-cpu": "https://u:p@mirror.example/cpu"}
    assert by_variable.overrides == (
        "index pytorch-cpu = https://***@mirror.example/cpu (from LABRIG_INDEX_PYTORCH_CPU)",
    )
    by_flag = read_sources(NAMED, ["pytorch-cpu=none"], variable)
    assert by_flag.named == {"pytorch-cpu": None}
    assert by_flag.overrides == ("index pytorch-cpu = none (from --index)",)
    assert read_sources(NAMED, environ={**environ, "LABRIG_INDEX_PYTORCH_CPU": ""}).overrides == ()


def test_a_folder_can_stand_for_an_index(environ: dict[str, str], no_pip: None, tmp_path: Path) -> None:
    assert read_sources(NAMED, [f"pytorch-cpu={tmp_path}"], environ).named == {"pytorch-cpu": tmp_path.as_uri()}


@pytest.mark.parametrize(
    "override", ["pytorch-cpu", "pytorch-cpu=", "other=https://x.example", "pytorch-cpu=ftp://x", "=x"]
)
def test_bad_overrides(environ: dict[str, str], no_pip: None, override: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_sources(NAMED, [override], environ)
    assert "pytorch-cpu" in str(caught.value)
    assert "none" in str(caught.value)


def test_a_variable_that_names_no_index(environ: dict[str, str], no_pip: None) -> None:
    with pytest.raises(UsageError, match="LABRIG_INDEX_PYTORCH_CPU"):
        read_sources(NAMED, environ={**environ, "LABRIG_INDEX_PYTORCHCPU": "none"})


# --- secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host.example/simple", "https://host.example/simple"),
        ("https://token@host.example/simple", "https://***@host.example/simple"),
        ("at https://u:p@a.example/x and http://v:w@b.example", "at https://***@a.example/x and http://***@b.example"),
        ("https://u:p/w@host.example/simple", "https://***@host.example/simple"),
        ("at https://host.example/t/tk-123/conda-forge: 404", "at https://host.example/t/***/conda-forge: 404"),
        ("https://host.example/x?token=abc#sha256=1", "https://host.example/x?***#sha256=1"),
    ],
)
def test_redaction(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(st.from_regex(r"[!-~]{3,20}", fullmatch=True).filter(lambda s: not set(s) & set("'\"")))
def test_no_password_survives(password: str) -> None:
    assert f"user:{password}" not in redact(f"https://user:{password}@host.example/simple")


# --- for uv -----------------------------------------------------------------------------------------------------


def test_uv_obeys_the_same_settings(tmp_path: Path) -> None:
    """A real uv resolves from a folder with awkward letters and from an index that wants credentials."""
    folder = tmp_path / "a, b"
    folder.mkdir()
    (folder / "alpha-1.0-py3-none-any.whl").write_bytes(_wheel("alpha", requires="beta"))
    with IndexServer({"beta-2.0-py3-none-any.whl": _wheel("beta")}, Manners(credentials="someone:secret")) as index:
        where = Sources(
            default=None, extra=(index.with_credentials("someone:secret"),), find_links=(str(folder),), timeout=5
        )
        settings = where.uv_environment()
        (tmp_path / "in.txt").write_text("alpha\n")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))},
            **settings,
            "UV_CACHE_DIR": str(tmp_path / "cache"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--python", sys.executable, "--no-header", "in.txt"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "==" in line] == ["alpha==1.0", "beta==2.0"]


def test_every_setting_reaches_uv(tmp_path: Path) -> None:
    where = Sources(
        default="https://d.example",
        extra=("https://a.example", "https://b.example"),
        find_links=("/one, two", "https://l.example/p"),
        cert=tmp_path / "ca.pem",
        client_cert=Path("/client.pem"),
        proxy="http://p.example:1",
        trusted_hosts=("h.example",),
        timeout=2.5,
    )
    assert where.uv_environment() == {
        "UV_HTTP_TIMEOUT": "2",
        "UV_DEFAULT_INDEX": "https://d.example",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_FIND_LINKS": "file:///one%2C%20two,https://l.example/p",
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        "SSL_CLIENT_CERT": "/client.pem",
        "HTTP_PROXY": "http://p.example:1",
        "HTTPS_PROXY": "http://p.example:1",
        "UV_INSECURE_HOST": "h.example",
    }


def test_a_certificate_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.pem"):
        indexes.open_client(Sources(default=None, cert=tmp_path / "gone.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=r"bad\.pem"):
        indexes.open_client(Sources(default=None, cert=tmp_path / "bad.pem"))


def _wheel(name: str, requires: str = "") -> bytes:
    """The smallest wheel that uv accepts."""
    version = "1.0" if name == "alpha" else "2.0"
    info = f"{name}-{version}.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()
