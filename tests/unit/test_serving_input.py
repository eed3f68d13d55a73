"""What a reviewer found in the settings of a hub and in files that are checked: none of it is a false alarm, a
traceback, a secret in a file, or a program that runs because a file names it."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import offered
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from labrig import secret
from labrig.errors import LabrigError, UsageError
from labrig.serving import chart, checks, cluster, documents, logins, rules, settings, traits
from labrig.serving.rules import Finding

VALUES, JOB = "values.yaml", "labs-job-cpu.yaml"
GITHUB = '[login]\nauthenticator = "oauthenticator.github.GitHubOAuthenticator"\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offered.checkout(tmp_path_factory.mktemp("input") / "checkout")


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    return offered.files(root)


@cache
def parts(root: Path) -> tuple[Any, ...]:
    return offered.offered(root), cluster.find_labs(root), settings.Settings(), chart.read(None)


def check(root: Path, texts: dict[str, str]) -> tuple[Finding, ...]:
    return checks.check(texts, *parts(root)).findings


def parse(text: str) -> settings.Settings:
    return settings.parse(tomllib.loads(text), Path("serve.toml"), text)


def with_config(text: str, **tables: Any) -> str:
    data = yaml.safe_load(text)
    data["hub"]["config"] |= tables
    return yaml.safe_dump(data)


# --- what is right passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "owners"),
    [
        ("github", ["GitHubOAuthenticator", "OAuthenticator", "CryptKeeper"]),
        ("google", ["GoogleOAuthenticator", "LocalGoogleOAuthenticator"]),
        ("generic-oauth", ["GenericOAuthenticator"]),
        ("pam", ["PAMAuthenticator", "LocalAuthenticator", "Application", "LoggingConfigurable"]),
        ("ours", ["CampusLogin"]),
    ],
)
def test_an_authenticator_that_is_not_here_is_no_error(
    root: Path, files: dict[str, str], name: str, owners: list[str]
) -> None:
    tables: dict[str, Any] = {owner: {} for owner in owners} | {"JupyterHub": {"authenticator_class": name}}
    found = check(root, {VALUES: with_config(files[VALUES], **tables)})
    assert not [one for one in found if one.level == "error"]
    said = [one.what for one in found if one.key.endswith("authenticator_class")]
    assert any("not looked at" in what for what in said) == (name != "pam")


def test_a_class_that_is_nearly_known_is_still_an_error(root: Path, files: dict[str, str]) -> None:
    tables = {"JupyterHub": {"authenticator_class": "github"}, "GitHubOAuthentcator": {}}
    found = check(root, {VALUES: with_config(files[VALUES], **tables)})
    assert [one.fix for one in found if one.level == "error"] == ["write GitHubOAuthenticator"]


def test_the_bases_of_classes_are_known() -> None:
    for owner in ("Application", "SingletonConfigurable", "LocalProcessSpawner", "CryptKeeper"):
        assert traits.is_known(owner), owner
    assert traits.check_trait("Application", "log_levl") == (
        "Application.log_levl", "Application has no trait log_levl", "write log_level",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "many"),
    [
        ('metadata: {annotations: {nginx.ingress.kubernetes.io/auth-tls-secret: "default/ca"}}', 0),
        ("imagePullSecrets: [regcred]", 0),
        ("existingSecret: labrig-hub", 0),
        ("a: {client_secrets: geheim}", 1),
        ("a: {consumers: {moodle: geheim}}", 1),
        ("a: {api_tokens: [geheim, geheim]}", 2),
        ("a: {x: {client_secret: geheim}}", 1),
    ],
)
def test_a_secret_is_found_and_the_name_of_one_is_not(text: str, many: int) -> None:
    found = list(rules.find_secrets(documents.read(text, VALUES)))
    assert len(found) == many and "geheim" not in str(found)


def test_a_published_image_in_code_is_published(root: Path, files: dict[str, str]) -> None:
    image = offered.offered(root)[0].reference
    for name, expected in ((image, False), ("example.org/x", True)):
        data = yaml.safe_load(files[VALUES])
        data["hub"].setdefault("extraConfig", {})["mine"] = f"c.KubeSpawner.image = {name!r}\n"
        found = check(root, {VALUES: yaml.safe_dump(data)})
        assert any("none of the published" in one.what for one in found) is expected


# --- nothing makes a traceback ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        '!!int ""', '!!float ""', "!!bool foo", "!!timestamp x", "!!set {a}", "!!binary YQ==", "{? [a] : b}",
        f"0x{'f' * 6000}", "1" * 6000, "!!omap [a: 1]", f"{{{1 << 70}: b}}",
    ],
)  # fmt: skip
def test_yaml_that_json_has_not_is_refused_by_its_file(root: Path, value: str) -> None:
    with pytest.raises(UsageError, match=VALUES):
        documents.read(f"a: {value}\n", VALUES)
    assert [one.file for one in check(root, {VALUES: f"a: {value}\n"})] == [VALUES]


@pytest.mark.parametrize("file", [VALUES, JOB])
@pytest.mark.parametrize("kind", ["Job\\0", "J" * 999, "\\ud800"])
def test_a_kind_that_is_no_name_of_a_file(root: Path, file: str, kind: str) -> None:
    assert check(root, {file: f'kind: "{kind}"\napiVersion: batch/v1\n'})


def nodes(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each node of a document."""
    if above:
        yield above
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from nodes(value, (*above, key))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    made = copy.deepcopy(data)
    place = made
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return made


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([10**400, -(10**400), 1 << 63]), st.floats(), st.text(),
    st.sampled_from(["", ".", ".Foo.Bar", "9" * 5000, "9" * 400 + "Gi", "\0", "this.Foo", "-" * 5000 + "1"]),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=9), one, max_size=3), max_leaves=6
)


@pytest.mark.parametrize("file", [VALUES, JOB, "labs-job-cuda.yaml"])
@given(data=st.data())
@hypothesis(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_node_can_be_anything(root: Path, files: dict[str, str], file: str, data: st.DataObject) -> None:
    whole = yaml.safe_load(files[file])
    path = data.draw(st.sampled_from(list(nodes(whole))))
    value = data.draw(ANYTHING)
    try:
        check(root, {file: yaml.safe_dump(replaced(whole, path, value))})
    except LabrigError as error:
        assert error.what


@pytest.mark.parametrize("value", [[], {}, ["a"], {"a": ["b"]}, 10**400, None, ".Foo.Bar", "this.Foo"])
def test_each_node_can_be_what_it_is_not(root: Path, files: dict[str, str], value: Any) -> None:
    """The places of a cluster's files where a mistake of kind was a traceback, one by one."""
    above, profile = ("spec", "template", "spec"), ("singleuser", "profileList", 1, "kubespawner_override")
    places = {
        VALUES: [
            ("singleuser", "storage", "extraVolumes", 0, "name"),
            ("singleuser", "storage", "extraVolumeMounts", 0, "name"),
            (*profile, "extra_resource_limits"), (*profile, "image"),
            (*profile, "node_affinity_required", 0, "matchExpressions", 0, "key"),
            ("singleuser", "memory", "limit"), ("cull", "timeout"),
            ("hub", "config", "JupyterHub", "authenticator_class"),
        ],
        "labs-job-cuda.yaml": [
            (*above, "volumes", 0, "name"), (*above, "containers", 0, "volumeMounts", 0, "name"),
            (*above, "containers", 0, "resources", "limits"), (*above, "containers", 0, "image"),
        ],
    }  # fmt: skip
    for file, paths in places.items():
        whole = yaml.safe_load(files[file])
        for path in paths:
            check(root, {file: yaml.safe_dump(replaced(whole, path, value))})


@pytest.mark.parametrize(
    "line",
    [
        "x = " + "-" * 50_000 + "1",
        "c.JupyterHub.port = " + "-" * 3_000 + "1",
        "c.JupyterHub.port = " + "(" * 5_000,
        "c.DockerSpawner.allowed_images = {'cpu': ['a']}",
        "c.DockerSpawner.image = 0x" + "f" * 6_000,
        "c.JupyterHub.port = 0x" + "f" * 6_000,
        "c.DockerSpawner.cpu_limit = 0x" + "f" * 6_000,
        "inside.Choice(image=['a'])",
        "c.JupyterHub.authenticator_class = '.Foo.Bar'",
        "c" + ".a" * 20_000 + " = 1",
    ],
)
def test_a_configuration_of_any_shape_makes_no_traceback(root: Path, line: str) -> None:
    list(checks.check_config(line, checks.CONFIG, offered.offered(root)))


# --- nothing is run because a file names it -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labrig_ran.Foo", "labrig_ran", "jupyterhub.__main__.Foo", ".labrig_ran.Foo"])
def test_what_a_checked_file_names_is_not_imported(
    root: Path, files: dict[str, str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labrig_ran.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tables: dict[str, Any] = {"JupyterHub": {"authenticator_class": name, "spawner_class": name}, "Foo": {"a": 1}}
    found = check(root, {VALUES: with_config(files[VALUES], **tables)})
    text = f"c.JupyterHub.authenticator_class = {name!r}\nc.JupyterHub.extra_handlers = [{name!r}]\nc.Foo.a = 1\n"
    found += tuple(checks.check_config(text, checks.CONFIG, offered.offered(root)))
    said = [one for one in found if one.level == "warning" and "not looked at" in one.what]
    assert {one.key.rpartition(".")[2] for one in said} >= {"authenticator_class", "spawner_class"}


def test_a_class_of_a_known_package_is_looked_at(root: Path) -> None:
    text = "c.JupyterHub.spawner_class = 'dockerspawner.SwarmSpawner'\nc.SwarmSpawner.imge = 'x'\n"
    assert [one.key for one in checks.check_config(text, checks.CONFIG, ())] == ["c.SwarmSpawner.imge"]
    wrong = "c.JupyterHub.spawner_class = 'jupyterhub.auth.PAMAuthenticator'\n"
    assert ["does not fit" in one.what for one in checks.check_config(wrong, checks.CONFIG, ())] == [True]


# --- serve.toml ---------------------------------------------------------------------------------------------------

PLAIN = {
    'x = {client_secret = "geheim"}': "x.client_secret",
    'x = [{y = {api_tokens = ["geheim"]}}]': "x.y.api_tokens",
    'client_secrets = "geheim"': "client_secrets",
    'api_tokens = ["geheim"]': "api_tokens",
    'passwords = {ada = "geheim"}': "passwords.ada",
    "client_secret = 12345678": "client_secret",
}


@pytest.mark.parametrize("line", PLAIN)
def test_a_secret_is_refused_however_deep(root: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = parse(f"{GITHUB}[login.settings]\n{line}\n")
    with pytest.raises(UsageError) as error:
        offered.files(root, told)
    assert f"{PLAIN[line]} would stand" in error.value.what and secret.MEANT in error.value.fix
    assert "geheim" not in str(error.value)
    monkeypatch.setattr(logins, "load", lambda _: object)  # no class here has such traits
    monkeypatch.setattr(logins, "require_trait", lambda *_: None)
    with pytest.raises(UsageError, match="stands in the file") as refused:
        logins.prove(told)
    assert PLAIN[line] in refused.value.what and "geheim" not in str(refused.value)
    name = line.partition(" = ")[0]
    code = f"c.PAMAuthenticator.{name} = {tomllib.loads(line)[name]!r}\n"
    assert any("a secret would stand" in one.what for one in checks.check_config(code, checks.CONFIG, ()))


@pytest.mark.parametrize(
    "key", ['"x = 1; import os #"', '"a\\nhub: {}"', '"a.b"', '""', '"1a"', '"class"', '"\u00e9"', '"a\u00b2"']
)
def test_a_key_that_is_no_name_is_refused_with_its_line(key: str) -> None:
    text = f'{GITHUB}\n[login.settings]\n{key} = "env:FOO"\n'
    with pytest.raises(UsageError, match="is no trait's name") as error:
        parse(text)
    assert error.value.what.startswith(("serve.toml, line 4", "serve.toml, line 5"))


@pytest.mark.parametrize("name", ["a.b; import os", "a.b\n", "a.class", "a.b\u00b2", "..a", "a"])
def test_an_authenticator_is_a_path_of_names(name: str) -> None:
    with pytest.raises(UsageError, match="authenticator is wrong"):
        settings.parse({"login": {"authenticator": name}}, Path("serve.toml"))


@given(key=st.text(max_size=20), value=st.text(st.characters(codec="ascii"), max_size=20))
@hypothesis(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_inside_of_a_setting_is_data(root: Path, key: str, value: str) -> None:
    inner = {key: value}
    login = {"authenticator": "oauthenticator.x.X", "settings": {"on": inner}}
    try:
        told = settings.parse({"login": login}, Path("serve.toml"))
        text = offered.files(root, told)[VALUES]
    except UsageError:
        return  # a key that is named as a secret is, or a reference
    assert set(yaml.safe_load(text)["hub"]["config"]["X"]) == {"on"}


@pytest.mark.parametrize("reference", ["file:a\rhub: {}", "file:a\nb", "file:a\x85b", "file:a\u2028b"])
def test_a_reference_has_no_end_of_a_line(reference: str) -> None:
    assert not secret.is_reference(reference)


def test_nobodys_home_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "~nosuchuser-of-labrig/a"
    with pytest.raises(UsageError, match="certificate is wrong") as error:
        parse(f'[hub]\ncertificate = "{path}"\nkey = "/a"\n')
    assert "line 2" in error.value.what
    with pytest.raises(UsageError, match="key is wrong"):
        parse(f'[hub]\ncertificate = "/a"\nkey = "{path}"\n')
    with pytest.raises(UsageError, match="cannot read the file"):
        secret.read(f"file:{path}", "password")


@pytest.mark.parametrize("address", ["dead.beef", ":", "1.2.3", "256.0.0.1", "fe80::1%a b", "", "::1::", 7])
def test_an_address_that_is_none_is_refused(address: Any) -> None:
    with pytest.raises(UsageError, match="address is wrong"):
        settings.parse({"hub": {"address": address}}, Path("serve.toml"))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0:0:0:0:0:0:0:1", "127.9.9.9"])
def test_an_address_of_this_machine_needs_no_certificate(address: str) -> None:
    assert settings.parse({"hub": {"address": address}}, Path("serve.toml")).hub.address == address
