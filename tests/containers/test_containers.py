"""Containers: counted as NOT RUN where no engine answers, failed where one is required (LABRIG_REQUIRE=docker)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import certificates
import pytest
import records
import registries

from labrig import base, buildkit, checks, container, daemon, environment, home, image, spec, verify, wheelhouse
from labrig.engines import Environment, Wish, docker
from labrig.errors import BuildError, HostError
from labrig.host import Gpu, read_host

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("docker_engine")]
ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]
TARGET = "cpu"
DOCKER = [f"--target={TARGET}", "--engine=docker"]


def run(
    *command: str, cwd: Path = ROOT, given: str | None = None, timeout: int = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, timeout=timeout, input=given
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def invoke(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(*INVOKE, *arguments, **options)


@pytest.fixture(scope="module")
def made() -> Environment:
    return environment.build(ROOT, TARGET, "docker")


def layers(client: Any, reference: str) -> list[str]:
    return list(client.images.get(reference).attrs["RootFS"]["Layers"])


def containers() -> list[str]:
    """Sessions that nobody is in: containers whose process is gone, or is this one. Other tests have theirs."""
    with daemon.connect() as client:
        found = client.containers.list(all=True, filters={"label": container.MARK}, ignore_removed=True)
        owners = {str(one.id): int(one.labels[container.MARK]) for one in found}
    return [id for id, owner in owners.items() if owner == os.getpid() or not Path(f"/proc/{owner}").exists()]


# --- build --------------------------------------------------------------------------------------------------------


def test_doctor_tells_the_engines_version() -> None:
    with daemon.connect() as client:
        assert read_host().docker == client.version()["Version"]


def test_build_prints_the_reference_and_a_second_one_finds_it(made: Environment) -> None:
    done = invoke("build", *DOCKER)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{made.reference}\n"
    assert "building" not in done.stderr
    with daemon.connect() as client:
        found = client.images.get(made.reference)
        assert f"{image.name(made.target)}:latest" in found.tags
        assert found.labels[image.LOCK] == made.lock.digest
        assert found.labels[image.INPUTS].startswith(made.reference.rpartition("-")[2])
        history = client.api.history(str(found.id))
    largest = max(history, key=lambda layer: layer["Size"])
    assert largest["CreatedBy"].startswith("labrig: torch "), "a large wheel has a layer of its own"
    assert history[0]["CreatedBy"] == "labrig: the labs", "labs are the last layer"


def test_a_lab_edit_is_a_new_image_of_the_same_layers(made: Environment, tmp_path: Path) -> None:
    checkout = copy_of_checkout(tmp_path)
    with (checkout / "labs" / "01_tensors.py").open("a") as file:
        file.write("# edited\n")
    done = invoke("build", *DOCKER, cwd=checkout)
    assert done.returncode == 0, done.stderr
    edited = done.stdout.strip()
    assert edited != made.reference
    with daemon.connect() as client:
        old, new = (layers(client, name) for name in (made.reference, edited))
        assert old[:-1] == new[:-1]
        assert old[-1] != new[-1]
    record = verify.verify(dataclasses.replace(made, reference=edited))
    assert {result.id for result in record.checks if result.status == checks.FAILED} == {"labs"}
    gone = invoke("clean", "--dry-run", cwd=checkout)
    assert gone.returncode == 0
    invoke("build", *DOCKER)  # the latest is this checkout's again
    assert edited in invoke("clean", "--dry-run").stdout
    with daemon.connect() as client:
        assert image.remove(client, [edited]) == [edited]


def copy_of_checkout(folder: Path) -> Path:
    place = folder / "checkout"
    for name in ("tasks.py", "pyproject.toml", "images", "templates", "labrig", "labs", "tests"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(exist_ok=True)
            shutil.copy(source, place / name)
    return place


def test_the_committed_dockerfile_builds_by_hand_and_the_image_passes(made: Environment, tmp_path: Path) -> None:
    """With nothing of it in BuildKit's cache its layers are those of the image that labrig built, at another time."""
    checkout = copy_of_checkout(tmp_path)
    wheelhouse.link_folder(made.lock.wheels, home.wheels(), checkout / "wheels")
    reference = f"{image.name(made.target)}:{made.target.torch}-by-hand"
    file = f"images/{TARGET}/Dockerfile"
    done = run(
        "docker", "buildx", "build", "--builder", "default", "--no-cache", "-f", file, "-t", reference, ".",
        cwd=checkout,
        BUILDX_NO_DEFAULT_ATTESTATIONS="1", **engine_variables(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    try:
        record = verify.verify(dataclasses.replace(made, reference=reference))
        assert [result for result in record.checks if result.status == checks.FAILED] == []
        with daemon.connect() as client:
            by_labrig = environment.build(ROOT, TARGET, "docker", wish=Wish(builder="dockerfile"))
            ours, by_hand = (layers(client, name) for name in (by_labrig.reference, reference))
        assert ours[:-1] == by_hand[:-1], "all but the labs, whose files have their own times"
    finally:
        with daemon.connect() as client:
            image.remove(client, [reference])


def engine_variables() -> dict[str, str]:
    return {key: value for key, value in daemon.environment().items() if key == "DOCKER_HOST"}


def test_a_name_that_the_engine_refuses_is_exit_4_with_its_reason(made: Environment) -> None:
    """The table does not let such a name pass; what else the engine may refuse comes out in the same way."""
    bad = dataclasses.replace(made.target, name="two__-names")
    with pytest.raises(BuildError, match="refused: invalid reference format") as caught, daemon.connect() as client:
        under = base.ensure(client, made.target, made.lock.platform, ROOT / "images")
        buildkit.build(client, buildkit.Recipe(bad, made.lock, under, "FROM scratch\n", "", {}), ROOT, home.wheels)
    assert caught.value.code == 4


def test_a_label_that_the_engine_refuses_is_exit_4_with_its_reason(made: Environment) -> None:
    """A Dockerfile that BuildKit cannot read; the reason is the engine's."""
    with pytest.raises(BuildError, match="nothing was tagged") as caught, daemon.connect() as client:
        under = base.ensure(client, made.target, made.lock.platform, ROOT / "images")
        text = "ARG BASE\nFROM ${BASE}\nLABEL lonely\n"
        buildkit.build(client, buildkit.Recipe(made.target, made.lock, under, text, "", {}), ROOT, home.wheels)
    assert caught.value.code == 4
    assert "LABEL" in caught.value.found


def test_a_base_is_the_same_whenever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, _ = certificates.make(tmp_path)
    target = spec.read(ROOT / "images" / spec.TABLE).pick(TARGET)
    assert target.suite
    digests = []
    for name in ("one", "two"):
        monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / name))
        monkeypatch.setenv("TZ", "Asia/Tokyo" if name == "two" else "UTC")
        monkeypatch.setenv("LABRIG_CA", str(ca) if name == "two" else "")
        digests.append(base._bootstrap(target.suite, "linux_x86_64")["digest"])
        shutil.rmtree(tmp_path / name)
    assert digests[0] == digests[1]


def test_a_suite_with_another_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path))
    target = spec.read(ROOT / "images" / spec.TABLE).pick(TARGET)
    assert target.suite
    with pytest.raises(BuildError, match=rf"brings Python {target.suite.python}, not 3\.99") as caught:
        base._bootstrap(dataclasses.replace(target.suite, python="3.99"), "linux_x86_64")
    assert "change together" in caught.value.fix
    assert [file for file in home.bases().iterdir() if file.suffix == ".tar"] == []


# --- a base from a registry -----------------------------------------------------------------------------------------


def test_a_base_from_a_registry_needs_its_digest_in_the_lock(made: Environment, tmp_path: Path) -> None:
    checkout = copy_of_checkout(tmp_path)
    table = checkout / "images" / spec.TABLE
    with registries.serve(tmp_path) as address, daemon.connect() as client:
        suite = made.target.suite
        assert suite
        name = f"{address}/{suite.image}"
        text = table.read_text().replace(f'image = "{suite.image}"', f'image = "{name}"')
        table.write_text(text.replace(f"[targets.{TARGET}]\n", f'[targets.{TARGET}]\nbase = "registry"\n'))
        under = base.ensure(client, made.target, made.lock.platform, ROOT / "images")
        # One that no earlier run has left in the store.
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "stamp").write_text(str(uuid4()))
        (tmp_path / "base" / "Dockerfile").write_text(f"FROM {under.reference}\nCOPY stamp /usr/share/stamp\n")
        client.images.build(path=str(tmp_path / "base"), tag=name, rm=True)

        unlocked = invoke("build", *DOCKER, cwd=checkout)
        assert unlocked.returncode == 2, unlocked.stderr
        assert f"invoke lock --base --target={TARGET}" in unlocked.stderr

        absent = invoke("lock", "--base", f"--target={TARGET}", cwd=checkout)
        assert absent.returncode == 4, absent.stderr
        assert name in absent.stderr

        client.images.push(name)
        locked = invoke("lock", "--base", f"--target={TARGET}", cwd=checkout)
        assert locked.returncode == 0, locked.stderr
        assert locked.stdout.splitlines() == [f"images/{TARGET}/base.lock", f"images/{TARGET}/Dockerfile"]
        digest = client.images.get_registry_data(name).id
        assert f"ARG BASE={name}@{digest}" in (checkout / "images" / TARGET / "Dockerfile").read_text()

        client.images.remove(name)
        built = invoke("build", *DOCKER, cwd=checkout)
        assert built.returncode == 0, built.stderr
        assert f"pulling {name}@{digest}" in built.stderr
        verified = invoke("verify", *DOCKER, "--json", cwd=checkout)
        assert verified.returncode == 0, verified.stdout
        labels = client.images.get(built.stdout.strip()).labels
        assert labels["org.opencontainers.image.base.digest"] == digest
        image.remove(client, [built.stdout.strip(), f"{name}@{digest}"])
    invoke("build", *DOCKER)  # the latest is this checkout's again


# --- verify, labs, shell --------------------------------------------------------------------------------------------


def test_the_image_passes_every_check(made: Environment) -> None:
    done = invoke("verify", *DOCKER, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["engine"], document["reference"]) == ("docker", made.reference)
    assert {check["id"]: check["status"] for check in document["checks"]} == {
        check.id: checks.PASSED if check.applies("docker", made.lock.platform) else checks.NOT_APPLICABLE
        for check in checks.CHECKS
    }
    assert containers() == []


def test_labs_run_in_the_image_and_their_results_are_here(made: Environment, tmp_path: Path) -> None:
    """One that starts processes and one that asks for shared memory among them; all at full size: tests/labs."""
    out = tmp_path / "results"
    some = ["--lab=02", "--lab=19", "--lab=20"]
    done = invoke("labs", *DOCKER, *some, "--quick", f"--out={out}", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {result["status"] for result in results} == {"passed"}
    assert {result["lab"] for result in results} == {"02_autograd", "19_speed", "20_two_processes"}
    assert (out / "report.html").stat().st_size > 10_000
    record = json.loads((out / results[0]["lab"] / "metrics.json").read_text())
    assert record["env"]["torch"].startswith(made.target.torch)
    with daemon.connect() as client:
        assert record["env"]["image_id"] == client.images.get(made.reference).id
    again = invoke("labs", *DOCKER, *some, "--quick", f"--out={out}", "--json")
    assert all(result["reused"] for result in json.loads(again.stdout))
    assert containers() == []


def test_a_notebook_runs_in_an_image_that_is_shut_in(made: Environment) -> None:
    """Nothing can be written but the home folder and /tmp: there the files go, and the plots are in the notebook."""
    books = "/opt/labrig/labs/notebooks"
    flags = ["--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
    flags += ["--tmpfs=/home/student:uid=1000,gid=1000", "--env=LAB_ARGS=--quick"]
    execute = ["python", "-W", "ignore", "-c", records.EXECUTE, f"{books}/04_houses.ipynb", books]
    done = run("docker", "run", "--rm", *flags, made.reference, *execute)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["pictures"]) == 2
    assert "04_houses: passed" in told["text"]
    assert "files in /home/student/results/by-hand/04_houses" in told["text"]


def test_the_64_mb_of_shared_memory_that_docker_gives_are_explained(made: Environment) -> None:
    here = ["docker", "run", "--rm", "--shm-size=64m", "--network=none", made.reference]
    done = run(*here, "python", "/opt/labrig/labs/19_speed.py", "--quick", "--no-plots", "--out", "/tmp/out")
    assert done.returncode == 0, done.stderr
    assert "/dev/shm has 67 MB, too little for large batches: docker run --shm-size=1g, or --ipc=host" in done.stdout


def test_a_named_device_that_is_absent_is_exit_3(tmp_path: Path) -> None:
    done = invoke("labs", *DOCKER, "--device=cuda", "--quick", f"--out={tmp_path / 'out'}")
    assert done.returncode == 3
    assert "device cuda is absent" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root's folders are handed over")
def test_a_folder_of_roots_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    done = invoke("labs", *DOCKER, "--quick", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "holds other things" in done.stderr
    assert (tmp_path / "letter").stat().st_uid == 0


def test_labs_in_a_container_stop_with_ctrl_c_and_go_on(tmp_path: Path) -> None:
    out, log = tmp_path / "results", tmp_path / "log"
    command = [*INVOKE, "labs", *DOCKER, f"--out={out}", "--jobs=1"]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True) as process,
    ):
        until = time.monotonic() + 120
        while " started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130, log.read_text()
    said = log.read_text()
    assert "stopping the labs" in said
    assert "labrig: interrupted" in said
    assert "Traceback" not in said
    assert containers() == []
    kept = json.loads((out / "run.json").read_text())["labs"]
    assert "interrupted" in {entry["status"] for entry in kept.values()}
    done = invoke("labs", *DOCKER, f"--out={out}", "--lab=01", "--quick")
    assert done.returncode == 0, done.stderr


def test_a_shell_runs_as_a_student_without_any_privilege(made: Environment) -> None:
    done = invoke("shell", *DOCKER, "--command=id -u; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status")
    user, capabilities, privileges = done.stdout.splitlines()
    assert int(user) > 0
    assert capabilities.split()[1].strip("0") == ""
    assert privileges.split()[1] == "1"
    for code in (7, 126, 127):
        assert invoke("shell", *DOCKER, f"--command=exit {code}").returncode == code
    assert containers() == []


def test_what_goes_in_and_out_of_a_container_is_what_it_was(made: Environment) -> None:
    """Every byte of stdin, of stdout from the first on, and nothing of stderr between them."""
    given = "".join(f"{i} café\n" for i in range(200_000))
    done = invoke("shell", *DOCKER, "--command=cat; echo aside >&2", given=given)
    assert done.returncode == 0, done.stderr
    assert done.stdout == given
    assert done.stderr.endswith("aside\n")
    for _ in range(5):
        assert invoke("shell", *DOCKER, "--command=echo first", given="").stdout == "first\n"


def test_a_command_may_write_more_than_it_reads_and_end_before_all_is_read() -> None:
    given = "".join(f"{i}\n" for i in range(200_000))
    grow = "import sys; [sys.stdout.write(line * 8) for line in sys.stdin]"
    done = invoke("shell", *DOCKER, f"--command=python -c '{grow}'", given=given, timeout=120)
    assert done.stdout == "".join(f"{line}\n" * 8 for line in given.splitlines())
    early = invoke("shell", *DOCKER, "--command=head -n 1", given=given, timeout=120)
    assert (early.returncode, early.stdout) == (0, "0\n"), early.stderr


def test_ctrl_c_reaches_what_a_shell_command_started(made: Environment) -> None:
    command = [*INVOKE, "shell", *DOCKER, "--command=echo ready; sleep 300; echo no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stdout.read() == b""
    assert containers() == []


def test_a_container_that_was_made_and_never_started_goes_with_the_next_session(made: Environment) -> None:
    """Its process was killed between the two; that of another one lives."""
    with subprocess.Popen(["sleep", "300"]) as alive, daemon.connect() as client:
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        left, other = (
            client.containers.create(made.reference, labels={container.MARK: str(pid)})
            for pid in (int(dead.stdout), alive.pid)
        )
        with docker.session(made) as session:
            assert session.run(["true"]) == 0
        there = {one.id for one in client.containers.list(all=True, ignore_removed=True)}
        assert left.id not in there
        assert other.id in there
        other.remove()
        alive.kill()


@pytest.mark.parametrize(
    "folder", ["/opt/venv", "/opt/venv/lib", "/opt/labrig/labs", "/proc/1/x", "/opt", "/dev/null/x"]
)
def test_results_do_not_hide_what_the_image_has(folder: str) -> None:
    done = invoke("labs", *DOCKER, "--quick", f"--out={folder}")
    assert done.returncode == 2, done.stderr
    assert f"--out {folder} cannot be used" in done.stderr
    assert folder != "/opt/venv" or not Path(folder).exists()


def test_a_context_that_is_not_there_is_no_other_engine() -> None:
    done = invoke("build", *DOCKER, DOCKER_CONTEXT="nope", DOCKER_HOST="")
    assert done.returncode == 3
    assert "the docker context 'nope' does not exist" in done.stderr


def test_whoever_calls_owns_what_is_written(made: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the image does not know: a home that can be written to, files of their own."""
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 4321, 4321)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(os, "getgid", lambda: 4321)
    write = "import os, pathlib, torch; pathlib.Path.home().joinpath('x').write_text('x'); "
    write += f"open({str(out / 'mine')!r}, 'w').write(str(os.getuid()))"
    with docker.session(made, "labs", [out]) as session:
        assert session.run([session.python, "-c", write]) == 0
    assert (out / "mine").read_text() == "4321"
    assert (out / "mine").stat().st_uid == 4321


def test_what_sudo_writes_into_a_persons_folder_is_theirs(tmp_path: Path) -> None:
    os.chown(tmp_path, 4321, 4322)
    (tmp_path / "new").mkdir()
    assert docker.user_of([tmp_path / "new"]) == ("4321:4322" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}")


def test_a_gpu_that_the_engine_cannot_hand_in_is_exit_3(made: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    host = dataclasses.replace(read_host(), driver="580.65.06", gpus=(Gpu("Test GPU", "8.0"),))
    monkeypatch.setattr(docker, "read_host", lambda: host)
    for_cuda = dataclasses.replace(made, target=dataclasses.replace(made.target, device="cuda"))
    with pytest.raises(HostError, match="GPU") as caught, docker.session(for_cuda):
        pass
    assert caught.value.code == 3
    assert "NVIDIA Container Toolkit" in caught.value.fix
    assert containers() == []


def test_an_engine_elsewhere_builds_but_opens_no_session(made: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "address", lambda: "tcp://192.0.2.1:2376")
    monkeypatch.setattr(
        daemon, "_open", lambda _: __import__("docker").DockerClient(base_url="unix:///var/run/docker.sock")
    )
    with pytest.raises(HostError, match="own engine only"), docker.session(made):
        pass


# --- the images for CUDA: `pytest -m cuda_image`, some 15 GB and ten minutes ------------------------------------

CUDA = [t for t in spec.read(ROOT / "images" / spec.TABLE).targets.values() if t.device == "cuda"]


@pytest.mark.cuda_image
@pytest.mark.parametrize("target", CUDA, ids=[target.name for target in CUDA])
def test_an_image_for_cuda_is_built_verified_and_runs_labs_on_the_cpu(target: spec.Target, tmp_path: Path) -> None:
    here = [f"--target={target.name}", "--engine=docker"]
    built = invoke("build", *here, timeout=3600)
    assert built.returncode == 0, built.stderr
    verified = invoke("verify", *here, "--json")
    assert verified.returncode == 0, verified.stdout
    status = {check["id"]: check for check in json.loads(verified.stdout)["checks"]}
    ours = {check.id for check in checks.CHECKS if check.applies("docker", "linux_x86_64")}
    others = {id: check["status"] for id, check in status.items() if id in ours - {"device"}}
    assert set(others.values()) == {checks.PASSED}, others
    done = invoke("labs", *here, "--device=cpu", "--quick", f"--out={tmp_path / 'out'}", "--json", timeout=1200)
    assert done.returncode == 0, done.stderr
    assert {result["device"] for result in json.loads(done.stdout)} == {"cpu"}
    required = invoke("verify", *here, "--require-device", "--json")
    device = {check["id"]: check for check in json.loads(required.stdout)["checks"]}["device"]
    if read_host().gpus:
        assert (required.returncode, device["status"]) == (0, checks.PASSED)
        return
    assert status["device"]["status"] == checks.SKIPPED
    assert "torch sees no cuda device here" in status["device"]["reason"]
    assert (required.returncode, device["status"]) == (6, checks.FAILED)
    with daemon.connect() as client:
        variables = dict(pair.split("=", 1) for pair in client.images.get(built.stdout.strip()).attrs["Config"]["Env"])
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert variables["NVIDIA_REQUIRE_CUDA"] == f"driver>={target.min_driver}"
