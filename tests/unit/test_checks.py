"""Each declared check over facts that pass it and facts that fail it, and what fails one fails no other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import macs
import pytest

from labrig import checks, conda, image, lock, spec
from labrig.checks import FAILED, NOT_APPLICABLE, PASSED, SKIPPED, Expectation, Outcome
from labrig.conda import CondaLock, Package, Pin
from labrig.lock import Lock
from labrig.spec import Target

IMAGES = Path(__file__).parents[2] / "images"
TABLE = spec.read(IMAGES / spec.TABLE)
Facts = dict[str, Any]


LABS = {"01_tensors.py": "a" * 64, "data/digits.csv": "b" * 64}


def exact(target: Target, locked: Lock) -> CondaLock:
    """A conda lock of the pinned packages and one more."""
    pins = [*conda.pins(target, locked), Pin("libblas", "3.11.0", "mkl")]
    packages = [
        Package(
            pin.name, pin.version, build := pin.build.replace("*", "0") or "h0", "linux-64",
            f"{pin.name}-{pin.version}-{build}.conda", "a" * 64, "b" * 32, 1,
        )
        for pin in pins
    ]  # fmt: skip
    return CondaLock(target.name, locked.platform, "c" * 64, tuple(packages))


def expect(name: str, *, engine: str = "venv", require_device: bool = False) -> Expectation:
    """What is expected of a target's environment; ``docker:cpu`` names its image."""
    if ":" in name:
        engine, _, name = name.rpartition(":")
    target = TABLE.pick(name)
    platform = lock.locked_platforms(target, IMAGES)[0]
    locked = lock.load(target, platform, IMAGES)
    if engine == "conda:exact":
        return Expectation(target, locked, "conda", require_device, exact=exact(target, locked))
    return Expectation(target, locked, engine, require_device, LABS if engine == "docker" else {})


ENVIRONMENTS = [
    *TABLE.targets,
    *(f"docker:{target.name}" for target in TABLE.targets.values() if "docker" in target.engines),
    *(f"conda:{target.name}" for target in TABLE.targets.values() if "conda" in target.engines),
    "conda:exact:cpu",
]


def good(e: Expectation, *, present: bool = True) -> Facts:
    """The probe's document in an environment that is as the lock says, on a machine that has the device or not."""
    seen: Facts = {"cpu": {"kernel": "ok"}}
    if present and e.target.device == "cuda":
        seen[e.target.device] = {"names": ["Test GPU"], "kernel": "ok"}
    of_conda = e.target.conda if e.engine == "conda" else None
    local = "" if e.target.device == "mps" or of_conda else f"+{e.target.variant}"
    archs = of_conda.archs if of_conda else e.target.archs
    python = of_conda.python if of_conda else f"{e.target.python}.4"
    return {
        "python": {"version": python, "minor": e.target.python},
        "packages": {wheel.name: wheel.version for wheel in e.lock.wheels},
        "torch": {
            "version": e.target.torch + local,
            "cuda": e.target.cuda,
            "archs": sorted(a.replace(".", "") for a in archs.get(e.lock.platform, ())),
        },
        "device": seen,
        "libraries": {"loaded": 40, "broken": {}, "plugins": {}},
        "files": {"count": 30000, "wrong": []},
        "dataloader": "ok",
        "connections": [],
        **(in_a_container(e) if e.engine == "docker" else {}),
        **(copy.deepcopy(macs.MAC if present else macs.SANDBOXED) if e.target.device == "mps" else {}),
        **(in_conda(e) if of_conda else {}),
    }


def in_conda(e: Expectation) -> Facts:
    """What the conda program lists, and the probe of what conda recorded."""
    found = (e.exact or exact(e.target, e.lock)).packages
    listed = [{"name": p.name, "version": p.version, "build": p.build, "channel": "conda-forge"} for p in found]
    return {"listed": listed, "files": {"packages": 9, "count": 30000, "wrong": [], "unowned": []}}


def in_a_container(e: Expectation) -> Facts:
    """What the engine tells of an image that is as it should be, and the probe in a container of it."""
    parts = ["libcudart.so.13", "libcublas.so.13"] if e.target.cuda else []
    return {
        "image": {
            "tags": [f"labrig/{e.target.name}:{e.target.torch}-0123456789ab", f"labrig/{e.target.name}:latest"],
            "labels": {**image.labels(e.target, e.lock), "org.opencontainers.image.revision": "unknown"},
            "user": "1000:1000",
        },
        "user": {
            "uid": 1000, "gid": 1000, "name": "student", "home": "/home/student", "home_uid": 1000,
            "home_mode": "700", "home_writable": "yes",
        },
        "shm": {"bytes": 8 << 30, "memory": 16 << 30, "workers": "ok"},
        "labs": dict(LABS),
        "system": {
            "open": [], "privileged": [], "left": [], "unread": [],
            "cuda": [f"/opt/venv/lib/python3/site-packages/nvidia/cu13/lib/{part}" for part in parts],
        },
        "confined": {
            "confinement": {"capabilities": 0, "no_new_privileges": True, "interfaces": ["lo"], "read_only": True},
            "user": {"home_writable": "yes"},
            "device": {"cpu": {"kernel": "ok"}},
            "dataloader": "ok",
        },
    }  # fmt: skip


def judge(e: Expectation, facts: Facts) -> dict[str, Outcome]:
    return {check.id: checks.judge(check, e, facts) for check in checks.CHECKS}


def ended(outcomes: dict[str, Outcome], status: str) -> set[str]:
    return {id for id, outcome in outcomes.items() if outcome.status == status}


def test_the_list_is_declared_once() -> None:
    ids = [check.id for check in checks.CHECKS]
    assert len(set(ids)) == len(ids)
    assert {check.run for check in checks.CHECKS} == {
        function for name, function in vars(checks).items() if name.startswith("check_")
    }, "a check that is written but not declared would never run"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_good_environment_passes_every_check_that_is_for_it(name: str) -> None:
    e = expect(name)
    outcomes = judge(e, good(e))
    assert ended(outcomes, FAILED) == ended(outcomes, SKIPPED) == set()
    not_here = {check.id for check in checks.CHECKS if e.engine not in check.engines}
    assert not_here & {"channel", "confined"} == {"docker": {"channel"}, "conda": {"confined"}}.get(
        e.engine, {"channel", "confined"}
    )
    not_here |= {"archs"} if e.target.device == "mps" else {"float64"}
    assert ended(outcomes, NOT_APPLICABLE) == not_here
    assert all(outcome.expected and outcome.found for outcome in outcomes.values() if outcome.status == PASSED)


Mutation = Callable[[Facts], object]


EXTRA = {"name": "left-pad", "version": "1.0", "build": "0", "channel": "conda-forge"}


def put(value: object, *keys: str | int) -> Mutation:
    def change(facts: Facts) -> None:
        place: Any = facts
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def other_minor(facts: Facts) -> None:
    facts["python"]["minor"] = facts["python"]["minor"] + "9"


def other_patch(facts: Facts) -> None:
    head, _, patch = facts["torch"]["version"].partition("+")[0].rpartition(".")
    facts["torch"]["version"] = f"{head}.{int(patch) + 1}"


def be_root(facts: Facts) -> None:
    facts["user"] |= {"uid": 0, "gid": 0, "name": "root", "home_uid": 0}


MUTATIONS: list[tuple[str, str, set[str], str, Mutation]] = [
    # what is wrong, target, the checks that must fail, a word of what they say, how the facts change
    ("python minor", "cpu", {"python"}, "another Python", other_minor),
    ("torch patch", "cpu", {"torch"}, "another torch", other_patch),
    ("torch variant", "cpu", {"torch"}, "another torch", lambda f: put("2.0.0+cu130", "torch", "version")(f)),
    ("cuda where none belongs", "cpu", {"cuda"}, "another CUDA", put("13.0", "torch", "cuda")),
    ("gpu code where none belongs", "cpu", {"archs"}, "other GPUs", put(["80"], "torch", "archs")),
    ("another cuda", "cuda", {"cuda"}, "another CUDA", put("12.6", "torch", "cuda")),
    ("no cuda", "cuda", {"cuda"}, "another CUDA", put(None, "torch", "cuda")),
    ("one arch less", "cuda", {"archs"}, "other GPUs", lambda f: f["torch"]["archs"].pop()),
    ("one arch more", "cuda", {"archs"}, "other GPUs", lambda f: f["torch"]["archs"].append("37")),
    ("another patch of Python", "conda:cpu", {"python"}, "another Python", put("3.11.0", "python", "version")),
    ("pip's torch", "conda:cpu", {"torch"}, "another torch", put(f"{TABLE.pick('cpu').torch}+cpu", "torch", "version")),
    ("one arch less on conda", "conda:cuda", {"archs"}, "other GPUs", lambda f: f["torch"]["archs"].pop()),
    ("pin missing", "conda:cpu", {"packages"}, "1 differ from the pin", lambda f: f["listed"].pop(2)),
    ("pin of another version", "conda:cpu", {"packages"}, "1 differ", put("0.0.1", "listed", 2, "version")),
    ("another build of torch", "conda:cpu", {"packages"}, "1 differ", put("cuda130_0", "listed", 1, "build")),
    ("another build than locked", "conda:exact:cpu", {"packages"}, "the lock", put("h1", "listed", 2, "build")),
    ("locked package missing", "conda:exact:cpu", {"packages"}, "the lock", lambda f: f["listed"].pop()),
    ("beyond the lock", "conda:exact:cpu", {"extra"}, "another lock", lambda f: f["listed"].append(EXTRA)),
    ("pip in conda", "conda:cpu", {"extra"}, "by hand", put(["left-pad 1.0"], "files", "unowned")),
    ("Anaconda's channel", "conda:cpu", {"channel"}, "other channels", put("pkgs/main", "listed", 0, "channel")),
    ("pip's channel", "conda:cpu", {"channel"}, "other channels", put("pypi", "listed", 0, "channel")),
    ("no channel", "conda:cpu", {"channel"}, "other channels", put("", "listed", 0, "channel")),
    ("package missing", "cpu", {"packages"}, "1 differ", lambda f: f["packages"].pop("numpy")),
    ("package of another version", "cpu", {"packages"}, "1 differ", put("0.0.1", "packages", "numpy")),
    ("a version twice", "cpu", {"packages"}, "1 differ", put("1.0 and 2.0", "packages", "numpy")),
    ("package too many", "cpu", {"extra"}, "by hand", put("1.0", "packages", "left-pad")),
    ("file missing", "cpu", {"files"}, "1 files differ", put(["numpy/__init__.py is absent"], "files", "wrong")),
    ("no file recorded", "cpu", {"files"}, "0 files differ", put(0, "files", "count")),
    ("library broken", "cpu", {"libraries"}, "1 do not load", put({"a.so": "file too short"}, "libraries", "broken")),
    ("no library", "cpu", {"libraries"}, "0 do not load", put(0, "libraries", "loaded")),
    ("dataloader", "cpu", {"dataloader"}, "shared memory", put("got [], expected [1.0]", "dataloader")),
    ("network", "cpu", {"network"}, "looks for the network", put(["socket.connect 192.0.2.1"], "connections")),
    ("cpu kernel", "cpu", {"device"}, "kernel", put("AssertionError: not close", "device", "cpu", "kernel")),
    ("cuda kernel", "cuda", {"device"}, "Test GPU", put("RuntimeError: no kernel image", "device", "cuda", "kernel")),
    ("a label lies", "docker:cpu", {"labels"}, "lies", put("2.0.0", "image", "labels", "labrig.torch")),
    ("a label missing", "docker:cuda", {"labels"}, "lies", lambda f: f["image"]["labels"].pop("labrig.cuda")),
    ("tag of another torch", "docker:cpu", {"labels"}, "lies", put(["labrig/cpu:1.0-0", "x:1"], "image", "tags")),
    ("no tag", "docker:cpu", {"labels"}, "lies", put([], "image", "tags")),
    ("another lock", "docker:cpu", {"lock"}, "another lock", put("f" * 64, "image", "labels", "labrig.lock")),
    ("root", "docker:cpu", {"user"}, "as root", lambda f: (put("0:0", "image", "user")(f), be_root(f))),
    ("no user named", "docker:cpu", {"user"}, "as root", put("", "image", "user")),
    ("another's home", "docker:cpu", {"home"}, "writing there", put(0, "user", "home_uid")),
    ("home not writable", "docker:cpu", {"home"}, "Permission", put("PermissionError: no", "user", "home_writable")),
    ("home elsewhere", "docker:cpu", {"home"}, "writing there", put("/", "user", "home")),
    ("small shm", "docker:cpu", {"shm"}, "--shm-size", put(64 << 20, "shm", "bytes")),
    ("workers out of shm", "docker:cpu", {"shm"}, "Bus error", put("killed by signal: Bus error", "shm", "workers")),
    ("lab differs", "docker:cpu", {"labs"}, "build the image", put("c" * 64, "labs", "01_tensors.py")),
    ("lab missing", "docker:cpu", {"labs"}, "build the image", lambda f: f["labs"].pop("data/digits.csv")),
    ("lab too many", "docker:cpu", {"labs"}, "build the image", put("c" * 64, "labs", "99_old.py")),
    ("open folder", "docker:cpu", {"rights"}, "could change", put(["/opt/x"], "system", "open")),
    ("setuid", "docker:cpu", {"rights"}, "another user", put(["/usr/bin/su"], "system", "privileged")),
    ("pip's cache", "docker:cpu", {"leftovers"}, "pulls that", put(["/root/.cache/pip/x (a cache)"], "system", "left")),
    (
        "CUDA in a CPU image",
        "docker:cpu",
        {"cuda-stack"},
        "wrong one",
        put(["/usr/lib/libcudart.so.12"], "system", "cuda"),
    ),
    (
        "second CUDA",
        "docker:cuda",
        {"cuda-stack"},
        "wrong one",
        lambda f: f["system"]["cuda"].append("/usr/local/cuda/lib64/libcudart.so.13"),
    ),
    (
        "two majors",
        "docker:cuda",
        {"cuda-stack"},
        "wrong one",
        lambda f: f["system"]["cuda"].append("/opt/venv/lib/python3/site-packages/nvidia/cu12/lib/libcudart.so.12"),
    ),
    ("no CUDA", "docker:cuda", {"cuda-stack"}, "not there", put([], "system", "cuda")),
    (
        "kernel shut in",
        "docker:cpu",
        {"confined"},
        "open container",
        put("OSError: read-only", "confined", "device", "cpu", "kernel"),
    ),
    ("workers shut in", "docker:cpu", {"confined"}, "open container", put("OSError", "confined", "dataloader")),
    (
        "not shut in",
        "docker:cpu",
        {"confined"},
        "nothing is proven",
        put(["eth0", "lo"], "confined", "confinement", "interfaces"),
    ),
    (
        "root could write",
        "docker:cpu",
        {"confined"},
        "nothing is proven",
        put(False, "confined", "confinement", "read_only"),
    ),
    (
        "capabilities",
        "docker:cpu",
        {"confined"},
        "nothing is proven",
        put(1, "confined", "confinement", "capabilities"),
    ),
    (
        "privileges",
        "docker:cpu",
        {"confined"},
        "nothing is proven",
        put(False, "confined", "confinement", "no_new_privileges"),
    ),
    ("mps kernel", "mps", {"device"}, "Apple M2", put("AssertionError: not close", "device", "mps", "kernel")),
    ("float64 on mps", "mps", {"float64"}, "has changed", put("a tensor of torch.float64", "mps", "float64")),
]


@pytest.mark.parametrize(
    ("name", "tripped", "says", "change"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_what_is_wrong_fails_its_check_and_no_other(name: str, tripped: set[str], says: str, change: Mutation) -> None:
    e = expect(name)
    facts = good(e)
    before = copy.deepcopy(facts)
    change(facts)
    assert facts != before
    outcomes = judge(e, facts)
    assert ended(outcomes, FAILED) == tripped
    for id in tripped:
        assert says in outcomes[id].reason
        assert outcomes[id].found != outcomes[id].expected
    assert ended(outcomes, PASSED) == {check.id for check in checks.CHECKS} - tripped - ended(outcomes, NOT_APPLICABLE)


def test_every_check_has_a_fact_that_fails_it() -> None:
    assert set().union(*(tripped for _, _, tripped, _, _ in MUTATIONS)) == {check.id for check in checks.CHECKS}


def test_a_cpu_environment_under_a_cuda_row_is_caught_thrice_and_by_its_packages() -> None:
    cuda, cpu = expect("cuda"), expect("cpu")
    facts = good(cpu)
    facts["python"]["minor"] = cuda.target.python
    facts["packages"] = good(cuda)["packages"]
    outcomes = judge(cuda, facts)
    assert ended(outcomes, FAILED) == {"torch", "cuda", "archs"}
    assert ended(outcomes, SKIPPED) == {"device"}
    facts["packages"] = good(cpu)["packages"]
    assert "packages" in ended(judge(cuda, facts), FAILED)


def test_a_folder_that_could_not_be_read_leaves_nothing_proven() -> None:
    e = expect("docker:cpu")
    facts = good(e)
    facts["system"]["unread"] = ["/root: Permission denied"]
    outcomes = judge(e, facts)
    assert ended(outcomes, FAILED) == {"rights", "leftovers", "cuda-stack"}
    assert "/root" in outcomes["rights"].found


def test_the_bootstrap_set_may_stand_and_its_absence_too() -> None:
    e = expect("cpu")
    facts = good(e)
    unlocked = checks.BOOTSTRAP - set(facts["packages"])
    assert unlocked
    facts["packages"] |= dict.fromkeys(unlocked, "1.0")
    assert ended(judge(e, facts), FAILED) == set()


def test_versions_are_compared_as_versions() -> None:
    e = expect("cpu")
    wheel = e.lock.wheels[0]
    longer = dataclasses.replace(
        e, lock=dataclasses.replace(e.lock, wheels=(dataclasses.replace(wheel, version="1.0"),))
    )
    facts = good(e) | {"packages": {wheel.name: "1.0.0"}}
    assert ended(judge(longer, facts), FAILED) == set()


@pytest.mark.parametrize("name", ["cuda", "cuda-legacy", "mps"])
def test_an_absent_device_is_a_skip_with_its_reason_and_a_failure_where_it_is_required(name: str) -> None:
    e = expect(name)
    facts = good(e, present=False)
    outcomes = judge(e, facts)
    told = {"device", "float64"} if e.target.device == "mps" else {"device"}
    assert ended(outcomes, SKIPPED) == told
    assert ended(outcomes, FAILED) == set()
    assert f"no {e.target.device} device" in outcomes["device"].reason

    required = judge(dataclasses.replace(e, require_device=True), facts)
    assert ended(required, FAILED) == {"device"}
    assert ended(required, SKIPPED) == told - {"device"}
    assert "--require-device" in required["device"].reason


def test_a_required_device_that_computes_passes() -> None:
    e = expect("cuda", require_device=True)
    assert judge(e, good(e))["device"] == Outcome(PASSED, "cuda, one kernel and its gradient as on the CPU", "Test GPU")


def test_architectures_that_no_table_knows_are_skipped_not_passed() -> None:
    e = expect("cuda")
    unknown = dataclasses.replace(e, target=dataclasses.replace(e.target, archs={}))
    assert ended(judge(unknown, good(unknown)), SKIPPED) == {"archs"}


READS = {
    "python": {"python"},
    "packages": {"packages", "extra"},
    "torch": {"torch", "cuda", "archs"},
    "device": {"device"},
    "libraries": {"libraries"},
    "files": {"files"},
    "dataloader": {"dataloader"},
    "connections": {"network"},
    "image": {"labels", "lock", "user"},
    "user": {"user", "home"},
    "shm": {"shm"},
    "labs": {"labs"},
    "system": {"rights", "leftovers", "cuda-stack"},
    "confined": {"confined"},
}


@pytest.mark.parametrize("fact", READS)
def test_a_fact_that_could_not_be_read_fails_its_checks_with_the_probes_reason(fact: str) -> None:
    e = expect("docker:cpu")
    outcomes = judge(e, good(e) | {fact: {"error": "OSError: too short"}})
    assert ended(outcomes, FAILED) == READS[fact]
    assert all("OSError: too short" in outcomes[id].reason for id in READS[fact])

    silent = good(e)
    del silent[fact]
    outcomes = judge(e, silent)
    assert ended(outcomes, FAILED) == READS[fact]
    assert all("said nothing of" in outcomes[id].reason for id in READS[fact])


def test_a_probe_that_did_not_run_fails_everything_with_its_reason() -> None:
    for engine in ("docker", "conda"):
        outcomes = judge(expect(f"{engine}:cuda"), {"error": "exit code 127"})
        failed = ended(outcomes, FAILED)
        assert failed == {check.id for check in checks.CHECKS if check.applies(engine, checks.LINUX[0])}
        assert all("exit code 127" in outcomes[id].reason for id in failed)


def test_not_applicable_is_neither_pass_nor_skip_and_says_for_whom_the_check_is() -> None:
    e = expect("cpu")
    outcomes = judge(e, good(e))
    only = {check.id for check in checks.CHECKS if not check.applies("venv", checks.LINUX[0])}
    assert "float64" in only
    assert ended(outcomes, NOT_APPLICABLE) == only
    assert ended(outcomes, FAILED) == ended(outcomes, SKIPPED) == set()
    assert "docker" in outcomes["labels"].reason
    assert "conda" in outcomes["channel"].reason


def test_a_mirror_of_the_channel_and_platforms_behind_it_are_the_channel() -> None:
    e = expect("conda:cpu")
    facts = good(e)
    facts["listed"][0]["channel"] = "https://mirror.example/proxy/conda-forge/linux-64"
    facts["listed"][1]["channel"] = "conda-forge/noarch"
    assert ended(judge(e, facts), FAILED) == set()


# --- Macs -------------------------------------------------------------------------------------------------------------


def on(mac: Facts, **changes: Any) -> dict[str, Outcome]:
    """What the checks of the target mps say there, all else being well."""
    e = dataclasses.replace(expect("mps"), **changes)
    return judge(e, good(e) | copy.deepcopy(mac))


@pytest.mark.parametrize("mac", [macs.MAC, macs.OVER_SSH_AND_IT_COMPUTES], ids=["at the screen", "over ssh"])
def test_a_mac_whose_metal_computes_passes_wherever_it_is_reached_from(
    mac: Facts, record_property: Callable[[str, object], None]
) -> None:
    outcomes = on(mac, require_device=True)
    assert ended(outcomes, FAILED) == ended(outcomes, SKIPPED) == set()
    assert outcomes["device"].found == "Apple M2"
    assert outcomes["float64"].found == macs.REFUSED
    record_property("proves", "mps venv facts")


def test_a_virtual_mac_that_allocates_nothing_fails_with_the_reason_and_the_way_out() -> None:
    outcomes = on(macs.VIRTUAL_THAT_ALLOCATES_NOTHING)
    assert ended(outcomes, FAILED) == {"device"}
    assert outcomes["device"].found == macs.NO_MEMORY
    for word in ("Apple M1 (Virtual)", "virtual machine", "actions/runner-images#9918", "--device=cpu"):
        assert word in outcomes["device"].reason
    assert "virtual machine" not in on(macs.present("Apple M2", kernel=macs.NO_MEMORY))["device"].reason


FLOOR = TABLE.pick("mps").macos
ABSENT = {
    "too old": (macs.TOO_OLD, [f"macOS 13.6.7 is older than {FLOOR}", "update macOS"]),
    "virtual": (macs.VIRTUAL_WITHOUT_METAL, ["virtual machine", "actions/runner-images#9918", "on the Mac itself"]),
    "over ssh": (macs.OVER_SSH_WITHOUT_METAL, ["over ssh", "huggingface/candle#3449", "log in at the Mac's screen"]),
    "sandboxed": (macs.SANDBOXED, ["no Metal device", "pytorch/pytorch#177819", "Terminal"]),
    "of no version": (macs.OF_NO_VERSION, ["no Metal device"]),
    "built without MPS": (macs.BUILT_WITHOUT_MPS, ["built without MPS", "invoke clean --target=mps"]),
}


@pytest.mark.parametrize(("mac", "words"), ABSENT.values(), ids=ABSENT)
def test_an_absent_mps_is_told_with_its_own_reason_and_fix(mac: Facts, words: list[str]) -> None:
    outcomes = on(mac)
    assert ended(outcomes, SKIPPED) == {"device", "float64"}
    assert ended(outcomes, FAILED) == set()
    required = on(mac, require_device=True)
    assert ended(required, FAILED) == {"device"}
    for outcome in (outcomes["device"], outcomes["float64"], required["device"]):
        assert all(word in outcome.reason for word in words), outcome
    others = [one for key, (_, own) in ABSENT.items() if key != "of no version" for one in own[:1] if own != words]
    assert not any(word in outcomes["device"].reason for word in others if word not in words)


@pytest.mark.parametrize("mac", [macs.FLOAT64_ACCEPTED, macs.FLOAT64_FAILED_OTHERWISE])
def test_what_mps_lacks_is_checked_and_not_assumed(mac: Facts) -> None:
    outcomes = on(mac)
    assert ended(outcomes, FAILED) == {"float64"}
    assert outcomes["float64"].found == mac["mps"]["float64"]
    assert "lab.fallback" in outcomes["float64"].reason


def test_a_mac_of_which_the_probe_could_not_read_mps_passes_nothing_by_it() -> None:
    broken = {"error": "AttributeError: no mps"}
    assert ended(on({**macs.MAC, "mps": broken}), FAILED) == {"float64"}
    assert ended(on({**macs.SANDBOXED, "mps": broken}), FAILED) == {"device", "float64"}
