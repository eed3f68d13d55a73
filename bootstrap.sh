#!/bin/sh
# Make .venv: a private Python environment with the toolkit, pinned and hashed in requirements.txt. Asks nothing.
#   sh bootstrap.sh            PYTHON=/path/to/python names the interpreter
#   sh bootstrap.sh fleet      with what rooms of machines need as well (requirements-fleet.txt)
#   sh bootstrap.sh serve      with what a hub and a cluster need as well (requirements-serve.txt)
#   sh bootstrap.sh dev        with what the tests and static checks need as well (requirements-dev.txt)
set -eu
cd -- "$(dirname -- "$0")"

requirements=requirements${1:+-$1}.txt
stamp=.venv/$requirements
current() { [ -e "$stamp" ] && cmp -s "$requirements" "$stamp"; }
more() { [ -e ".venv/requirements-$1.txt" ] && cmp -s "requirements-$1.txt" ".venv/requirements-$1.txt"; }
if { current || more dev || { [ $# -eq 0 ] && { more fleet || more serve; }; }; } &&
    .venv/bin/python -I -c 'import labrig, os, sys; sys.exit(not os.path.samefile(os.path.dirname(labrig.__path__[0]), "."))' \
        >/dev/null 2>&1; then
    exit 0
fi

# Candidates are run, not believed: a python on PATH may be a pyenv shim that fails, or lack venv and ensurepip.
# One that is named is the only one tried.
if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3 python python3.13 python3.12 python3.14 python3.11 /usr/bin/python3 /opt/homebrew/bin/python3 \
        "${HOME:-}"/.pyenv/versions/3.1[1-9].*/bin/python3
fi
python=
for candidate in "$@"; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "labrig: no working Python 3.11 or newer (with venv and ensurepip) was found; tried: $*" >&2
    echo "  fix:   install one (Debian, Ubuntu: apt install python3-venv) or name it: PYTHON=/path/to/python3 make setup" >&2
    exit 3
fi

echo "making .venv with $("$python" --version) ($(command -v "$python")), $(grep -c == "$requirements") pinned packages: about 20 s" >&2
# One that works is brought up to date in place (someone may be using it); one left by an interrupted set-up, by a
# Python that is gone, or by a checkout that has moved (its programs name their old place) is made anew.
rm -f .venv/requirements*.txt
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! grep -qF "$(pwd -P)/.venv" .venv/bin/pip; then
    "$python" -m venv --clear .venv
fi
# pip's own settings (index, find-links, certificate, proxy) hold; uv comes along as one of the pinned packages.
.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r "$requirements" || {
    echo "labrig: the toolkit could not be installed (above); look at the network or pip config list, then run it again" >&2
    exit 4
}
# The checkout itself, importable: one path, nothing built and nothing downloaded.
.venv/bin/python -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_path("purelib"), "labrig.pth").write_text(str(pathlib.Path.cwd()) + "\n")'
cp "$requirements" "$stamp"
