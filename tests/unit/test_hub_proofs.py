"""What is looked at before a hub starts, without an engine: certificates, logins, GPUs, images, what is rendered."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fcntl
import grp
import json
import os
import pwd
import re
import socket
import sqlite3
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certificates
import pytest

from labrig import secret, server_native, spec
from labrig.errors import BuildError, HostError, UsageError
from labrig.host import Gpu, Host
from labrig.serving import Offer, configuration, hub, keeper, logins, proofs, settings, state

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC) + timedelta(hours=1)  # the certificates are made after this line
CPU = Offer(
    "cpu", f"registry.example.org/lab/cpu@sha256:{'0' * 64}", f"sha256:{'2' * 64}", "labrig/cpu:1", 1, "linux_x86_64",
    "2.13.0", "cpu", "cpu", "", (), "6.1.1", "for anybody",
)  # fmt: skip
CUDA = replace(CPU, target="cuda", device="cuda", config=f"sha256:{'3' * 64}", image="labrig/cuda:1")
NOTE = state.Note("http://127.0.0.1:8000/", "127.0.0.1", 8000, "172.18.0.1", 8081, "/bin/proxy", "", "", "", "", "")
TARGETS = spec.read(ROOT / "images" / spec.TABLE).targets
GPU = Gpu("NVIDIA A2", "8.6")


def written(folder: Path, text: str) -> settings.Settings:
    file = folder / "serve.toml"
    file.write_text(text)
    return settings.read(file)


# --- the certificate ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """leaf.crt and leaf.key for three names; other.key; old.crt; locked.key; leaf.der."""
    folder = tmp_path_factory.mktemp("certificate")
    certificates.make(folder, "DNS:lab.example.edu,DNS:*.room.example.edu,IP:127.0.0.1")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30, cwd=folder)

    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "other.key")
    openssl("pkey", "-in", "leaf.key", "-aes256", "-passout", "pass:geheim", "-out", "locked.key")
    openssl("x509", "-in", "leaf.crt", "-outform", "der", "-out", "leaf.der")
    openssl("x509", "-req", "-in", "leaf.csr", "-signkey", "leaf.key", "-days", "2", "-out", "nameless.crt")
    return folder


def examined(
    made: Path, folder: Path, certificate: str = "leaf.crt", key: str = "leaf.key", name: str = "lab.example.edu",
    now: datetime = NOW,
) -> list[str]:  # fmt: skip
    text = f'[hub]\nname = "{name}"\ncertificate = "{made / certificate}"\nkey = "{made / key}"\n'
    return list(proofs.require_certificate(written(folder, text), now))


@pytest.mark.parametrize("name", ["lab.example.edu", "LAB.example.edu", "pc7.room.example.edu", "127.0.0.1"])
def test_a_certificate_for_the_name_is_taken_and_its_near_end_is_said(made: Path, tmp_path: Path, name: str) -> None:
    [line] = examined(made, tmp_path, name=name)
    assert "the certificate ends on" in line


@pytest.mark.parametrize(
    ("changed", "line", "words"),
    [
        ({"certificate": "none.crt"}, 3, "cannot be read"),
        ({"certificate": "."}, 3, "cannot be read"),
        ({"certificate": "leaf.der"}, 3, "no certificate in PEM"),
        ({"certificate": "leaf.key"}, 3, "no certificate in PEM"),
        ({"key": "none.key"}, 4, "cannot be read"),
        ({"key": "leaf.crt"}, 4, "no private key in PEM"),
        ({"key": "locked.key"}, 4, "needs a pass phrase"),
        ({"key": "other.key"}, 4, "the key of another certificate"),
        ({"now": NOW + timedelta(days=3)}, 3, "not valid today"),
        ({"now": NOW - timedelta(days=3)}, 3, "not valid today"),
        ({"name": "other.example.edu"}, 2, "not for other.example.edu"),
        ({"name": "a.b.room.example.edu"}, 2, "not for a.b.room.example.edu"),
        ({"name": "room.example.edu"}, 2, "not for room.example.edu"),
        ({"name": "127.0.0.2"}, 2, "not for 127.0.0.2"),
        ({"certificate": "nameless.crt"}, 2, "no name at all"),
    ],
)
def test_a_wrong_certificate_is_named_by_its_line(
    made: Path, tmp_path: Path, changed: dict[str, Any], line: int, words: str
) -> None:
    with pytest.raises(UsageError) as error:
        examined(made, tmp_path, **changed)
    assert str(error.value).startswith(f"serve.toml, line {line}: [hub]")
    assert words in str(error.value) and error.value.fix


@pytest.mark.parametrize(("name", "wrong"), [("room.example.edu", "room.example.edu"), ("lab.example.edu", "*.lab")])
def test_hosts_of_students_need_a_certificate_for_the_name_and_below(
    made: Path, tmp_path: Path, name: str, wrong: str
) -> None:
    files = f'certificate = "{made / "leaf.crt"}"\nkey = "{made / "leaf.key"}"\n'
    told = written(tmp_path, f'[hub]\nname = "{name}"\nsubdomains = true\n{files}')
    with pytest.raises(UsageError, match=re.escape(f"the certificate is not for {wrong}")):
        list(proofs.require_certificate(told, NOW))
    certificates.make(tmp_path, f"DNS:{name},DNS:*.{name}")
    files = f'certificate = "{tmp_path / "leaf.crt"}"\nkey = "{tmp_path / "leaf.key"}"\n'
    told = written(tmp_path, f'[hub]\nname = "{name}"\nsubdomains = true\n{files}')
    assert len(list(proofs.require_certificate(told, NOW))) == 1
    note = replace(NOTE, url=settings.url(told.hub), certificate="/c.pem", key="/k.pem", subdomains=True)
    assert f"c.JupyterHub.subdomain_host = 'https://{name}:8000'" in rendered(told, note)
    assert "--host-routing" in keeper.children(note, tmp_path)[0].command
    assert "--host-routing" not in keeper.children(NOTE, tmp_path)[0].command and "subdomain" not in rendered(told)


@pytest.mark.parametrize("more", ["", 'name = "lab.example.edu"', 'certificate = "/c"\nkey = "/k"',
                                  'name = "10.0.0.1"\ncertificate = "/c"\nkey = "/k"'])  # fmt: skip
def test_hosts_of_students_need_a_name_and_tls(tmp_path: Path, more: str) -> None:
    with pytest.raises(UsageError, match=r"line 2: \[hub\]: students' hosts need a name"):
        written(tmp_path, f"[hub]\nsubdomains = true\n{more}\n")


# --- images and GPUs ----------------------------------------------------------------------------------------------


class Engine:
    """An engine that knows images by what is asked for: the SDK's own call and its own error."""

    def __init__(self, **images: str) -> None:
        self.known = images
        self.images = self

    def get(self, name: str) -> SimpleNamespace:
        from docker.errors import ImageNotFound

        for known, identity in self.known.items():
            if name in (f"labrig/{known}:1", identity):
                return SimpleNamespace(id=identity)
        raise ImageNotFound(name)


def found(engine: Engine, *offers: Offer, named: tuple[str, ...] = (), host: Host | None = None) -> Any:
    told = settings.Settings(targets=named)
    rows = {**TARGETS, "other": TARGETS["cpu"]}
    return proofs.find_images(engine, offers, told, host or Host(os="linux", arch="x86_64"), rows)  # type: ignore[arg-type]


def machine(driver: str, *gpus: Gpu) -> Host:
    return Host(os="linux", arch="x86_64", libc="glibc 2.36", docker="28.2.2", driver=driver, gpus=gpus)


def test_an_image_is_offered_by_the_identity_that_the_engine_has_and_others_are_said() -> None:
    kept, said = found(Engine(cpu=CPU.config), CPU, CUDA, host=machine("580.65.06", GPU))
    assert kept == {CPU: CPU.config}
    assert said == ["cuda is not offered: its image is not in the engine (invoke pull --target=cuda)"]


def test_an_engine_that_knows_images_by_their_manifest() -> None:
    digest = CPU.reference.partition("@")[2]
    assert found(Engine(cpu=digest), CPU)[0] == {CPU: digest}


def test_another_image_of_the_same_name_is_not_the_published_one() -> None:
    with pytest.raises(HostError, match="no image that students could be given") as error:
        found(Engine(cpu=f"sha256:{'9' * 64}"), CPU)
    assert "invoke pull --target=cpu" in error.value.fix


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        (replace(CPU, hub=""), "no jupyterhub is in its image"),
        (replace(CPU, hub="5.4.0"), "its image has jupyterhub 5.4.0, this hub is 6"),
        (CUDA, "it needs a GPU, and this machine has none"),
    ],
)
def test_an_image_that_no_server_could_be_of_is_not_offered_and_an_error_where_it_is_named(
    offer: Offer, words: str
) -> None:
    engine = Engine(cpu=offer.config, cuda=offer.config, other=f"sha256:{'4' * 64}")
    other = replace(CPU, target="other", config=f"sha256:{'4' * 64}", image="labrig/other:1")
    kept, said = found(engine, offer, other)
    assert list(kept) == [other] and words in said[0]
    with pytest.raises(HostError) as error:
        found(engine, offer, other, named=(offer.target, "other"))
    assert words in str(error.value) and error.value.fix


def test_gpus_that_the_engine_does_not_hand_out() -> None:
    host = Host(os="linux", arch="x86_64", gpus=(GPU,), docker_gpus=False)
    with pytest.raises(HostError, match="the engine hands none out"):
        found(Engine(cuda=CUDA.config), CUDA, host=host)


OLD, NEW = Gpu("NVIDIA GeForce GTX 1080", "6.1"), Gpu("NVIDIA T4", "7.5")


@pytest.mark.parametrize(
    ("host", "ids", "words"),
    [
        (machine("580.65.06", OLD, NEW, GPU), ("1", "2"), ""),
        (machine("580.65.06", NEW), ("0",), ""),
        (machine("580.65.06", OLD), (), "has no code for it"),
        (machine("470.82.01", NEW), (), "is older than"),
        (machine("580.65.06", Gpu("Some card")), (), "does not tell its compute capability"),
    ],
)
def test_a_target_is_offered_on_the_gpus_that_it_runs_on(host: Host, ids: tuple[str, ...], words: str) -> None:
    assert proofs.cards(TARGETS["cuda"], host) == ids
    kept, said = found(Engine(cpu=CPU.config, cuda=CUDA.config), CPU, CUDA, host=host)
    assert (CUDA in kept) == bool(ids) and all(words in one for one in said) and bool(said) == bool(words)
    text = configuration.text(settings.Settings(), {CUDA: CUDA.config}, {"cuda": ids}, NOTE, ROOT / "templates")
    assert f"gpus={ids!r}" in text


@pytest.mark.parametrize(
    ("gpus", "students", "words"),
    [(1, 24, "1 GPU for 24 students"), (4, 24, "so 20 of them"), (4, 0, "4 GPUs: one student's each"), (4, 4, "")],
)
def test_fewer_gpus_than_students_is_a_plain_word(gpus: int, students: int, words: str) -> None:
    said = list(proofs.about_gpus({CUDA: ""}, gpus, students))
    assert bool(said) == bool(words) and all(words in one for one in said)
    assert not list(proofs.about_gpus({CPU: ""}, gpus, students))


def test_what_is_overlooked_at_the_door_is_said() -> None:
    shared, pam = settings.Settings(), settings.Settings(login=settings.Login(authenticator=settings.PAM))
    assert "whoever knows it can come in under anybody's name" in " ".join(proofs.about_login(shared, 0))
    listed = settings.Settings(login=settings.Login(users=("ada",)))
    assert "whoever knows it can come in under any name of the list" in " ".join(proofs.about_login(listed, 0))
    assert "may prove nobody's password but their own" in " ".join(proofs.about_login(pam, 1000))
    assert ["every account of this machine" in one for one in proofs.about_login(pam, 0)] == [True]
    world = settings.Login(authenticator="oauthenticator.github.GitHubOAuthenticator", settings={"allow_all": True})
    assert "everybody whom the authenticator knows" in " ".join(proofs.about_login(settings.Settings(login=world), 0))
    for one in (replace(world, settings={"allowed_organizations": ["course"]}), replace(pam.login, users=("ada",))):
        assert not list(proofs.about_login(settings.Settings(login=one), 0))
    plain = replace(pam, hub=settings.Hub(plain=True))
    assert "unencrypted" in " ".join(proofs.about_login(plain, 0))


def test_a_metadata_service_is_looked_for_on_a_clouds_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        monkeypatch.setattr(proofs, "METADATA", service.getsockname())
        assert not list(proofs.about_metadata(tmp_path))
        (tmp_path / "sys_vendor").write_text("LENOVO\n")
        assert not list(proofs.about_metadata(tmp_path))
        (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
        assert "metadata service answers" in " ".join(proofs.about_metadata(tmp_path))
    assert not list(proofs.about_metadata(tmp_path))


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / state.DATABASE
    proofs.require_database(file)
    file.touch()
    proofs.require_database(file)
    with contextlib.closing(sqlite3.connect(file)) as made:
        made.execute("create table one (two)")
    proofs.require_database(file)
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(BuildError, match="the hub's database is damaged") as error:
        proofs.require_database(file)
    assert f"mv {file}" in error.value.fix


def test_a_port_that_is_taken_is_answered_with_one_free_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = written(tmp_path, f"[hub]\nport = {taken.getsockname()[1]}\n")
        with pytest.raises(UsageError, match="is taken") as error:
            proofs.require_port(told)
    first, second = re.findall(r"port (\d+) is free: port = (\d+) in", error.value.fix)[0]
    assert first == second


def test_a_disk_without_room(tmp_path: Path) -> None:
    proofs.require_room(tmp_path, 1, "a byte")
    with pytest.raises(BuildError, match="no room for more than there is"):
        proofs.require_room(tmp_path, 1 << 60, "more than there is")


# --- what is rendered ---------------------------------------------------------------------------------------------


def rendered(told: settings.Settings, note: state.Note = NOTE) -> str:
    return configuration.text(told, {CPU: CPU.config}, {}, note, ROOT / "templates")


def test_the_file_is_python_and_names_images_by_digest_only() -> None:
    text = rendered(settings.Settings())
    ast.parse(text)
    assert CPU.config in text
    assert CPU.image not in text and ":latest" not in text and "registry.example.org" not in text


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["c.Authenticator.allow_all = True", "--timeout=3600", "c.DockerSpawner.mem_limit = 2147483648"]),
        ("[student]\nidle = 0\n", []),
        ('[student]\nmemory = "1500M"\ncpu = 2\nshm = "512M"\nidle = 5\n',
         ["mem_limit = 1572864000", "cpu_limit = 2", '"shm_size": 536870912', "--timeout=300"]),
        ('[login]\nusers = ["grace", "ada"]\n',
         ["c.Authenticator.allow_all = False", "allowed_users = ['ada', 'grace']"]),
        ('[login]\nadmins = ["teacher"]\n',
         ["admin_users = ['teacher']", "SharedPasswordAuthenticator.admin_password"]),
        ('[login]\nauthenticator = "pam"\nadmins = ["teacher"]\n[login.settings]\nallowed_groups = ["course"]\n',
         ["Authenticator.allow_all = False", "Authenticator.allowed_users = ['teacher']"]),
        ('[login]\nusers = ["ada"]\n[login.settings]\nallow_all = false\nblocked_users = ["Bob"]\n',
         [".blocked_users = logins.removed(c, ", " | set(['bob'])"]),
        ('[login]\nauthenticator = "pam"\n[login.settings]\nservice = "login"\n',
         ["'jupyterhub.auth.PAMAuthenticator'", "c.PAMAuthenticator.service = logins.resolved('login', "]),
    ],
)  # fmt: skip
def test_what_serve_toml_says_stands_in_the_file(tmp_path: Path, text: str, lines: list[str]) -> None:
    made = rendered(written(tmp_path, text))
    ast.parse(made)
    for line in lines:
        assert line in made, line
    assert ("idle-culler" in made) == ("idle = 0" not in text)
    assert ("user_password" in made) == ("pam" not in text)


def test_a_reference_stays_one_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRIG_TEST_SECRET", "geheim-geheim")
    told = written(tmp_path, '[login]\npassword = "env:LABRIG_TEST_SECRET"\n')
    logins.prove(told)
    text = rendered(told)
    assert "env:LABRIG_TEST_SECRET" in text and "geheim" not in text
    assert logins.resolved({"a": ["env:LABRIG_TEST_SECRET", 1]}, "x") == {"a": ["geheim-geheim", 1]}


def executed(text: str) -> Any:
    """The configuration as a hub reads it."""
    from traitlets.config import Config

    made = Config()
    exec(text, {"get_config": lambda: made})  # noqa: S102 - it is ours
    return made


@pytest.mark.parametrize("login", ["user:geheim@", "geheim@", ""])
def test_a_private_proxys_password_is_neither_written_down_nor_given_to_students(
    login: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path))
    monkeypatch.setenv("LABRIG_PROXY", f"http://{login}proxy.example.org:3128")
    monkeypatch.chdir(tmp_path)  # it goes to its own folder
    state.secret_file(state.PASSWORD, 6)
    text = rendered(settings.Settings())
    given = executed(text).DockerSpawner.environment
    assert "geheim" not in text + str(given)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        assert given[name] == "http://proxy.example.org:3128"
    assert NOTE.hub_address in given["NO_PROXY"]
    said = " ".join(proofs.about_private_proxy())
    assert bool(said) == bool(login) and "geheim" not in said


# --- logins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trait",
    [
        "client_secret",
        "admin_password",
        "token",
        "api_key",
        "signing_keys",
        "client_secrets",
        "api_tokens",
        "consumers",
    ],
)
def test_a_trait_that_is_a_secret_has_to_be_a_reference(trait: str) -> None:
    assert list(secret.find_plain("geheim", trait)) == [trait]
    assert list(secret.find_plain({"moodle": "geheim"}, trait)) == [f"{trait}.moodle"]
    assert not list(secret.find_plain({"moodle": "env:MOODLE"}, trait))


@pytest.mark.parametrize(
    "trait", ["client_id", "token_url", "userdata_url", "password_rules_url", "service", "claim_groups_key"]
)
def test_a_trait_that_is_none_is_written_out(trait: str) -> None:
    assert not list(secret.find_plain("geheim", trait))


def test_a_misspelt_trait_is_named_with_what_is_near(tmp_path: Path) -> None:
    told = written(tmp_path, '[login]\nauthenticator = "pam"\n\n[login.settings]\nservise = "login"\n')
    with pytest.raises(UsageError) as error:
        logins.prove(told)
    assert str(error.value).startswith("serve.toml, line 5: [login.settings]: PAMAuthenticator has no trait 'servise'")
    assert "service" in error.value.found


def test_a_value_of_the_wrong_kind_is_not_shown(tmp_path: Path) -> None:
    told = written(tmp_path, '[login]\nauthenticator = "pam"\n[login.settings]\nopen_sessions = "geheim"\n')
    with pytest.raises(UsageError, match=r"line 4: .*open_sessions is wrong") as error:
        logins.prove(told)
    assert "geheim" not in str(error.value) and "boolean" in error.value.fix


NULL = '[login]\nauthenticator = "jupyterhub.auth.NullAuthenticator"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NULL, "line 2: [login]: nothing says who may come in"),
        (f'{NULL}admins = ["ada"]\n', "line 2: [login]: nothing says who may come in"),
        (f'{NULL}users = ["a"]\n[login.settings]\nallow_all = true\n', "line 5: .*everybody comes in, so users counts"),
        ('[login]\nauthenticator = "pam"\n[login.settings]\nallow_all = true\nallowed_groups = ["a"]\n',
         "line 4: .*everybody comes in, so allowed_groups counts"),
        (f'{NULL}users = ["a"]\n[login.settings]\nallowed_users = ["b"]\n', "line 5: .*who comes in stands in"),
        ('[login]\n[login.settings]\nadmin_users = ["b"]\n', "line 3: .*who comes in stands in"),
    ],
)  # fmt: skip
def test_a_class_is_told_who_comes_in_and_told_once(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("[", "\\[")) as error:
        logins.prove(written(tmp_path, text))
    assert error.value.fix


@pytest.mark.parametrize(
    "text", ['users = ["ada"]\n', "[login.settings]\nallow_all = true\n", "[login.settings]\nallow_all = false\n"]
)
def test_a_class_that_is_told_who_comes_in_is_taken(tmp_path: Path, text: str) -> None:
    logins.prove(written(tmp_path, NULL + text))


def test_an_authenticators_own_list_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The class as the file configures it, with groups of this machine; the password is taken as proven."""
    from jupyterhub.auth import PAMAuthenticator
    from traitlets.config import Config

    own = pwd.getpwuid(os.getuid())
    group = grp.getgrgid(own.pw_gid)
    outside = next(
        one.pw_name for one in pwd.getpwall() if one.pw_gid != own.pw_gid and one.pw_name not in group.gr_mem
    )
    told = written(
        tmp_path, f'[login]\nauthenticator = "pam"\n[login.settings]\nallowed_groups = ["{group.gr_name}"]\n'
    )
    logins.prove(told)
    made = Config()
    monkeypatch.setattr(os, "chdir", lambda _: None)  # into the hub's folder, which is not there
    exec(compile(rendered(told), "jupyterhub_config.py", "exec"), {"get_config": lambda: made})  # noqa: S102
    monkeypatch.setattr(PAMAuthenticator, "authenticate", lambda _self, _handler, data: data["username"])
    door = PAMAuthenticator(config=made)

    def come_in(name: str) -> Any:
        return asyncio.run(door.get_authenticated_user(None, {"username": name, "password": ""}))

    assert come_in(outside) is None
    assert come_in(own.pw_name)["name"] == own.pw_name


@pytest.mark.parametrize(
    ("given", "is_open"),
    [
        ({}, True),
        ({"allow_all": True, "allowed_idps": {"a": {}}}, True),
        ({"allow_all": False}, False),
        ({"allowed_groups": []}, False),
        ({"allow_existing_users": True}, True),
        ({"allowed_organizations": ["a"]}, False),
        ({"idps": {"a": {"allowed_domains": ["b"]}}}, False),
    ],
)
def test_only_where_nothing_says_otherwise_everybody_comes_in(given: dict[str, Any], is_open: bool) -> None:
    login = settings.Login(authenticator=settings.PAM, settings=given)
    assert login.is_open == is_open
    logins.require_list(settings.Settings(login=login))


def test_who_is_in_and_not_on_the_list_is_found_in_the_hubs_database(tmp_path: Path) -> None:
    from traitlets.config import Config

    given = {
        "JupyterHub": {"authenticator_class": logins.CLASSES["pam"]},
        "Authenticator": {"username_map": {"a": "ada"}},
    }
    file, hub = tmp_path / "a?b#c%41.sqlite", Config(given)
    assert logins.removed(hub, str(file), ["ada"]) == set()
    assert not file.exists()
    with contextlib.closing(sqlite3.connect(file)) as made:
        assert logins.removed(hub, str(file), ["ada"]) == set()
        made.execute("create table users (id integer primary key, name varchar)")
        made.executemany("insert into users (name) values (?)", [("ada",), ("grace",), ("teacher",)])
        made.commit()
    for names in (["ada", "teacher"], ["a", "teacher"]):
        assert logins.removed(hub, str(file), names) == {"grace"}
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError):  # and not nobody
        logins.removed(hub, str(file), ["ada"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ('users = ["b"]\nadmins = ["a"]\n', "PAMAuthenticator.blocked_users = {}, ['a', 'b']) | set([])"),
        ('users = ["b"]\n[login.settings]\nallowed_groups = ["c"]\n', ""),  # others are let in, whom no list names
        ('users = ["b"]\n[login.settings]\nblocked_users = ["d"]\n',
         "PAMAuthenticator.blocked_users = {}, ['b']) | set(['d'])"),
    ],
)  # fmt: skip
def test_a_list_of_users_puts_out_all_others(tmp_path: Path, text: str, line: str) -> None:
    made = rendered(written(tmp_path, f'[login]\nauthenticator = "pam"\n{text}'))
    wanted = line.replace("{}", f"logins.removed(c, {str(state.place() / state.DATABASE)!r}")
    assert wanted in made and ("logins.removed" in made) == bool(line)


# --- the keeper ---------------------------------------------------------------------------------------------------


def test_a_child_that_dies_is_started_later_and_later() -> None:
    child = keeper.Child("hub", ["true"], Path("/"))
    assert child.is_due(100.0)
    for deaths, wait in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0)):
        child.deaths = [100.0] * deaths
        assert not child.is_due(100.0 + wait - 0.01) and child.is_due(100.0 + wait)


def test_no_secret_is_on_a_command_line() -> None:
    note = replace(NOTE, certificate="/c.pem", key="/k.pem")
    proxy, hub = keeper.children(note, Path("/place"))
    words = " ".join([*proxy.command, *hub.command])
    assert not re.search(r"token|password|secret", words)
    assert "--ssl-cert /c.pem --ssl-key /k.pem" in words
    assert "--api-socket proxy-api " in words and "--api-port" not in words


def test_hubs_of_two_folders_share_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for folder in ("/a", "/b"):
        monkeypatch.setenv("LABRIG_CACHE", folder)
        names.append(state.name())
    assert len(set(names)) == 2


def test_a_damaged_note_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path))
    assert state.read() is None
    state.write(NOTE)
    assert state.read() == NOTE
    file = tmp_path / "hub" / state.NOTE
    file.write_text(json.dumps({**json.loads(file.read_text()), "api_port": 8001}))  # as an older labrig noted
    assert state.read() == NOTE
    file.write_text("[1]")
    with pytest.raises(BuildError, match="damaged"):
        state.read()
    file.write_text('{"url": 1}')
    with pytest.raises(BuildError, match="damaged"):
        state.read()
    state.write(replace(NOTE, port="8000"))  # type: ignore[arg-type]
    with pytest.raises(BuildError, match="port is '8000', which is no int"):
        state.read()


def test_an_empty_secret_is_made_anew_and_one_that_is_there_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path))
    file = state.secret_file(state.PASSWORD, 6)
    made = file.read_text()
    assert len(made) == 13 and state.secret_file(state.PASSWORD, 6).read_text() == made
    file.write_text("\n")
    assert len(state.secret_file(state.PASSWORD, 6).read_text()) == 13


@pytest.mark.parametrize(
    ("text", "files", "lines"),
    [
        ("", {"password"}, ["user_password"]),
        ('[login]\nadmins = ["ann"]\n', {"password", "admin-password"}, ["user_password", "admin_password"]),
        ('[login]\nadmins = ["ann"]\npassword = "env:A"\n', {"admin-password"}, ["env:A", "admin_password"]),
        ('[login]\nadmins = ["ann"]\n[login.settings]\nadmin_password = "env:B"\n', {"password"}, ["env:B"]),
        ('[login]\nauthenticator = "pam"\nadmins = ["ann"]\n', set(), []),
    ],
)
def test_only_passwords_that_are_used_are_made(tmp_path: Path, text: str, files: set[str], lines: list[str]) -> None:
    told = written(tmp_path, text)
    assert set(configuration.own_passwords(told)) == files
    made = rendered(told)
    assert ("/admin-password" in made) == ("admin-password" in files) and all(line in made for line in lines)
    assert ("/password" in made) == ("password" in files)


def test_a_folder_of_any_name_keeps_its_own_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sqlalchemy import create_engine, text

    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path / "a?b#c%41'{d}\"e f"))
    state.place().mkdir(parents=True)
    made = rendered(settings.Settings())
    url = re.findall(r"^c\.JupyterHub\.db_url = (.*)$", made, re.M)[0]
    engine = create_engine(ast.literal_eval(url))
    with engine.begin() as connection:
        connection.execute(text("create table one (two int)"))
    engine.dispose()
    proofs.require_database(state.place() / state.DATABASE)
    assert [file.name for file in state.place().iterdir()] == [state.DATABASE]


def test_a_log_that_is_too_large_begins_anew_and_who_follows_it_sees_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keeper, "LARGEST", 100)
    log = tmp_path / server_native.LOG
    with log.open("ab", buffering=0) as file, (tmp_path / server_native.ALIVE).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        file.write(b"a" * 100)
        keeper.rotate(log)
        assert log.stat().st_size == 100
        file.write(b"b")
        followed = server_native.logs("hub", tmp_path, follow=True)
        assert next(followed) == b"a" * 100 + b"b"
        keeper.rotate(log)
        file.write(b"c")
        assert next(followed) == b"c"
        followed.close()
    assert log.read_bytes() == b"c" and log.with_suffix(".1").read_bytes() == b"a" * 100 + b"b"


def test_the_folder_is_its_owners_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABRIG_CACHE", str(tmp_path))
    state.place().mkdir(mode=0o755)
    with hub._alone():
        assert state.place().stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: state.place().stat().st_uid + 1)
    with pytest.raises(HostError, match="somebody else's"), hub._alone():
        pass
