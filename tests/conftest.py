"""Options and rules of the whole test suite."""

from __future__ import annotations

import os
from typing import Any

import pytest

# The environments under test are ours: what Python compiles there once need not be compiled at each of many starts.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
REQUIRED = "docker" in os.environ.get("LABRIG_REQUIRE", "").split(",")
NOT_RUN = pytest.StashKey[int]()  # container tests, for want of an engine
LARGE = pytest.StashKey[int]()  # tests of the images for CUDA, unless -m cuda_image asks for them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--verify-context", help="JSON written by `invoke verify`: the environment that is checked")


def docker_error() -> str:
    """Why no Docker engine answers here, or an empty text."""
    from labrig.host import read_host

    host = read_host()
    return "" if host.docker else host.docker_error or "no engine"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an engine, container tests are deselected and counted in one closing line, never as passed."""
    if "cuda_image" not in config.option.markexpr:
        large = [item for item in items if item.get_closest_marker("cuda_image")]
        config.stash[LARGE] = len(large)
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]
    container = [item for item in items if item.get_closest_marker("docker")]
    config.stash[NOT_RUN] = 0
    if container and not REQUIRED and docker_error():
        config.stash[NOT_RUN] = len(container)
        config.hook.pytest_deselected(items=container)
        items[:] = [item for item in items if item not in container]


@pytest.fixture
def docker_engine() -> None:
    """For container tests: under LABRIG_REQUIRE=docker a missing engine fails them."""
    if reason := docker_error():
        pytest.fail(f"LABRIG_REQUIRE=docker, and there is no Docker engine: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its count on: only the controller prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = session.config.stash.get(NOT_RUN, 0)
        session.config.workeroutput["large"] = session.config.stash.get(LARGE, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects everything, so each has the whole count."""
    node.config.stash[NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", 0)
    node.config.stash[LARGE] = getattr(node, "workeroutput", {}).get("large", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count = config.stash.get(NOT_RUN, 0)
    if count:
        terminalreporter.write_line(f"{count} container tests NOT RUN: no engine", yellow=True)
    if large := config.stash.get(LARGE, 0):
        terminalreporter.write_line(
            f"{large} tests of the images for CUDA not selected: pytest -m cuda_image runs them"
        )
