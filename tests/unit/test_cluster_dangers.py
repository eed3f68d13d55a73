"""What an edited cluster's file would open or lose: one mutation a rule, each named by its key."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import offered
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from labrig import image
from labrig.serving import Offer, chart, checks, cluster, dangers, documents, settings, traits
from labrig.serving.rules import Finding

VALUES, JOB, GPU_JOB = "values.yaml", "labs-job-cpu.yaml", "labs-job-cuda.yaml"
TOLD = settings.Settings()
OTHER = f"registry.example.org/lab/other@sha256:{'b' * 64}"
HOST_PATH = [{"name": "engine", "hostPath": {"path": "/var/run/docker.sock"}}]
PROFILE = "singleuser.profileList.0"
CHOICE = f"{PROFILE}.profile_options.size.choices.big"
POD, LAB = "spec.template.spec", "spec.template.spec.containers.0"
Mutation = tuple[str, Any, str]  # a path, what is put there, the key of the finding ("" the same)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offered.checkout(tmp_path_factory.mktemp("dangers") / "checkout")


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    return offered.files(root)


@cache
def offers_of(root: Path) -> tuple[Offer, ...]:
    return offered.offered(root)


def put(data: Any, path: str, value: Any) -> Any:
    """Another value at a path of keys and numbers; ``...`` takes it away; a function changes what is there."""
    changed = data = copy.deepcopy(data)
    *above, last = [int(part) if part.isdigit() else part.replace("~", ".") for part in path.split(".")]
    for part in above:
        data = data[part] if isinstance(data, list) else data.setdefault(part, {})
    if value is ...:
        del data[last]
    elif isinstance(data, list) and last == len(data):
        data.append(value)
    else:
        data[last] = value(data[last]) if callable(value) else value
    return changed


def check(root: Path, file: str, data: Any) -> tuple[Finding, ...]:
    texts = {file: yaml.safe_dump(data, sort_keys=False)}
    return checks.check(texts, offers_of(root), cluster.find_labs(root), TOLD, chart.read(None)).findings


def fresh(root: Path, told: settings.Settings) -> list[Finding]:
    texts = offered.files(root, told)
    found: list[Finding] = []
    for file, text in texts.items():
        document = documents.read(text, file)
        if file == VALUES:
            found += dangers.check_values(document, offers_of(root), told)
        elif document.data["kind"] == "Job":
            found += dangers.check_job(document, offers_of(root))
    return found


def test_what_is_rendered_has_none(root: Path) -> None:
    assert fresh(root, TOLD) == []


@pytest.mark.parametrize(
    "text",
    [
        '[cluster]\nhost = "labs.example.org"\n[student]\nidle = 0\n',
        '[login]\nauthenticator = "oauthenticator.github.GitHubOAuthenticator"\nusers = ["ada"]\nadmins = ["grace"]\n'
        '[login.settings]\nclient_id = "x"\nclient_secret = "env:CLIENT_SECRET"\n',
    ],
)
def test_what_is_rendered_for_a_site_has_none(root: Path, text: str) -> None:
    import tomllib

    assert fresh(root, settings.parse(tomllib.loads(text), Path("serve.toml"), text)) == []


def spawner(trait: str, value: Any, key: str = "") -> list[Mutation]:
    """One trait, at each place of KubeSpawner's."""
    above = ("hub.config.KubeSpawner", f"{PROFILE}.kubespawner_override", f"{CHOICE}.kubespawner_override")
    return [(f"{place}.{trait}", value, f"{place}.{key or trait}") for place in above]


def code(line: str) -> str:
    return f"import os\nc.SharedPasswordAuthenticator.user_password = os.environ['LABRIG_USER_PASSWORD']\n{line}\n"


def told_who(text: str, **traits: Any) -> Callable[[Any], Any]:
    """A hub with a list of users, and more of that table."""
    given = {"allowed_users": ["ada"], "allow_existing_users": False, **traits}
    named = {trait: value for trait, value in given.items() if value is not ...}
    return lambda hub: {
        **hub, "config": {**hub["config"], "Authenticator": named}, "extraConfig": {"labrig-secrets": text},
    }  # fmt: skip


WORK_OTHERWISE = f"{image.HOME}/./{Path(image.WORK).name}/"  # the same folder
CODE = "hub.extraConfig.labrig-secrets"
OF_VALUES: list[Mutation] = [
    *spawner("privileged", True),
    *spawner("container_security_context.privileged", True),
    *spawner("container_security_context.allowPrivilegeEscalation", True),
    *spawner("container_security_context.capabilities.add", ["SYS_ADMIN"]),
    *spawner("container_security_context.run_as_user", 0),
    *spawner("container_security_context.runAsNonRoot", False),
    *spawner("extra_container_config.securityContext.privileged", True),
    *spawner("allow_privilege_escalation", True),
    *spawner("uid", 0),
    *spawner("pod_security_context.runAsUser", 0),
    *spawner("extra_pod_config.hostNetwork", True),
    *spawner("extra_pod_config.host_network", True),
    *spawner("extra_pod_config.hostPID", True),
    *spawner("extra_pod_config.hostIPC", True),
    *spawner("extra_pod_config.automountServiceAccountToken", True),
    *spawner("extra_pod_config.serviceAccountName", "default"),
    *spawner("extra_pod_config.volumes", HOST_PATH, "extra_pod_config.volumes.0.hostPath"),
    *spawner("volumes", HOST_PATH, "volumes.0.hostPath"),
    *spawner("service_account", "default"),
    *spawner("automount_service_account_token", True),
    *spawner("start_timeout", 5),
    *spawner("pvc_name_template", "claim-of-all"),
    *spawner("init_containers", [{"name": "x", "image": "busybox"}], "init_containers.0.image"),
    *spawner("extra_containers", [{"name": "x", "image": OTHER}], "extra_containers.0.image"),
    *spawner("volume_mounts", [{"name": "shm", "mountPath": "/dev/shm"}], "volume_mounts"),
    *spawner("volume_mounts", [{"name": "x", "mountPath": WORK_OTHERWISE}], "volume_mounts.0.mountPath"),
    ("singleuser.extraPodConfig.hostNetwork", True, ""),
    ("singleuser.extraPodConfig.hostPID", True, ""),
    ("singleuser.extraPodConfig.hostIPC", True, ""),
    ("singleuser.storage.extraVolumes.3", HOST_PATH[0], "singleuser.storage.extraVolumes.3.hostPath"),
    ("singleuser.storage.extraVolumeMounts.3", {"name": "tmp", "mountPath": "/home/student/work"},
     "singleuser.storage.extraVolumeMounts.3.mountPath"),
    ("singleuser.serviceAccountName", "default", ""),
    ("singleuser.initContainers", [{"name": "x", "image": "busybox", "securityContext": {"privileged": True}}],
     "singleuser.initContainers.0.securityContext.privileged"),
    ("singleuser.initContainers", [{"name": "x", "image": "busybox"}], "singleuser.initContainers.0.image"),
    ("singleuser.extraContainers", [{"name": "x", "image": OTHER}], "singleuser.extraContainers.0.image"),
    ("singleuser.networkPolicy.egressAllowRules.privateIPs", True, ""),
    ("singleuser.networkPolicy.egressAllowRules.cloudMetadataServer", True, ""),
    ("singleuser.networkPolicy.enabled", False, ""),
    ("singleuser.networkPolicy.egress", [{}], "singleuser.networkPolicy.egress.0"),
    ("singleuser.networkPolicy.egress", [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}],
     "singleuser.networkPolicy.egress.0"),
    ("hub.networkPolicy.enabled", False, ""),
    ("proxy.chp.networkPolicy.enabled", False, ""),
    ("singleuser.cloudMetadata.blockWithIptables", False, ""),
    ("hub.loadRoles.user", {"scopes": ["self", "admin:users"]}, "hub.loadRoles.user.scopes"),
    ("hub.loadRoles.x", {"name": "user", "scopes": ["access:servers"]}, "hub.loadRoles.x.scopes"),
    ("hub.config.JupyterHub.load_roles", [{"name": "user", "scopes": ["servers"]}],
     "hub.config.JupyterHub.load_roles.0.scopes"),
    ("hub.config.JupyterHub.admin_access", True, ""),
    ("cull.users", True, ""),
    ("hub.db.type", "sqlite-memory", ""),
    (f"{PROFILE}.profile_options.image", {"unlisted_choice": {"enabled": True, "display_name": "any"}},
     f"{PROFILE}.profile_options.image.unlisted_choice.enabled"),
    (f"{CHOICE}.kubespawner_override.image", OTHER, ""),
    (f"{CHOICE}.kubespawner_override.mem_limt", "1G", ""),
    (f"{CHOICE}.kubespawner_overide", {}, ""),
    (f"{PROFILE}.profile_options.size.choises", {}, ""),
    (f"{PROFILE}.kubespawner_overide", {}, ""),
    (f"{PROFILE}.kubespawner_override", [], ""),
    ("singleuser.profileList.1.default", True, ""),
    ("singleuser.profileList.1.slug", "cpu", ""),
    ("singleuser.storage.type", "none", ""),
    ("singleuser.storage.dynamic.pvcNameTemplate", "claim", ""),
    ("singleuser.storage", {"type": "static", "homeMountPath": "/home/student/work",
                            "static": {"pvcName": "all", "subPath": "home"}}, "singleuser.storage.static.subPath"),
    ("singleuser.startTimeout", 10, ""),
    ("hub.config.Authenticator.allowed_users", ["ada"], "hub.config.Authenticator.allow_all"),
    ("hub.config.GitHubOAuthenticator", {"allowed_organizations": ["a"]}, "hub.config.Authenticator.allow_all"),
    ("hub.config.SharedPasswordAuthenticator", {"allowed_users": ["a"]}, "hub.config.Authenticator.allow_all"),
    ("hub.config.GitHubOAuthenticator", {"allow_all": True, "allowed_organizations": ["a"]},
     "hub.config.GitHubOAuthenticator.allow_all"),
    (CODE, code("c.GitHubOAuthenticator.allowed_organizations = {'a'}"), "hub.config.Authenticator.allow_all"),
    ("hub", told_who(code("c.Authenticator.allow_all = True")), f"{CODE}: c.Authenticator.allow_all"),
    (CODE, code("c.JupyterHub.authenticator_class = 'dummy'"), f"{CODE}: c.JupyterHub.authenticator_class"),
    ("hub", told_who(code(""), allow_existing_users=...), "hub.config.Authenticator.allow_existing_users"),
    ("hub.config.Authenticator", {"allowed_users": ["ada", "bob"], "admin_users": ["bob", "ada"]},
     "hub.config.Authenticator.admin_users"),
    ("proxy.service.type", "LoadBalancer", ""),
    ("proxy.service.type", "NodePort", ""),
    ("proxy.service.type", ..., ""),
    ("ingress", {"enabled": True, "hosts": ["a.example.org"], "tls": [{"hosts": ["a.example.org"]}]},
     "ingress.tls.0.secretName"),
    ("ingress", {"enabled": True, "hosts": ["a.example.org"], "tls": [{"hosts": ["b.example.org"], "secretName": "x"}]},
     "ingress.tls"),
    (CODE, ..., "hub.extraConfig"),
    (CODE, code("c.KubeSpawner.privileged = True"), f"{CODE}: c.KubeSpawner.privileged"),
    (CODE, code("c.KubeSpawner.privileged: bool = True"), f"{CODE}: c.KubeSpawner.privileged"),
    (CODE, code("c.KubeSpawner.uid = 0"), f"{CODE}: c.KubeSpawner.uid"),
    (CODE, code("c.KubeSpawner.extra_pod_config = {'hostPID': True}"),
     f"{CODE}: c.KubeSpawner.extra_pod_config.hostPID"),
    (CODE, code("c.KubeSpawner.mem_limt: str = '1G'"), f"{CODE}: c.KubeSpawner.mem_limt"),
    (CODE, code("c.JupyterHub.load_roles = [{'name': 'user', 'scopes': ['admin:servers']}]"),
     f"{CODE}: c.JupyterHub.load_roles.0.scopes"),
    ("hub.config.KubeSpawner.profile_list", [{"display_name": "x", "kubespawner_override": {"privileged": True}}],
     "hub.config.KubeSpawner.profile_list.0.kubespawner_override.privileged"),
    ("hub.config.KubeSpawner.profile_list", [{"display_name": "x", "kubespawner_overide": {}}],
     "hub.config.KubeSpawner.profile_list.0.kubespawner_overide"),
    ("cull.timeout", 0, ""),
    ("cull.every", 7200, ""),
]  # fmt: skip
WARNINGS = ("blockWithIptables", "admin_access", "hub.db.type", "init_containers.0.image", "extra_containers.0.image",
            "initContainers.0.image", "extraContainers.0.image")  # fmt: skip


def named(mutations: list[Mutation]) -> list[str]:
    return [f"{number} {key or path}" for number, (path, _, key) in enumerate(mutations)]


def is_named(found: tuple[Finding, ...], file: str, key: str, level: str) -> bool:
    return any((one.file, one.key, one.level) == (file, key, level) and one.what and one.fix for one in found)


@pytest.mark.parametrize(("path", "value", "key"), OF_VALUES, ids=named(OF_VALUES))
def test_a_danger_in_values_is_named(root: Path, files: dict[str, str], path: str, value: Any, key: str) -> None:
    found = check(root, VALUES, put(yaml.safe_load(files[VALUES]), path, value))
    level = "warning" if (key or path).endswith(WARNINGS) else "error"
    assert is_named(found, VALUES, key or path, level), [(one.level, one.key) for one in found]
    assert all(one.line for one in found if one.key == (key or path) and value is not ...)


@pytest.mark.parametrize(
    ("hub", "key"),
    [
        (told_who(code(""), allow_existing_users=True), "hub.config.Authenticator.allow_existing_users"),
        (
            told_who(code("c.Authenticator.allow_existing_users = True")),
            f"{CODE}: c.Authenticator.allow_existing_users",
        ),
    ],
)
def test_who_stays_in_after_they_were_taken_from_the_list_is_a_warning(
    root: Path, files: dict[str, str], hub: Callable[[Any], Any], key: str
) -> None:
    assert is_named(check(root, VALUES, put(yaml.safe_load(files[VALUES]), "hub", hub)), VALUES, key, "warning")


def command(*words: str, without: str = "") -> Callable[[Any], Any]:
    return lambda given: [word for word in given if not without or not word.startswith(without)] + list(words)


COMMAND = f"{LAB}.command"
OF_JOBS: list[Mutation] = [
    ("spec.suspend", True, ""),
    ("spec.parallelism", 0, ""),
    (f"{POD}.hostNetwork", True, ""),
    (f"{POD}.hostPID", True, ""),
    (f"{POD}.hostIPC", True, ""),
    (f"{POD}.automountServiceAccountToken", True, ""),
    (f"{POD}.automountServiceAccountToken", ..., ""),
    (f"{POD}.serviceAccountName", "default", ""),
    (f"{LAB}.securityContext.privileged", True, ""),
    (f"{LAB}.securityContext.capabilities.add", ["NET_RAW"], ""),
    (f"{LAB}.securityContext.runAsNonRoot", False, ""),
    (f"{POD}.volumes.4", HOST_PATH[0], f"{POD}.volumes.4.hostPath"),
    (f"{POD}.initContainers", [{"name": "x", "image": "busybox"}], f"{POD}.initContainers.0.image"),
    (f"{POD}.initContainers", [{"name": "x", "image": OTHER, "securityContext": {"runAsUser": 0}}],
     f"{POD}.initContainers.0.securityContext.runAsUser"),
    (f"{POD}.containers.1", {"name": "x", "image": OTHER}, f"{POD}.containers.1"),
    (f"{LAB}.volumeMounts.0.name", "nothing", ""),
    (f"{LAB}.volumeMounts.0.readOnly", True, ""),
    (f"{POD}.volumes.0.persistentVolumeClaim.readOnly", True, ""),
    (f"{LAB}.volumeMounts.3", ..., f"{LAB}.volumeMounts"),
    (f"{LAB}.volumeMounts.2", ..., f"{LAB}.volumeMounts"),
    (f"{LAB}.volumeMounts.2.readOnly", True, f"{LAB}.volumeMounts"),
    (COMMAND, command("--device=cuda", without="--device"), ""),
    (COMMAND, command(without="--device"), ""),
    (f"{LAB}.args", ["--device=cuda"], COMMAND),
    (COMMAND, command("--memry=3"), ""),
    (COMMAND, command("--index-from=OTHER", without="--index-from"), ""),
    (COMMAND, command("--documents=/results/../tmp", without="--documents"), ""),
    (COMMAND, command("01_tensors"), ""),
    ("spec.activeDeadlineSeconds", 60, COMMAND),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "key"), OF_JOBS, ids=named(OF_JOBS))
def test_a_danger_in_a_job_is_named(root: Path, files: dict[str, str], path: str, value: Any, key: str) -> None:
    found = check(root, JOB, put(yaml.safe_load(files[JOB]), path, value))
    assert is_named(found, JOB, key or path, "error"), [(one.level, one.key) for one in found]


def test_a_gpus_job_that_computes_on_the_cpu_is_named(root: Path, files: dict[str, str]) -> None:
    data = put(yaml.safe_load(files[GPU_JOB]), COMMAND, command("--device=cpu", without="--device"))
    assert any("cuda" in one.what and one.key == COMMAND for one in check(root, GPU_JOB, data))


def test_a_job_that_a_queue_resumes_is_a_warning(root: Path, files: dict[str, str]) -> None:
    data = put(yaml.safe_load(files[JOB]), "metadata.labels", {dangers.QUEUE: "labs"})
    assert is_named(check(root, JOB, put(data, "spec.suspend", True)), JOB, "spec.suspend", "warning")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hub.loadRoles.user", {"scopes": ["self", "list:users", "read:users:name", "access:servers!user"]}),
        ("hub.loadRoles.teacher", {"scopes": ["admin:servers"], "users": ["ada"]}),
        ("proxy", {"service": {"type": "LoadBalancer"}, "https": {"enabled": True, "type": "offload"}}),
        ("ingress", {"enabled": True, "hosts": ["a.x.org"], "tls": [{"hosts": ["*.x.org"], "secretName": "x"}]}),
        ("singleuser.storage.dynamic.pvcNameTemplate", "claim-{escaped_user_server}"),
        ("singleuser.networkPolicy.egress", [{"to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}]}]),
        ("hub", told_who(code(""), admin_users=["grace"])),
        ("hub.config.CILogonOAuthenticator", {"allowed_idps": {"https://idp.example.edu": {}}}),
        (CHOICE, {"display_name": "big", "kubespawner_override": {"mem_limit": "4G"}}),
        ("singleuser.storage.extraVolumeMounts.3", {"name": "tmp", "mountPath": f"{image.WORK}/data"}),
    ],
)
def test_what_a_site_may_do_passes(root: Path, files: dict[str, str], path: str, value: Any) -> None:
    data = put(yaml.safe_load(files[VALUES]), path, value)
    document = documents.read(yaml.safe_dump(data), VALUES)
    assert [*dangers.check_values(document, offers_of(root), TOLD)] == []


@pytest.mark.parametrize(("owner", "count"), [("GoogleOAuthenticator", 0), ("OAuthenticator", 1)])
def test_only_the_class_that_is_chosen_and_what_it_extends_let_people_in(owner: str, count: int) -> None:
    chosen = {"authenticator_class": "oauthenticator.github.LocalGitHubOAuthenticator"}
    listed = {"allowed_users": ["ada"], "allow_existing_users": False}
    config = {"JupyterHub": chosen, "GitHubOAuthenticator": listed, owner: {"allow_all": True}}
    assert len([*dangers._users({"hub": {"config": config}})]) == count


def test_the_flags_are_those_of_the_runner() -> None:
    import argparse

    from labs.__main__ import parser

    commands = next(one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    known = {flag for one in commands.choices["run"]._actions for flag in one.option_strings}
    assert known - {"-h", "--help"} == set(dangers.FLAGS)


def test_an_annotated_line_is_an_assignment() -> None:
    assert list(traits.assignments("c.KubeSpawner.uid: int = 0\nc.KubeSpawner.gid: int\nc.Spawner.x += [1]")) == [
        (1, "KubeSpawner", "uid", 0), (2, "KubeSpawner", "gid", ...), (3, "Spawner", "x", ...),
    ]  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def paths(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in pairs for place in ((*above, key), *paths(value, (*above, key)))]


@cache
def dangerous(root: Path, file: str) -> Any:
    """A file with many of the keys that rules look at."""
    data, mutations = yaml.safe_load(offered.files(root)[file]), OF_VALUES if file == VALUES else OF_JOBS
    for path, value, _ in mutations:
        if value is not ... and not callable(value) and not path.endswith(("kubespawner_override", ".storage")):
            data = put(data, path, value)
    return data


@hypothesis(max_examples=300, deadline=None)
@given(data=st.data(), value=JSON, file=st.sampled_from([VALUES, JOB]))
def test_any_json_at_any_place_makes_no_traceback(root: Path, data: st.DataObject, value: Any, file: str) -> None:
    whole = copy.deepcopy(dangerous(root, file))
    *above, last = data.draw(st.sampled_from(paths(whole)))
    place = whole
    for part in above:
        place = place[part]
    place[last] = value
    document = documents.Document(file, whole)
    if file == VALUES:
        list(dangers.check_values(document, offers_of(root), TOLD))
    else:
        list(dangers.check_job(document, offers_of(root)))


@pytest.mark.parametrize("value", [None, [], {}, 1, "x", True, [[]], {"": {"": []}}])
def test_any_document_makes_no_traceback(root: Path, value: Any) -> None:
    list(dangers.check_values(documents.Document(VALUES, value), offers_of(root), TOLD))
    list(dangers.check_job(documents.Document(JOB, value), offers_of(root)))
