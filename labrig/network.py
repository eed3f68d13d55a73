"""The two settings for networks that look into connections or let them out through one door only.

``LABRIG_CA=FILE``: certificates (PEM) of a private CA, trusted besides those that are trusted anyway.
``LABRIG_PROXY=URL``: ``http://[USER:PASSWORD@]HOST:PORT``; this machine itself is never reached through it.

Both hold wherever labrig opens a connection and in what it starts; they win over pip's and the general variables. The
proxy's password stays in memory and in the variables of what is started: it is in no image, lock or message.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from labrig import home
from labrig.errors import UsageError
from labrig.files import write_atomically

CA = "LABRIG_CA"
PROXY = "LABRIG_PROXY"
INSIDE = "/etc/ssl/labrig-ca.pem"  # where a container has the bundle
# Who reads which: OpenSSL (Python's ssl, uv), pip, requests, curl, git, Node.js.
TRUST = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
NAMED = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # a bundle in force today, first wins
HERE = ("127.0.0.1", "localhost", "::1")
# Bundles of the system: Debian; Fedora and RHEL; macOS, Alpine.
SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# OpenSSL's words, those of rustls (uv, pixi), those of GnuTLS (apt).
UNTRUSTED = re.compile(
    r"(unable to get (local )?issuer|self[- ]signed) certificate|unable to verify the first certificate|UnknownIssuer"
    r"|certificate issuer is unknown"
)


def ca(usual: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The bundle to trust: the certificates of LABRIG_CA after those trusted anyway; None where it is not set.

    ``usual`` is the bundle in force otherwise, a file or a folder; without it, the one that a variable names, else
    the system's with certifi's. The bundle is kept in the cache by its digest, for everyone to read.

    Raises:
        UsageError: there is no such file, it holds no certificate, or it holds a private key.
    """
    if not (name := environ.get(CA, "")):
        return None
    own = _read_own(Path(name).expanduser())
    known = [block for place in _usual(usual, environ) for block in CERTIFICATE.findall(_text(place))]
    text = "".join(f"{block}\n" for block in dict.fromkeys([*known, *own]))
    bundle = home.certificates() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.pem"
    if not bundle.is_file() or bundle.read_text(encoding="utf-8") != text:
        write_atomically(bundle, text)
    return bundle


def proxy(environ: Mapping[str, str] = os.environ) -> str:
    """The proxy's URL, which may hold a password; empty where none is set.

    Raises:
        UsageError: it is no such URL.
    """
    url = environ.get(PROXY, "").strip()
    if not url:
        return ""
    if wrong := _wrong(url):  # which is said, and not the value: a password may be anywhere in it
        raise UsageError(
            f"{PROXY} is no address of a proxy",
            found=wrong,
            fix=f"{PROXY}=http://[USER:PASSWORD@]HOST:PORT, in USER and PASSWORD %40 for @, %3A for :, %2F for /",
        )
    return url.rstrip("/")


def has_login(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the proxy's URL holds a user or a password. Raises UsageError where it is no such URL."""
    return "@" in proxy(environ)


def without_login(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment with a proxy's URL that anybody may read: without user and password.

    Raises:
        UsageError: LABRIG_PROXY cannot be meant.
    """
    return {**environ, PROXY: f"http://{proxy(environ).rpartition('@')[2]}"} if has_login(environ) else dict(environ)


def no_proxy(environ: Mapping[str, str] = os.environ) -> str:
    """What is reached without a proxy, as NO_PROXY lists it: what the person lists there, and this machine."""
    named = [one.strip() for one in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")]
    return "*" if "*" in named else ",".join(dict.fromkeys([one for one in named if one] + list(HERE)))


def variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables for programs that are started here; empty where neither is set.

    Raises:
        UsageError: a setting that cannot be meant.
    """
    bundle = ca(environ=environ)
    return (_trusting(str(bundle)) if bundle else {}) | _through(proxy(environ), environ)


def inside(environ: Mapping[str, str] = os.environ) -> tuple[dict[str, tuple[Path, bool]], dict[str, str]]:
    """Mounts (path inside -> path here, writable) and variables for a container with a network.

    A proxy on this machine's loopback cannot be reached from a container: that is said on stderr. It is set all the
    same, as what should go through a proxy must not go past it.

    Raises:
        UsageError: a setting that cannot be meant.
    """
    bundle, through = ca(environ=environ), proxy(environ)
    if through and is_loopback(str(urlsplit(through).hostname)):
        print(
            f"{PROXY} names this machine's loopback, which a container cannot reach: in there connections will fail. "
            f"Name this machine by an address that containers reach, such as that of docker0 (ip address show docker0)",
            file=sys.stderr,
        )
    mounts = {INSIDE: (bundle, False)} if bundle else {}
    return mounts, (_trusting(INSIDE) if bundle else {}) | _through(through, environ)


def routes(url: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The ``proxies`` with which `requests` obeys our setting for a URL, and reaches this machine directly anyway.

    Raises:
        UsageError: LABRIG_PROXY cannot be meant.
    """
    from requests.utils import should_bypass_proxies

    through, direct, host = proxy(environ), no_proxy(environ), urlsplit(url).hostname or ""
    if is_loopback(host) and direct != "*":
        direct += f",{host}"  # any of 127.0.0.0/8
    if not through or should_bypass_proxies(url, direct):
        return {"no_proxy": direct}
    return {"http": through, "https": through, "no_proxy": direct}


def cure(said: str, otherwise: str, environ: Mapping[str, str] = os.environ) -> str:
    """What to do about a connection that failed with the words ``said``; ``otherwise``: where no setting of ours
    has to do with it."""
    if UNTRUSTED.search(said):
        if named := environ.get(CA):
            return f"the CA that signed it is not in {named} ({CA}): ask who runs the server or the network for it"
        return f"if your network or server has a CA of its own, {CA}=FILE with its certificate (docs/network.md)"
    if through := proxy(environ):
        parts = urlsplit(through)
        return f"{otherwise}; or look at {PROXY}: connections go through {parts.hostname}:{parts.port}"
    return otherwise


def _wrong(url: str) -> str:
    """What keeps a URL from being a proxy's, in words that hold nothing of it; empty: nothing does."""
    if not url.startswith("http://"):
        return "it does not begin with http://"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host and port cannot be read"
    if not host or not port:
        return f"it has no {'port' if host else 'host'}"
    more = parts.path not in ("", "/") or parts.query or parts.fragment or re.search(r"\s", url)
    return "there is more behind its port, or a space in it" if more else ""


def _read_own(file: Path) -> list[str]:
    """The certificates of a file, proven to be some. Raises UsageError."""

    def wrong(what: str, found: str = "") -> UsageError:
        return UsageError(
            f"{CA} {what}", found=found or str(file), fix=f"{CA}=FILE with the certificate of the CA, as PEM"
        )

    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise wrong("names a file that cannot be read", f"{file}: {error.strerror}") from None
    if re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
        raise wrong("holds a private key, which has to stay where it was made")
    blocks: list[str] = CERTIFICATE.findall(text)
    if not blocks:
        raise wrong("holds no certificate that begins with -----BEGIN CERTIFICATE-----")
    for number, block in enumerate(blocks, 1):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=block)
        except (ssl.SSLError, ValueError) as error:
            raise wrong("holds a certificate that cannot be read", f"number {number} in {file}: {error}") from None
    return blocks


def _usual(named: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Files of certificates that are trusted without us."""
    import certifi

    chosen = named or next((Path(environ[name]).expanduser() for name in NAMED if environ.get(name)), None)
    if chosen is None:
        return [*[Path(place) for place in SYSTEM if Path(place).is_file()][:1], Path(certifi.where())]
    return sorted(place for place in chosen.iterdir() if place.is_file()) if chosen.is_dir() else [chosen]


def _text(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            "a certificate of your settings cannot be read",
            found=f"{place}: {error.strerror}",
            fix="correct PIP_CERT, SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or pip's `cert`",
        ) from None


def _trusting(bundle: str) -> dict[str, str]:
    return dict.fromkeys(TRUST, bundle)


def _through(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    if not url:
        return {}
    listed = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": no_proxy(environ)}
    return listed | {name.lower(): value for name, value in listed.items()}


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
