"""Machines in words and rooms in files: what is understood, what is assumed, and nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrig import description, inventory, matrix
from labrig.description import parse
from labrig.errors import UsageError
from labrig.host import Gpu, from_json


def test_words_and_pairs() -> None:
    host = parse("linux x86_64 driver=550.54.14 gpu=6.1 python=3.12").host
    assert (host.os, host.arch, host.driver, host.python) == ("linux", "x86_64", "550.54.14", "3.12")
    assert [gpu.capability for gpu in host.gpus] == ["6.1"]
    mac = parse("darwin arm64 macos=14.5").host
    assert (mac.os, mac.arch, mac.os_version, mac.platform) == ("macos", "arm64", "14.5", "macos_arm64")
    assert parse("wsl2 x86_64 driver=566.36 gpu=8.9").host.wsl
    assert parse("windows amd64").host.platform == "windows_amd64"
    assert parse("linux arm64").host.platform == "linux_aarch64"
    assert parse("linux libc=musl").host.libc == "musl"
    assert parse("darwin x86_64 macos=13.6").host.arch == "x86_64"
    flags = parse("darwin vm ssh rosetta").host
    assert flags.virtual and flags.remote and flags.translated
    assert parse("linux aarch64 no-lse").host.lse is False
    assert parse("linux docker=none").host.docker is None
    assert parse("linux docker=26.1").host.docker == "26.1"


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        ("linux gpu=6.1,8.9", ["6.1", "8.9"]),
        ("linux gpu=6.1 gpu=8.9", ["6.1", "8.9"]),
        ("linux gpu=GTX 1080 Ti driver=580", ["6.1"]),
        ('linux gpu="Tesla V100-SXM2-32GB"', ["7.0"]),
        ("gpu='NVIDIA GeForce RTX 5090' linux", ["12.0"]),
    ],
)
def test_gpus_are_said_by_capability_or_by_name(text: str, cards: list[str]) -> None:
    assert [gpu.capability for gpu in parse(text).host.gpus] == cards


@pytest.mark.parametrize("gpu", matrix.gpus(), ids=lambda gpu: gpu.capability)
def test_every_card_of_the_tables_is_a_machine_by_its_name_alone(gpu: matrix.Gpu) -> None:
    for card in gpu.cards:
        for name in (
            card,
            card.lower(),
            card.upper(),
            f"NVIDIA {card}",
            f"NVIDIA GeForce {card}",
            card.replace(" ", ""),
        ):
            found = parse(name)
            assert found.host.gpus == (Gpu(card, gpu.capability),), name
            assert found.host.platform in ("linux_x86_64", "linux_aarch64")
            if gpu.driver_last == "JetPack":
                assert found.assumed == () and found.host.driver is None and found.host.libc is None
                continue
            assert any(word.startswith("driver ") for word in found.assumed)
            if gpu.driver_last and gpu.driver_last.startswith("R"):
                assert found.host.driver == gpu.driver_last[1:], "never a driver that no longer knows the card"


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA GeForce GTX 1660 SUPER", "GTX 1660"),
        ("GeForce RTX 4070 Ti SUPER", "RTX 4070"),
        ("1080", None),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "RTX 3060"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("RTX 9999", None),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla T4", "T4"),
        ("Tesla P100-PCIE-16GB", "Tesla P100"),
        ("NVIDIA GeForce GTX 1060 6GB", "GTX 1060"),
        ("TITAN X (Pascal)", "TITAN X (Pascal)"),
        ("Quadro RTX 6000", "Quadro RTX 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("NVIDIA GB10", "GB10"),
        ("Quadro P2000", "Quadro P2000"),
        ("NVIDIA RTX 2000 Ada Generation", "RTX 2000 Ada"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("GeForce GTX 980M", "GTX 980M"),
        ("GRID T4-4Q", "T4"),
        ("NVIDIA GeForce GTX TITAN X", "GTX TITAN X"),
        ("NVIDIA TITAN X (Pascal)", "TITAN X (Pascal)"),
        ("NVIDIA TITAN Xp", "TITAN Xp"),
        ("", None),
    ],
)
def test_names_as_drivers_print_them(name: str, card: str | None) -> None:
    found = matrix.find_card(name)
    assert (found[0] if found else None) == card


def test_chips() -> None:
    for name, chip in (("M2", "Apple M2"), ("m1 pro", "Apple M1 Pro"), ("Apple M4 Max", "Apple M4 Max")):
        found = parse(name)
        assert (found.host.chip, found.host.os, found.host.found_by) == (chip, "macos", "description")
        assert found.assumed == (f"macOS {description.NEWEST_MACOS}, which every Apple silicon Mac can run",)
        assert not found.host.docker_error or "describ" in found.host.docker_error


def test_what_is_left_out_is_assumed_and_said() -> None:
    found = parse("gpu=8.6")
    assert found.host.driver == matrix.newest_driver()
    assert [word.split()[0] for word in found.assumed] == ["Linux", "x86_64", "glibc", "driver"]
    assert parse("linux x86_64 gpu=8.6 driver=none").host.driver is None
    assert parse("linux x86_64 glibc=2.31 driver=580 gpu=8.6").assumed == ()
    mixed = parse("linux gpu=6.1,8.9")
    assert mixed.host.driver == matrix.newest_driver(), "only if all cards end there is a driver taken for granted"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "describes no machine"),
        ("   ", "describes no machine"),
        ("x" * 501, "describes no machine"),
        ("linux\x00", "describes no machine"),
        ("linux foo", "does not understand 'foo'"),
        ("RTX 5091", "RTX 5090"),
        ("GTX 1O80", "GTX 1080"),
        ("linux drivr=550", "driver="),
        ("linux windows", "two of a kind"),
        ("linux x86_64 aarch64", "two of a kind"),
        ("linux driver=R580", "driver= is wrong"),
        ("linux driver=", "driver= is wrong"),
        ("linux gpu=8", "knows no card"),
        ("linux gpu=RTX 5091", "RTX 5090"),
        ("linux python=2.7", "python= is wrong"),
        ("linux python=3.12 python=3.13", "says python= twice"),
        ("linux macos=14", "macos= is for macos"),
        ("darwin glibc=2.36", "glibc= is for linux"),
        ("darwin gpu=8.6", "no NVIDIA GPU"),
        ("darwin container", "is for linux"),
        ("linux vm", "vm is for macos"),
        ("linux glibc=2.36 libc=musl", "two C libraries"),
        ("driver=1.2.3.4.5.6", "driver= is wrong"),
    ],
)
def test_nonsense_is_named_with_what_would_do(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    told = str(error.value)
    assert says in told and error.value.fix
    assert len(told) < 1500


WORDS = st.sampled_from(
    [
        "linux",
        "darwin",
        "windows",
        "wsl2",
        "x86_64",
        "arm64",
        "container",
        "vm",
        "ssh",
        "driver=580",
        "driver=",
        "gpu=8.6",
        "gpu=6.1,",
        "gpu=GTX",
        "1080",
        "Ti",
        "python=3.13t",
        "macos=15",
        "glibc=2.17",
        "libc=musl",
        "chip=M3",
        "M2",
        "=",
        "a=b",
        "gpu='",
        '"',
        "docker=yes",
        "\N{SNOWMAN}",
        "gpu=99.9",
        "driver=none",
        "no-lse",
        "T4",
    ]
)


@given(st.one_of(st.text(max_size=80), st.lists(WORDS, max_size=8).map(" ".join)))
def test_any_text_is_a_machine_or_a_usage_error(text: str) -> None:
    try:
        found = parse(text)
    except UsageError as error:
        assert error.fix
        return
    again = from_json(json.loads(json.dumps(found.host.to_json())), "again")
    assert again.to_json() | {"found_by": ""} == found.host.to_json() | {"found_by": ""}


# --- rooms ------------------------------------------------------------------------------------------------------------

ROOM = """
[[host]]
name = "pc01"
machine = "linux x86_64 driver=550.54.14 gpu=8.6"
target = "cuda"
room = "E1.07"

[[host]]
name = "pc02"
machine = "GTX 1080"
notes = "old"
"""


def test_a_room(tmp_path: Path) -> None:
    file = tmp_path / "room.toml"
    file.write_text(ROOM)
    first, second = inventory.read(file).hosts
    assert (first.name, first.target, first.room) == ("pc01", "cuda", "E1.07")
    assert (second.name, second.target, inventory.described(second).host.gpus[0].capability) == (
        "pc02",
        inventory.AUTO,
        "6.1",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no machines"),
        ("[[host]]\nname = ", "not valid TOML"),
        ("host = 3", "has no machines"),
        ("x = 1", "unknown key 'x'"),
        (ROOM.replace("pc02", "pc01"), "line 9: [[host]] 2 (pc01): a second host 'pc01'"),
        (ROOM.replace('"E1.07"', "107"), "room is wrong"),
        (ROOM.replace("notes", "note"), "line 11: [[host]] 2 (pc02): unknown key 'note'"),
        (ROOM.replace("GTX 1080", "GTX 108O"), "GTX 1080"),
        (ROOM.replace("pc01", "pc 01"), "name is wrong"),
        ('[[host]]\nname = "a"', "neither address nor machine"),
        ("[host]\na = 1", "has no machines"),
        ("[[host]]\nmachine = 'T4'", "no name"),
        ("\xff", "not valid TOML"),
        ("a = " + "[" * 2000, "not valid TOML"),
    ],
)
def test_a_wrong_room_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "room.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as error:
        inventory.read(file)
    assert says in str(error.value), str(error.value)
    assert error.value.fix


def test_an_absent_room_and_too_large_a_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the inventory"):
        inventory.read(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="cannot read the inventory"):
        inventory.read(tmp_path)
    host = {"name": "a", "machine": "T4"}
    with pytest.raises(UsageError, match="too many machines"):
        inventory.parse({"host": [host] * (inventory.MAX_HOSTS + 1)}, "room.toml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
HOSTS = st.dictionaries(st.sampled_from([*inventory.KEYS, "other"]), VALUES | WORDS, max_size=5)


@given(st.one_of(VALUES, st.lists(HOSTS | VALUES, max_size=3).map(lambda hosts: {"host": hosts})))
def test_any_inventory_is_a_room_or_a_usage_error(data: Any) -> None:
    if not isinstance(data, dict):
        data = {"host": data}
    try:
        entries = inventory.parse(data, "room.toml")
    except UsageError as error:
        assert error.fix
        return
    assert len(entries) == len(data["host"])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_room_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(data)
    with pytest.raises(UsageError):
        inventory.read(file)
