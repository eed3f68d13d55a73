"""Where packages come from: the indexes of images/targets.toml and the settings a person already has.

Named indexes (``[indexes]`` of images/targets.toml), highest first:

1. ``--index NAME=URL`` or ``--index NAME=none`` (switched off),
2. ``LABRIG_INDEX_<NAME>`` (upper case, ``-`` written ``_``), same values,
3. images/targets.toml.

Everything else, highest first; a single value is taken from the first that has it, lists are joined in this order:

1. uv's variables: UV_DEFAULT_INDEX, UV_INDEX_URL; UV_INDEX, UV_EXTRA_INDEX_URL; UV_FIND_LINKS; UV_INSECURE_HOST;
   UV_HTTP_TIMEOUT,
2. pip's settings as ``pip config list`` tells them: sections ``global`` < ``install`` < ``:env:`` (PIP_* variables),
3. uv.toml: the one that UV_CONFIG_FILE names, else the user's, then the system's; none with UV_NO_CONFIG,
4. general variables: SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE; HTTP_PROXY, HTTPS_PROXY, NO_PROXY,
5. for the default index, whatever ``unearth`` (which searches as pip does) uses.

LABRIG_CA and LABRIG_PROXY (labrig/network.py) come before all of these: the CA is added to the certificates that they
name, the proxy replaces theirs.

pip's ``no-index`` switches the default and the extra indexes off, as it does for pip. Constraints are not read: every
package is pinned. Credentials may stand in a URL or in netrc; ``redact`` keeps them out of everything printed.
"""

from __future__ import annotations

import ast
import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from labrig import network
from labrig.errors import UsageError

if TYPE_CHECKING:
    from unearth.fetchers import PyPIClient

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a connection: an index that cannot be reached has to be known within seconds."""

_DEFAULT_TIMEOUT = 30.0
_PIP_TIMEOUT = 60
# uv has a flag but no variable for "no index"; a folder that does not exist is an index without packages to it.
_NO_INDEX = "file:///no-index"
_PIP_SECTIONS = ("global", "install", ":env:")
_PIP_LINE = re.compile(r"(?P<section>:env:|[^.=]+)\.(?P<option>[^=]+)=(?P<value>.*)")
_SCHEMES = ("http", "https", "file")


@dataclass(frozen=True, repr=False)  # no repr: URLs may hold credentials
class Sources:
    """Every place a package may come from, and how to talk to it.

    ``default`` is None when pip's ``no-index`` is on. ``find_links`` are absolute folders or files, or URLs. ``named``
    maps each index of images/targets.toml to the URL in force, None when it is switched off. ``overrides`` are lines
    for a person: what deviates from images/targets.toml or could not be read. ``proxy`` is LABRIG_PROXY, and
    ``direct`` what is reached without it, or the one named in pip's settings; proxies of the environment are obeyed
    by the client and by uv themselves. ``timeout`` is in seconds.
    """

    default: str | None
    extra: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    named: Mapping[str, str | None] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    cert: Path | None = None
    client_cert: Path | None = None
    proxy: str | None = None
    direct: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    timeout: float = _DEFAULT_TIMEOUT

    def uv_environment(self) -> dict[str, str]:
        """Variables to add to a uv child process so that uv obeys the same settings."""
        settings: dict[str, str] = {"UV_HTTP_TIMEOUT": str(max(1, round(self.timeout)))}
        if self.default is None:
            settings |= {"UV_DEFAULT_INDEX": _NO_INDEX, "UV_INDEX": "", "UV_EXTRA_INDEX_URL": ""}
        elif self.default != default_index():
            settings["UV_DEFAULT_INDEX"] = self.default
        if self.extra:
            settings["UV_INDEX"] = " ".join(self.extra)
        if self.find_links:
            settings["UV_FIND_LINKS"] = ",".join(as_url(link).replace(",", "%2C") for link in self.find_links)
        if self.cert:
            settings["SSL_CERT_DIR" if self.cert.is_dir() else "SSL_CERT_FILE"] = str(self.cert)
        if self.client_cert:
            settings["SSL_CLIENT_CERT"] = str(self.client_cert)
        if self.proxy:
            settings |= {"HTTP_PROXY": self.proxy, "HTTPS_PROXY": self.proxy}
        if self.direct:
            settings["NO_PROXY"] = ",".join(self.direct)
        if self.trusted_hosts:
            settings["UV_INSECURE_HOST"] = " ".join(self.trusted_hosts)
        return settings


def read_sources(
    indexes: Mapping[str, str], overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Sources:
    """Read every setting named in the module's docstring.

    ``indexes`` maps index names to URLs; ``overrides`` are the values of ``--index``. Asks pip (about half a second);
    opens no connection. Raises UsageError for an override or a settings file that cannot be understood.
    """
    named, lines = name_indexes(indexes, overrides, environ)
    pip, note = _pip_settings(environ)
    uv = _uv_settings(environ)

    def several(option: str) -> list[str]:
        return pip.get(option, "").split()

    no_index = _truth(pip.get("no-index", ""))
    default = None
    if not no_index:
        default = next(
            (
                _index_url(value)
                for value in (
                    environ.get("UV_DEFAULT_INDEX", ""),
                    environ.get("UV_INDEX_URL", ""),
                    pip.get("index-url", ""),
                    uv.default,
                )
                if value.strip()
            ),
            None,
        )
        default = default or default_index()
    pip_extra = [] if no_index else several("extra-index-url")
    uv_extra = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}".split()
    extra = [] if no_index else [_index_url(value) for value in (*uv_extra, *pip_extra, *uv.extra)]
    links = [
        *(link for link in environ.get("UV_FIND_LINKS", "").split(",") if link.strip()),
        *several("find-links"),
        *uv.find_links,
    ]
    named_cert = pip.get("cert") or next(
        (environ[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if environ.get(name)), None
    )
    cert = Path(named_cert).expanduser() if named_cert else None
    client_cert = pip.get("client-cert") or environ.get("SSL_CLIENT_CERT")
    ours = network.proxy(environ)
    proxy = ours or pip.get("proxy", "").strip()
    timeout = environ.get("UV_HTTP_TIMEOUT") or pip.get("timeout") or pip.get("default-timeout")
    return Sources(
        default=default,
        extra=_distinct(url for url in extra if url != default),
        find_links=_distinct(_find_link(link.strip()) for link in links),
        named=named,
        overrides=(*lines, *([note] if note else [])),
        cert=network.ca(cert, environ) or cert,
        client_cert=Path(client_cert).expanduser() if client_cert else None,
        proxy=(proxy if "://" in proxy else f"http://{proxy}") if proxy else None,
        direct=tuple(network.no_proxy(environ).split(",")) if ours else (),
        trusted_hosts=_distinct(
            [*environ.get("UV_INSECURE_HOST", "").split(), *several("trusted-host"), *uv.trusted_hosts]
        ),
        timeout=_seconds(timeout) if timeout else _DEFAULT_TIMEOUT,
    )


def redact(text: str) -> str:
    """``text`` (a URL, or prose that holds URLs) without credentials and without query strings.

    Everything up to the last ``@`` of a URL goes, so that a password with an unescaped ``/`` does not show either.
    """
    text = re.sub(r"(://)[^\s'\"]*@", r"\1***@", text)
    text = re.sub(r"(://[^\s'\"]*?/t/)[^/\s'\"]+", r"\1***", text)  # conda's token: https://HOST/t/TOKEN/CHANNEL
    return re.sub(r"(://[^\s'\"?#]*)\?[^\s'\"#]*", r"\1?***", text)


def reason(error: Exception) -> str:
    """An error of the network in a few words: its kind and its text, redacted."""
    text = redact(str(error))
    return f"{type(error).__name__}{': ' if text else ''}{text}"


def build_root(address: str) -> str | None:
    """Where a PyTorch index keeps its builds, from the address of one: "./whl" of "./whl/cpu"; else None."""
    root, _, build = address.rstrip("/").rpartition("/")
    return root if re.fullmatch(r"cpu|cu\d+", build) else None


def default_index() -> str:
    """The index that is used when nobody names one: unearth's, which is pip's."""
    from unearth import PackageFinder

    return PackageFinder().sources[0]["url"]


def as_url(place: str) -> str:
    """A folder, a file or a URL as a URL."""
    return place if "://" in place else Path(place).absolute().as_uri()


def open_client(sources: Sources) -> PyPIClient:
    """The HTTP client (also of file:// URLs) that obeys ``sources``; close it. Opens no connection by itself.

    Raises UsageError when a certificate cannot be read.
    """
    import ssl

    import httpx2
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    verify: ssl.SSLContext | bool = True
    if sources.cert or sources.client_cert:
        try:
            if sources.cert is None:
                verify = ssl.create_default_context()
            elif sources.cert.is_dir():
                verify = ssl.create_default_context(capath=sources.cert)
            else:
                verify = ssl.create_default_context(cafile=sources.cert)
            if sources.client_cert:
                verify.load_cert_chain(sources.client_cert)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                "a certificate of your settings cannot be read",
                found=f"CA {sources.cert}, client {sources.client_cert}: {error}",
                fix="correct PIP_CERT, SSL_CERT_FILE or pip's `cert` and `client-cert` settings",
            ) from error
    addresses = [sources.default, *sources.named.values(), *sources.extra, *sources.find_links]
    return PyPIClient(
        trusted_hosts=[_host(host) for host in sources.trusted_hosts],
        verify=verify,
        timeout=httpx2.Timeout(sources.timeout, connect=min(CONNECT_TIMEOUT, sources.timeout)),
        proxy=sources.proxy if "*" not in sources.direct else None,
        mounts=dict.fromkeys(_patterns(sources.direct)),
        auth=MultiDomainBasicAuth(prompting=False, index_urls=[url for url in addresses if url and "://" in url]),
        follow_redirects=True,
    )


def parse_pip_config(text: str) -> dict[str, str]:
    """What ``pip install`` would obey, from the output of ``pip config list``: option -> value.

    Lines are ``section.option=repr(value)``; a section of another command and a line of another form are left out.
    """
    found: dict[str, tuple[int, str]] = {}
    for line in text.split("\n"):
        match = _PIP_LINE.fullmatch(line.rstrip("\r"))
        if not match or match["section"] not in _PIP_SECTIONS:
            continue
        try:
            value = ast.literal_eval(match["value"])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        rank = _PIP_SECTIONS.index(match["section"])
        if isinstance(value, str) and rank >= found.get(match["option"], (-1, ""))[0]:
            found[match["option"]] = (rank, value)
    return {option: value for option, (_, value) in found.items()}


def name_indexes(
    indexes: Mapping[str, str], overrides: Sequence[str], environ: Mapping[str, str]
) -> tuple[dict[str, str | None], list[str]]:
    """The indexes in force by name, and a line for each that is overridden."""
    allowed = ", ".join(sorted(indexes)) or "no index is named in images/targets.toml"
    variables = {"LABRIG_INDEX_" + name.upper().replace("-", "_"): name for name in indexes}
    given: dict[str, tuple[str, str]] = {}
    for variable in sorted(name for name in environ if name.startswith("LABRIG_INDEX_")):
        if not environ[variable]:
            continue
        if variable not in variables:
            raise UsageError(
                f"{variable} names no index", found=variable, fix=f"set one of: {', '.join(sorted(variables))}"
            )
        given[variables[variable]] = (environ[variable], variable)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not value or name not in indexes:
            raise UsageError(
                "--index takes NAME=URL or NAME=none", found=redact(override), fix=f"names allowed: {allowed}"
            )
        given[name] = (value, "--index")
    named: dict[str, str | None] = dict(indexes)
    lines = []
    for name, (value, origin) in given.items():
        if value == "none":
            named[name] = None
        else:
            url = as_url(value) if value.startswith(("/", "~", "./", "../")) else value
            if urlsplit(url).scheme not in _SCHEMES or "://" not in url:
                raise UsageError(
                    f"index {name}: not an address",
                    found=redact(value),
                    fix="give an http, https or file URL, a folder's path, or none",
                )
            named[name] = url
        lines.append(f"index {name} = {redact(named[name] or 'none')} (from {origin})")
    return named, lines


def _pip_settings(environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """pip's options, and a line for a person when pip could not be asked."""
    commands = [[sys.executable, "-m", "pip"]]
    if other := shutil.which("pip3", path=environ.get("PATH")):
        commands.append([other])  # a venv made by uv has no pip of its own
    reason = ""
    for command in commands:
        try:
            asked = subprocess.run(
                [*command, "config", "list", "--disable-pip-version-check"],
                capture_output=True,
                text=True,
                timeout=_PIP_TIMEOUT,
                env=dict(environ),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
            continue
        if asked.returncode == 0:
            return parse_pip_config(asked.stdout), ""
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        if "No module named pip" not in asked.stderr:
            raise UsageError(
                "pip's settings cannot be read", found=redact(reason), fix="make `pip config list` work, then try again"
            )
    variables = {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_")
    }
    return variables, f"of pip's settings only the PIP_* variables are used: pip cannot be run ({redact(reason)})"


@dataclass(frozen=True, repr=False)
class _UvSettings:
    default: str
    extra: tuple[str, ...]
    find_links: tuple[str, ...]
    trusted_hosts: tuple[str, ...]


def _uv_settings(environ: Mapping[str, str]) -> _UvSettings:
    """What the uv.toml files say (https://docs.astral.sh/uv/concepts/configuration-files, seen 2026-11)."""
    default = ""
    extra: list[str] = []
    find_links: list[str] = []
    trusted: list[str] = []
    for path in _uv_files(environ):
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(
                f"uv's settings cannot be read: {path}", found=str(error), fix="correct the file, or set UV_NO_CONFIG=1"
            ) from error
        pip = content.get("pip", {})
        tables = [pip, content] if isinstance(pip, dict) else [content]
        # An explicit index serves only packages that are sent to it by name, which is not what is asked here.
        own = [index for table in tables for index in _dicts(table.get("index")) if not index.get("explicit")]
        single = [table.get("index-url", "") for table in tables]
        default = default or next((str(i["url"]) for i in own if i.get("default") and "url" in i), "")
        default = default or next((str(url) for url in single if url), "")
        extra += [str(index["url"]) for index in own if not index.get("default") and "url" in index]
        for table in tables:
            extra += _strings(table.get("extra-index-url"))
            find_links += _strings(table.get("find-links"))
            trusted += _strings(table.get("allow-insecure-host"))
    return _UvSettings(default, tuple(extra), tuple(find_links), tuple(trusted))


def _uv_files(environ: Mapping[str, str]) -> list[Path]:
    """The uv.toml files in force, the strongest first."""
    if named := environ.get("UV_CONFIG_FILE"):
        return [Path(named)]
    if _truth(environ.get("UV_NO_CONFIG", "")):
        return []
    home = Path(environ.get("HOME") or Path.home())
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml"
    folders = [*(environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"), "/etc"]
    system = [Path(folder) / "uv" / "uv.toml" for folder in folders if folder]
    return [path for path in (user, next((path for path in system if path.is_file()), None)) if path and path.is_file()]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _strings(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _index_url(value: str) -> str:
    """uv lets an index be written ``name=url``; both let a folder be written as a path."""
    value = re.sub(r"^[A-Za-z0-9._-]+=(?=.)", "", value.strip())
    return as_url(str(Path(value).expanduser())) if "://" not in value else value


def _find_link(value: str) -> str:
    return value if "://" in value else str(Path(value).expanduser().absolute())


def local_path(place: str) -> Path | None:
    """The folder or file that ``place`` (a path or a URL) stands for, None when it is not on this machine."""
    if "://" not in place:
        return Path(place)
    parts = urlsplit(place)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _patterns(direct: Iterable[str]) -> Iterator[str]:
    """Entries of NO_PROXY as httpx2 writes them: an address or a network is itself, a name all that is under it.

    What cannot be read is left out, as curl does it.
    """
    import httpx2

    for entry in direct:
        host, slash, bits = entry.strip("[]").partition("/")
        try:
            version = ipaddress.ip_network(f"{host}{slash}{bits}", strict=False).version
            pattern = f"all://{host if version == 4 else f'[{host}]'}{slash}{bits}"
        except ValueError:
            pattern = f"all://{'' if entry.startswith('*') else '*'}{entry}"
            if slash:
                continue
        try:
            httpx2.URL(pattern)
        except httpx2.InvalidURL:
            continue
        yield pattern


def _host(value: str) -> str:
    """uv's list of insecure hosts may hold URLs; the client wants host or host:port."""
    return urlsplit(value).netloc if "://" in value else value


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(
            "the timeout of your settings is not a number of seconds",
            found=value,
            fix="correct UV_HTTP_TIMEOUT, PIP_TIMEOUT, PIP_DEFAULT_TIMEOUT or pip's `timeout`",
        )
    return seconds


def _truth(value: str) -> bool:
    return value.strip().lower() in {"1", "true", "t", "yes", "y", "on"}


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))
