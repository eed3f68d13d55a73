"""The host by asking: fake programs on a temporary PATH, system files under a temporary root, a socket for Docker."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig.errors import UsageError
from labrig.host import RECORDED, Gpu, Host, ask, from_json, read_host

Program = Callable[[str, str], Path]
LINUX = platform.uname_result("Linux", "node", "6.1", "#1", "x86_64")
ARM_LINUX = platform.uname_result("Linux", "node", "6.1", "#1", "aarch64")
MAC = platform.uname_result("Darwin", "node", "24.1.0", "Darwin Kernel", "arm64")
INTEL_MAC = platform.uname_result("Darwin", "node", "22.6.0", "Darwin Kernel", "x86_64")
WINDOWS = platform.uname_result("Windows", "node", "11", "10.0.22631", "AMD64")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No recorded machine, no Docker engine, and only the programs that a test puts on PATH."""
    monkeypatch.delenv(RECORDED, raising=False)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    (tmp_path / "bin").mkdir()
    (tmp_path / "root").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    def write(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)
        return path

    return write


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- the machine that runs the test -----------------------------------------------------------------------------------


def test_this_machine() -> None:
    host = read_host()
    assert host.os == {"Linux": "linux", "Darwin": "macos"}[platform.system()]
    assert host.python == platform.python_version()
    assert host.platform is None or host.platform.startswith(host.os)
    assert host.found_by == "queries"
    if host.os == "linux":
        assert host.libc
        assert re.fullmatch(r"(glibc|musl) [0-9.]+", host.libc)
    assert from_json(json.loads(json.dumps(host.to_json())), "a file").gpus == host.gpus


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


def test_gpus_by_query(root: Path, program: Program, tmp_path: Path) -> None:
    program(
        "nvidia-smi",
        f'echo "$@" > {tmp_path}/arguments\n'
        'echo "NVIDIA GeForce RTX 4090, 8.9, 24564, 580.65.06"\n'
        'echo "NVIDIA GeForce GTX 1080 Ti, 6.1, 11264, 580.65.06"',
    )
    host = read_host(root=root, uname=LINUX)
    assert host.gpus == (Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564), Gpu("NVIDIA GeForce GTX 1080 Ti", "6.1", 11264))
    assert (host.driver, host.gpu_error) == ("580.65.06", "")
    assert (tmp_path / "arguments").read_text().split() == [
        "--query-gpu=name,compute_cap,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]


def test_no_nvidia_at_all(root: Path) -> None:
    host = read_host(root=root, uname=LINUX)
    assert (host.driver, host.gpus, host.gpu_error) == (None, (), "")


def test_an_old_driver_cannot_tell_the_capability(root: Path, program: Program) -> None:
    program(
        "nvidia-smi",
        'case "$1" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2;; esac\n'
        'echo "Tesla K80, 11441, 470.182.03"',
    )
    host = read_host(root=root, uname=LINUX)
    assert host.gpus == (Gpu("Tesla K80", None, 11441),)
    assert (host.driver, host.gpu_error) == ("470.182.03", "")


def test_a_renamed_field_is_left_out_and_the_kernel_tells_the_driver(root: Path, program: Program) -> None:
    """Branch 610 renamed fields of the text for people, and calls driver_version deprecated."""
    program(
        "nvidia-smi",
        'case "$1" in *driver_version*) echo \'Field "driver_version" is not a valid field to query.\'; exit 2;; esac\n'
        'echo "NVIDIA GeForce RTX 5090, 12.0, 32607"',
    )
    put(root / "sys/module/nvidia/version", "610.43.02\n")
    host = read_host(root=root, uname=LINUX)
    assert host.gpus == (Gpu("NVIDIA GeForce RTX 5090", "12.0", 32607),)
    assert (host.driver, host.gpu_error) == ("610.43.02", "")


def test_an_nvidia_smi_that_knows_no_field_at_all_ends(root: Path, program: Program) -> None:
    program("nvidia-smi", 'f=${1#*=}; echo "Field \\"${f%%,*}\\" is not a valid field to query."; exit 2')
    host = read_host(root=root, uname=LINUX)
    assert host.gpus == () and "not a valid field" in host.gpu_error


def test_nvidia_cards_on_the_pci_bus_are_counted_without_a_driver(root: Path) -> None:
    assert read_host(root=root, uname=LINUX).pci_nvidia is None
    for name, vendor, kind in (("0", "0x10de", "0x030000"), ("1", "0x10de", "0x040300"), ("2", "0x8086", "0x030000")):
        put(root / f"sys/bus/pci/devices/{name}/vendor", f"{vendor}\n")
        put(root / f"sys/bus/pci/devices/{name}/class", f"{kind}\n")
    assert read_host(root=root, uname=LINUX).pci_nvidia == 1, "its sound is no GPU"
    assert read_host(root=root, uname=ARM_LINUX).pci_nvidia is None, "a Jetson's is not on the bus"
    put(root / "proc/version", "Linux version 5.15 microsoft-standard-WSL2")
    assert read_host(root=root, uname=LINUX).pci_nvidia is None


def test_a_container_without_gpus_has_the_hosts_driver_and_no_device_files(root: Path) -> None:
    put(root / ".dockerenv", "")
    put(root / "sys/module/nvidia/version", "580.65.06\n")
    host = read_host(root=root, uname=LINUX)
    assert (host.container, host.driver, host.gpu_nodes) == (True, "580.65.06", False)
    put(root / "dev/nvidiactl", "")
    assert read_host(root=root, uname=LINUX).gpu_nodes is True


def test_a_raspberry_pi_4_has_no_atomics(root: Path) -> None:
    put(root / "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n")
    assert read_host(root=root, uname=ARM_LINUX).lse is False
    put(root / "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd evtstrm aes atomics cpuid\n")
    assert read_host(root=root, uname=ARM_LINUX).lse is True
    assert read_host(root=root, uname=LINUX).lse is None


def test_an_nvidia_smi_that_never_stops_talking_is_stopped(root: Path, program: Program) -> None:
    program("nvidia-smi", "while :; do echo garbage garbage garbage garbage garbage garbage; done")
    host = read_host(root=root, uname=LINUX)
    assert host.gpu_error == "nvidia-smi says far too much"


def test_a_recording_nested_without_end_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 100_000)
    monkeypatch.setenv(RECORDED, str(file))
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        read_host()


def test_what_hides_gpus_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert read_host(root=root, uname=LINUX).visible_devices is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_host(root=root, uname=LINUX).visible_devices == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", ("2.13.0+cpu", None)),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n", ("2.13.0+cu130", "13.0")),
        ("__version__: str = '2.15.0+cu132'\ncuda: str | None = '13.2'\n", ("2.15.0+cu132", "13.2")),
        ("garbage", None),
    ],
)
def test_the_torch_in_use_is_read_and_never_imported(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, str | None] | None
) -> None:
    place = tmp_path / "venv"
    put(place / "lib/python3.12/site-packages/torch/version.py", text)
    put(place / "lib/python3.12/site-packages/torch/__init__.py", "raise SystemExit('imported')")
    monkeypatch.setenv("VIRTUAL_ENV", str(place))
    found = read_host(root=root, uname=LINUX).torch
    assert (found and (found.version, found.cuda)) == expected
    assert not found or found.where == str(place)


def test_values_that_the_driver_does_not_know(root: Path, program: Program) -> None:
    program("nvidia-smi", 'echo "Orin (nvgpu), [N/A], [N/A], 540.4.0"')
    host = read_host(root=root, uname=ARM_LINUX)
    assert host.gpus == (Gpu("Orin (nvgpu)", None, None),)
    assert (host.platform, host.driver) == ("linux_aarch64", "540.4.0")


def test_a_comma_in_a_name(root: Path, program: Program) -> None:
    program("nvidia-smi", 'echo "NVIDIA A100, 40GB, 8.0, 40960, 580.65.06"')
    assert read_host(root=root, uname=LINUX).gpus == (Gpu("NVIDIA A100, 40GB", "8.0", 40960),)


def test_a_failing_nvidia_smi_is_told_apart_from_an_absent_one(root: Path, program: Program) -> None:
    program(
        "nvidia-smi", 'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9'
    )
    host = read_host(root=root, uname=LINUX)
    assert (host.driver, host.gpus) == (None, ())
    assert host.gpu_error.startswith("nvidia-smi ends with 9: NVIDIA-SMI has failed")


def test_the_kernel_tells_the_driver_when_nvidia_smi_fails(root: Path, program: Program) -> None:
    put(
        root / "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n",
    )
    program("nvidia-smi", 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    host = read_host(root=root, uname=LINUX)
    assert host.driver == "535.183.01"
    assert "version mismatch" in host.gpu_error


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sys/module/nvidia/version", "580.65.06\n"),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
        ),
    ],
)
def test_a_driver_without_nvidia_smi(root: Path, file: str, text: str) -> None:
    put(root / file, text)
    put(
        root / "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t 130\n",
    )
    host = read_host(root=root, uname=LINUX)
    assert host.driver == "580.65.06"
    assert host.gpus == (Gpu("NVIDIA GeForce RTX 3060"),)
    assert "not on PATH" in host.gpu_error


def test_no_devices(root: Path, program: Program) -> None:
    put(root / "sys/module/nvidia/version", "580.65.06\n")
    program("nvidia-smi", 'echo "No devices were found"; exit 6')
    host = read_host(root=root, uname=LINUX)
    assert (host.driver, host.gpus, host.gpu_error) == ("580.65.06", (), "")


@pytest.mark.parametrize("answer", ["garbage", "a, b, c, d", "| NVIDIA-SMI 610.11   Driver: 610.11 |", "RTX, 8.9, 1"])
def test_an_unreadable_answer_is_not_guessed_at(root: Path, program: Program, answer: str) -> None:
    program("nvidia-smi", f'echo "{answer}"')
    host = read_host(root=root, uname=LINUX)
    assert (host.driver, host.gpus) == (None, ())
    assert "unreadable answer" in host.gpu_error


def test_a_hanging_nvidia_smi_does_not_hang_us(root: Path, program: Program) -> None:
    program("nvidia-smi", "sleep 60 & sleep 60")
    started = time.monotonic()
    host = read_host(root=root, uname=LINUX, seconds=0.3)
    assert time.monotonic() - started < 10
    assert host.gpu_error == "nvidia-smi did not answer within 0.3 s"


def test_an_nvidia_smi_that_cannot_start(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "bin" / "nvidia-smi"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    assert "cannot be started" in read_host(root=root, uname=LINUX).gpu_error


def test_ask_runs_in_the_c_locale(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    answer = ask([str(program("say", 'echo "$LC_ALL"; echo why >&2; exit 3'))], 10)
    assert (answer.code, answer.out, answer.error) == (3, "C\n", "why")


# --- Linux ------------------------------------------------------------------------------------------------------------


def test_wsl2(root: Path) -> None:
    put(root / "proc/version", "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f)")
    smi = root / "usr/lib/wsl/lib/nvidia-smi"
    put(smi, '#!/bin/sh\necho "NVIDIA GeForce RTX 4070, 8.9, 12282, 566.36"\n')
    smi.chmod(0o755)
    host = read_host(root=root, uname=LINUX)
    assert host.wsl
    assert (host.driver, host.gpus[0].capability) == ("566.36", "8.9")


def test_wsl1_is_not_wsl2(root: Path) -> None:
    put(root / "proc/version", "Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)")
    assert not read_host(root=root, uname=LINUX).wsl


@pytest.mark.parametrize(
    ("mark", "text"),
    [(".dockerenv", ""), ("run/.containerenv", ""), ("proc/1/cgroup", "0::/kubepods.slice/pod1\n")],
)
def test_container(root: Path, mark: str, text: str) -> None:
    assert not read_host(root=root, uname=LINUX).container
    put(root / mark, text)
    assert read_host(root=root, uname=LINUX).container


def test_distribution(root: Path) -> None:
    put(root / "etc/os-release", 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    assert read_host(root=root, uname=LINUX).os_version == "Debian GNU/Linux 12 (bookworm)"


def test_musl(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def confstr(name: str) -> str:
        raise ValueError("unrecognized configuration name")  # as a Python on musl answers

    monkeypatch.setattr(os, "confstr", confstr)
    assert read_host(root=root, uname=LINUX).libc is None
    loader = root / "lib/ld-musl-x86_64.so.1"
    put(loader, '#!/bin/sh\nprintf "musl libc (x86_64)\\nVersion 1.2.5\\nDynamic Program Loader\\n" >&2\nexit 1\n')
    loader.chmod(0o755)
    assert read_host(root=root, uname=LINUX).libc == "musl 1.2.5"


@pytest.mark.parametrize(
    ("machine", "expected"), [("amd64", "linux_x86_64"), ("arm64", "linux_aarch64"), ("riscv64", None)]
)
def test_platform_names(root: Path, machine: str, expected: str | None) -> None:
    assert read_host(root=root, uname=LINUX._replace(machine=machine)).platform == expected


# --- macOS, Windows ---------------------------------------------------------------------------------------------------


def mac(program: Program, chip: str, arm64: str, version: str, virtual: str = "echo 0") -> None:
    program(
        "sysctl",
        f"case \"$2\" in machdep.cpu.brand_string) echo '{chip}';; hw.optional.arm64) {arm64};;"
        f" kern.hv_vmm_present) {virtual};; *) exit 1;; esac",
    )
    program("sw_vers", f"echo {version}")


def test_apple_silicon(root: Path, program: Program) -> None:
    mac(program, "Apple M2", "echo 1", "15.1")
    host = read_host(root=root, uname=MAC)
    assert (host.os, host.os_version, host.arch, host.chip) == ("macos", "15.1", "arm64", "Apple M2")
    assert (host.platform, host.translated, host.libc) == ("macos_arm64", False, None)


@pytest.mark.parametrize(("answer", "virtual"), [("echo 1", True), ("echo 0", False), ("exit 1", False)])
def test_a_virtual_mac(root: Path, program: Program, answer: str, virtual: bool) -> None:
    mac(program, "Apple M1 (Virtual)", "echo 1", "15.5", answer)
    host = read_host(root=root, uname=MAC)
    assert (host.virtual, host.remote, host.platform) == (virtual, False, "macos_arm64")


@pytest.mark.parametrize(
    ("ssh", "owner", "remote"),
    [("10.0.0.1 50000 10.0.0.2 22", 1, True), ("10.0.0.1 50000 10.0.0.2 22", 0, False), ("", 1, False)],
)
def test_a_mac_over_ssh(
    root: Path, program: Program, monkeypatch: pytest.MonkeyPatch, ssh: str, owner: int, remote: bool
) -> None:
    """Over ssh alone nothing is lost: who is logged in at the screen as well owns the console."""
    mac(program, "Apple M2", "echo 1", "15.5")
    put(root / "dev/console", "")
    own = (root / "dev/console").stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: own + owner)
    monkeypatch.setenv("SSH_CONNECTION", ssh)
    assert read_host(root=root, uname=MAC).remote is remote
    (root / "dev/console").unlink()
    assert read_host(root=root, uname=MAC).remote is False, "not known is not told"


def test_linux_is_not_asked_for_what_is_a_macs(root: Path, monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    mac(program, "", "echo 1", "15.5", "echo 1")
    put(root / "dev/console", "")
    monkeypatch.setattr(os, "getuid", lambda: -1)
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 10.0.0.2 22")
    host = read_host(root=root, uname=LINUX)
    assert (host.virtual, host.remote) == (False, False)


def test_rosetta(root: Path, program: Program) -> None:
    mac(program, "Apple M1", "echo 1", "14.5")
    host = read_host(root=root, uname=INTEL_MAC)
    assert (host.arch, host.translated) == ("arm64", True)


def test_intel_mac(root: Path, program: Program) -> None:
    mac(program, "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", 'echo "unknown oid" >&2; exit 1', "13.6.7")
    host = read_host(root=root, uname=INTEL_MAC)
    assert (host.arch, host.translated, host.platform) == ("x86_64", False, None)


def test_windows(root: Path) -> None:
    host = read_host(root=root, uname=WINDOWS)
    assert (host.os, host.arch, host.platform) == ("windows", "x86_64", "windows_amd64")


def test_another_system(root: Path) -> None:
    with pytest.raises(UsageError, match="does not know this system"):
        read_host(root=root, uname=LINUX._replace(system="FreeBSD"))


# --- Docker -----------------------------------------------------------------------------------------------------------


class Engine(BaseHTTPRequestHandler):
    """As much of the Docker engine's API as a client that asks for its version sees."""

    def do_GET(self) -> None:
        body = b"OK" if self.path.endswith("/_ping") else b'{"ApiVersion": "1.45", "Version": "26.1.5"}'
        self.send_response(200)
        self.send_header("Content-Type", "text/plain" if body == b"OK" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())  # a socket's path may have about 100 characters only
    with socketserver.ThreadingUnixStreamServer(str(folder / "s"), Engine) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield folder / "s"
        server.shutdown()
        thread.join()
    shutil.rmtree(folder)


def test_an_engine_that_answers(root: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine}")
    host = read_host(root=root, uname=LINUX)
    assert (host.docker, host.docker_error) == ("26.1.5", "")


def test_docker_is_not_installed(root: Path) -> None:
    host = read_host(root=root, uname=LINUX)
    assert (host.docker, host.docker_error) == (None, "not installed")


def test_docker_is_installed_but_not_running(root: Path, program: Program) -> None:
    program("docker", "exit 1")
    assert read_host(root=root, uname=LINUX).docker_error.startswith("not running: there is a docker program")


def test_an_engine_that_has_gone(root: Path, tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = engine.parent / "gone"
    with socketserver.UnixStreamServer(str(gone), Engine):
        pass  # the socket's file stays, nobody listens
    monkeypatch.setenv("DOCKER_HOST", f"unix://{gone}")
    assert read_host(root=root, uname=LINUX).docker_error == "not running: the connection is refused"


def test_permission_denied(root: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")  # no socket refuses root, who may run this test

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine}")
    assert read_host(root=root, uname=LINUX).docker_error.startswith("permission denied")


def test_an_engine_over_tcp_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
    host = read_host(root=root, uname=LINUX)
    assert host.docker is None
    assert "refused" in host.docker_error


def test_a_docker_host_that_is_no_address(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "garbage://x")
    assert "garbage" in read_host(root=root, uname=LINUX).docker_error


# --- recorded machines ------------------------------------------------------------------------------------------------


def test_a_recorded_machine_replaces_the_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Host("linux", "x86_64", libc="glibc 2.39", driver="580.65.06", gpus=(Gpu("NVIDIA L4", "8.9", 23034),))
    path = tmp_path / "room-7.json"
    path.write_text(json.dumps(recorded.to_json()))
    monkeypatch.setenv(RECORDED, str(path))
    host = read_host()
    assert host.found_by == f"{RECORDED}={path}"
    assert {**host.to_json(), "found_by": ""} == {**recorded.to_json(), "found_by": ""}


@pytest.mark.parametrize("text", ["", "{", "\udcff", "[]", '"x"', "{}", '{"os": "linux", "gpu": 1}'])
def test_a_recording_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "host.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setenv(RECORDED, str(path))
    with pytest.raises(UsageError) as error:
        read_host()
    assert RECORDED in str(error.value)
    assert error.value.fix


def test_a_recording_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RECORDED, str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_host()


def test_a_document_of_a_labrig_that_knew_less_is_read() -> None:
    older = {key: value for key, value in Host("macos", "arm64").to_json().items() if key not in ("virtual", "remote")}
    host = from_json(older, "room-7.json")
    assert (host.virtual, host.remote) == (False, False)


GOOD = {"os": "linux", "arch": "x86_64"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("os", "beos"),
        ("os", None),
        ("arch", 64),
        ("libc", 2.36),
        ("driver", "R580"),
        ("driver", 580),
        ("wsl", "yes"),
        ("virtual", 1),
        ("remote", "ssh"),
        ("gpus", {}),
        ("gpus", ["RTX 4090"]),
        ("gpus", [{"capability": "8.9"}]),
        ("gpus", [{"name": "RTX 4090", "capability": 8.9}]),
        ("gpus", [{"name": "RTX 4090", "capability": "sm_89"}]),
        ("gpus", [{"name": "RTX 4090", "memory_mib": "24 GB"}]),
        ("gpus", [{"name": "RTX 4090", "cc": "8.9"}]),
    ],
)
def test_a_wrong_value_in_a_recording_is_named(key: str, value: object) -> None:
    with pytest.raises(UsageError) as error:
        from_json({**GOOD, key: value}, "room.json")
    assert "room.json" in error.value.what
    assert key in error.value.what
    assert error.value.fix


KEYS = st.sampled_from([field.name for field in fields(Host)] + [field.name for field in fields(Gpu)] + ["other"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["linux", "8.9", "580"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, JSON), JSON)
def test_no_recording_makes_a_traceback(extra: dict[str, object], whole: object) -> None:
    for data in ({**GOOD, **extra}, whole):
        try:
            host = from_json(data, "room.json")
        except UsageError:
            continue
        assert from_json(json.loads(json.dumps(host.to_json())), "room.json") == host
