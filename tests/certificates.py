"""A certificate authority of our own, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def make(folder: Path, names: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """The certificate of a CA, and one with its key that it signed for ``names`` (as OpenSSL writes subjectAltName)."""
    openssl = shutil.which("openssl")
    assert openssl, "the openssl command is needed to test HTTPS"
    ca, leaf = folder / "ca.pem", folder / "leaf.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, timeout=30, cwd=folder)

    (folder / "leaf.ext").write_text(
        f"subjectAltName={names}\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n"
        "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    run(
        "req", "-x509", *key, "-subj", "/CN=labrig test CA", "-keyout", "ca.key", "-out", "ca.pem",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    run("req", *key[:-2], "-subj", "/CN=127.0.0.1", "-keyout", "leaf.key", "-out", "leaf.csr")
    run(
        "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "1", "-days", "2",
        "-extfile", "leaf.ext", "-out", "leaf.crt",
    )  # fmt: skip
    leaf.write_bytes((folder / "leaf.crt").read_bytes() + (folder / "leaf.key").read_bytes())
    return ca, leaf
