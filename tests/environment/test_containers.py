"""Container tests: counted as NOT RUN where no engine answers, failed where one is required (LABRIG_REQUIRE=docker)."""

from __future__ import annotations

import pytest

from labrig.host import read_host


@pytest.mark.docker
@pytest.mark.usefixtures("docker_engine")
def test_doctor_tells_the_engines_version() -> None:
    import docker

    client = docker.from_env(timeout=10)
    try:
        assert read_host().docker == client.version()["Version"]
    finally:
        client.close()
