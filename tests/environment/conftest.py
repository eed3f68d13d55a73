"""The context of the environment under test, and where outcomes are gathered for `invoke verify`.

Run by `invoke verify` (which hands in --verify-context), or as part of `pytest tests`, which then builds and checks
the target that fits this host.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from labrig import checks, conda, engines, environment, image, lock, spec, verify
from labrig.files import write_atomically

ROOT = Path(__file__).parents[2]
OUTCOMES = pytest.StashKey[dict[str, dict[str, str]]]()
CONTEXT = pytest.StashKey[dict[str, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


def context_of(config: pytest.Config) -> dict[str, Any]:
    if CONTEXT not in config.stash:
        file = config.getoption("--verify-context")
        if file:
            config.stash[CONTEXT] = json.loads(Path(file).read_text(encoding="utf-8"))
        else:
            made = environment.build(ROOT, engine="venv")
            with engines.load(made.engine).session(made, "verify") as session:
                config.stash[CONTEXT] = verify.write_context(session, None, require_device=False)
    return config.stash[CONTEXT]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "check" in metafunc.fixturenames:
        context = context_of(metafunc.config)
        ours = [check for check in checks.CHECKS if check.applies(context["engine"], context["platform"])]
        metafunc.parametrize("check", ours, ids=[check.id for check in ours])


@pytest.fixture(scope="session")
def expectation(request: pytest.FixtureRequest) -> checks.Expectation:
    context = context_of(request.config)
    target = spec.read(ROOT / "images" / spec.TABLE).pick(context["target"])
    images, platform = ROOT / "images", context["platform"]
    of_conda = context["engine"] == "conda"
    locked = (conda.versions if of_conda else lock.load)(target, platform, images)
    exact = conda.load(target, locked, images) if of_conda else None
    labs = image.read_labs(ROOT / "labs") if context["engine"] == "docker" else {}
    return checks.Expectation(target, locked, context["engine"], context["require_device"], labs, exact)


@pytest.fixture(scope="module")
def facts(request: pytest.FixtureRequest, host: Any) -> dict[str, Any]:
    """The probe's document; the probe runs once, inside the environment, through testinfra."""
    return verify.read_facts(host, context_of(request.config))


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    return request.config.stash[OUTCOMES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    context = session.config.stash.get(CONTEXT, None)
    if context and context["results"]:
        try:
            write_atomically(Path(context["results"]), json.dumps(session.config.stash[OUTCOMES]))
        except OSError as error:
            print(f"outcomes not written: {error}", file=sys.stderr)
