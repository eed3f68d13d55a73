"""`invoke serve --check`: what is right passes, and each thing that can be wrong is named, by file and key."""

from __future__ import annotations

import copy
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import offered
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from labrig.errors import HostError, UsageError, VerifyError
from labrig.serving import Offer, chart, checks, cluster, rules, settings, traits
from labrig.serving.rules import Finding

Change = Callable[[Any], object]
VALUES, JOB, GPU_JOB, CLAIM = "values.yaml", "labs-job-cpu.yaml", "labs-job-cuda.yaml", "labs-results.yaml"
TOLD = settings.Settings()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offered.checkout(tmp_path_factory.mktemp("checks") / "checkout")


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    return offered.files(root)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A chart that stands in for the real one, which the tests cannot download: its schema is made of our own table,
    with keys that have to be there as the real one has, and a packed file as `helm pull` saves it."""
    schema = chart.of_table()
    schema["required"] = ["hub", "debug", "custom"]
    schema["properties"]["hub"] |= {"required": ["baseUrl"]}
    schema["properties"]["singleuser"]["properties"]["cloudMetadata"]["required"] = ["blockWithIptables", "ip"]
    defaults = {
        "hub": {"baseUrl": "/", "config": {"JupyterHub": {"authenticator_class": "dummy"}}},
        "custom": {},
        "debug": {"enabled": False},
        "cull": {"enabled": True, "timeout": 3600},
        "singleuser": {
            "cloudMetadata": {"blockWithIptables": True, "ip": "169.254.169.254"},
            "memory": {"guarantee": "1G"},
        },
    }
    about = {"name": "jupyterhub", "version": "4.4.0", "appVersion": "5.5.0", "kubeVersion": ">=1.32.0-0"}
    inside = {
        "values.schema.json": json.dumps(schema),
        "values.yaml": yaml.safe_dump(defaults),
        "Chart.yaml": yaml.safe_dump(about),
    }
    path = tmp_path_factory.mktemp("chart") / "jupyterhub-4.4.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in inside.items():
            entry = tarfile.TarInfo(f"jupyterhub/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


@cache
def offers_of(root: Path) -> tuple[Offer, ...]:
    return offered.offered(root)


def check(root: Path, texts: dict[str, str], told: settings.Settings = TOLD, path: Path | None = None) -> checks.Report:
    return checks.check(texts, offers_of(root), cluster.find_labs(root), told, chart.read(path))


def changed(text: str, change: Change) -> str:
    data = yaml.safe_load(text)
    before = copy.deepcopy(data)
    change(data)
    assert data != before, "the mutation changed nothing"
    return yaml.safe_dump(data, sort_keys=False)


def errors(report: checks.Report) -> list[Finding]:
    return [one for one in report.findings if one.level == "error"]


def put(path: str, value: Any) -> Change:
    """A mutation: another value at a path of keys and numbers."""

    def change(data: Any) -> None:
        *above, last = [int(part) if part.isdigit() else part.replace("~", ".") for part in path.split(".")]
        for part in above:
            data = data[part] if isinstance(data, list) else data.setdefault(part, {})
        data[last] = value

    return change


def drop(path: str) -> Change:
    """A mutation: nothing at a path."""

    def change(data: Any) -> None:
        *above, last = [int(part) if part.isdigit() else part.replace("~", ".") for part in path.split(".")]
        for part in above:
            data = data[part]
        del data[last]

    return change


@pytest.mark.parametrize("with_chart", [False, True])
def test_what_is_rendered_passes_and_the_report_says_by_what(
    root: Path, files: dict[str, str], stand_in: Path, with_chart: bool
) -> None:
    report = check(root, files, path=stand_in if with_chart else None)
    assert not errors(report)
    assert {one.key for one in report.findings} == {
        "hub.config.JupyterHub.authenticator_class",
        "singleuser.profileList",
    }  # one password for all; another major version of jupyterhub
    assert set(report.files) == set(files)
    assert ("the schema of the chart jupyterhub 4.4.0" if with_chart else "labrig's own table") in report.by[0]
    assert "Kubernetes 1.32 to 1." in report.by[2]
    report.require_good()


OVER = "singleuser.profileList.0.kubespawner_override"
GPU = "singleuser.profileList.1.kubespawner_override"
SPEC = "spec.template.spec"
POD = f"{SPEC}.containers.0"
OTHER = "registry.example.org/lab/cpu@sha256:" + "f" * 64
# For each rule one thing that breaks it: the file, the change, the key that is named, words of what is said.
MUTATIONS: dict[str, tuple[str, Change, str, str]] = {
    # the chart's schema, or our table
    "misspelt key": (VALUES, put("singleuser.memmory", {"limit": "1G"}), "singleuser.memmory", "unknown key memmory"),
    "misspelt section": (VALUES, put("prepuller", {}), "prepuller", "unknown key prepuller"),
    "wrong type": (VALUES, put("singleuser.cpu.limit", "one"), "singleuser.cpu.limit", "it is text"),
    "wrong word": (VALUES, put("proxy.service.type", "Cluster"), "proxy.service.type", "none of the values"),
    "label of a number": (
        VALUES,
        put("singleuser.extraLabels", {"a": 1}),
        "singleuser.extraLabels.a",
        "it is a number",
    ),
    # the real classes
    "unknown trait": (VALUES, put(f"{OVER}.mem_limt", "1G"), f"{OVER}.mem_limt", "no trait mem_limt"),
    "trait of a wrong type": (VALUES, put(f"{OVER}.uid", "student"), f"{OVER}.uid", "str does not fit"),
    "unknown trait of the hub": (
        VALUES,
        put("hub.config.JupyterHub.admin_acess", True),
        "hub.config.JupyterHub.admin_acess",
        "no trait admin_acess",
    ),
    "unknown class": (
        VALUES,
        put("hub.config.KubeSpwaner", {"uid": 1}),
        "hub.config.KubeSpwaner",
        "no class KubeSpwaner",
    ),
    "code that is none": (
        VALUES,
        put("hub.extraConfig.mine", "c.JupyterHub.port ="),
        "hub.extraConfig.mine",
        "no Python",
    ),
    "trait in code": (
        VALUES,
        put("hub.extraConfig.mine", "c.JupyterHub.prot = 1"),
        "hub.extraConfig.mine: c.JupyterHub.prot",
        "no trait prot",
    ),
    # our rules for profiles
    "image by tag": (VALUES, put(f"{OVER}.image", "example.org/lab/cpu:latest"), f"{OVER}.image", "no image by digest"),
    "another image": (VALUES, put(f"{OVER}.image", OTHER), f"{OVER}.image", "none of the published"),
    "no memory limit": (VALUES, drop("singleuser.memory.limit"), "singleuser.memory.limit", "no limit of memory"),
    "no cpu limit": (VALUES, put(f"{OVER}.cpu_limit", None), f"{OVER}.cpu_limit", "no limit of cpu"),
    "guarantee above limit": (
        VALUES,
        put("singleuser.memory.guarantee", "8G"),
        "singleuser.memory.guarantee",
        "above the limit",
    ),
    "cpu guarantee": (VALUES, put("singleuser.cpu.guarantee", 8), "singleuser.cpu.guarantee", "above the limit"),
    "no shm": (
        VALUES,
        drop("singleuser.storage.extraVolumeMounts.0"),
        "singleuser.storage.extraVolumes",
        "no emptyDir of medium",
    ),
    "shm on a disk": (
        VALUES,
        put("singleuser.storage.extraVolumes.0.emptyDir", {"sizeLimit": "1Gi"}),
        "singleuser.storage.extraVolumes",
        "Memory",
    ),
    "shm without end": (
        VALUES,
        put("singleuser.storage.extraVolumes.0.emptyDir", {"medium": "Memory"}),
        "singleuser.storage.extraVolumes",
        "no sizeLimit",
    ),
    "shm above memory": (
        VALUES,
        put("singleuser.storage.extraVolumes.0.emptyDir.sizeLimit", "64Gi"),
        "singleuser.storage.extraVolumes",
        "larger",
    ),
    "another command": (
        VALUES,
        put("singleuser.cmd", "jupyterhub-singleuser"),
        "singleuser.cmd",
        "does not start the labs",
    ),
    "another folder": (
        VALUES,
        put("hub.config.KubeSpawner.working_dir", "/tmp"),
        "hub.config.KubeSpawner.working_dir",
        "is run in /tmp",
    ),
    "root": (VALUES, put("singleuser.uid", 0), "singleuser.uid", "runs as user 0"),
    "more rights": (
        VALUES,
        put("singleuser.allowPrivilegeEscalation", True),
        "singleuser.allowPrivilegeEscalation",
        "more rights",
    ),
    "capabilities": (
        VALUES,
        drop("hub.config.KubeSpawner.container_security_context.capabilities"),
        "hub.config.KubeSpawner.container_security_context",
        "capabilities",
    ),
    "no gpu": (VALUES, drop(f"{GPU}.extra_resource_limits"), f"{GPU}.extra_resource_limits", "asks for none"),
    "no node selection": (
        VALUES,
        drop(f"{GPU}.node_affinity_required"),
        f"{GPU}.node_affinity_required",
        "gpu.compute.major",
    ),
    "no driver selection": (
        VALUES,
        put(f"{GPU}.node_affinity_required", [{"matchExpressions": [{"key": cluster.MAJOR, "operator": "Exists"}]}]),
        f"{GPU}.node_affinity_required",
        "driver-version.major",
    ),
    "a card without code": (
        VALUES,
        put(f"{GPU}.node_affinity_required.0.matchExpressions.0.values", ["6", "8"]),
        f"{GPU}.node_affinity_required",
        "a GPU of 6.0, 6.1",
    ),
    "a cpu's gpu": (
        VALUES,
        put(f"{OVER}.extra_resource_limits", {cluster.GPU: "1"}),
        f"{OVER}.extra_resource_limits",
        "on the CPU",
    ),
    "another machine": (
        VALUES,
        put("singleuser.nodeSelector.kubernetes~io/arch", "arm64"),
        "singleuser.nodeSelector",
        "for amd64",
    ),
    # our rules for the rest of the values
    "culling off": (VALUES, put("cull.enabled", False), "cull.enabled", "until somebody stops"),
    "culling late": (VALUES, put("cull.timeout", 90_000), "cull.timeout", "25 hours"),
    "no hook puller": (VALUES, put("prePuller.hook.enabled", False), "prePuller.hook.enabled", "before students are"),
    "no continuous puller": (
        VALUES,
        put("prePuller.continuous.enabled", False),
        "prePuller.continuous.enabled",
        "not on the nodes",
    ),
    "no profile puller": (
        VALUES,
        put("prePuller.pullProfileListImages", False),
        "prePuller.pullProfileListImages",
        "not on the nodes",
    ),
    "open network": (
        VALUES,
        put("singleuser.networkPolicy.enabled", False),
        "singleuser.networkPolicy.enabled",
        "reach each other",
    ),
    "open metadata": (
        VALUES,
        put("singleuser.networkPolicy.egressAllowRules.cloudMetadataServer", True),
        "singleuser.networkPolicy.egressAllowRules.cloudMetadataServer",
        "credentials",
    ),
    "plain ingress": (VALUES, put("ingress", {"enabled": True, "hosts": ["a.b"]}), "ingress.tls", "unencrypted"),
    "nothing kept": (VALUES, put("singleuser.storage.type", "none"), "singleuser.storage.type", "is gone"),
    "kept elsewhere": (
        VALUES,
        put("singleuser.storage.homeMountPath", "/home/jovyan"),
        "singleuser.storage.homeMountPath",
        "not kept",
    ),
    "anybody": (
        VALUES,
        put("hub.config.JupyterHub.authenticator_class", "dummy"),
        "hub.config.JupyterHub.authenticator_class",
        "anybody",
    ),
    "a password": (VALUES, put("hub.db.password", "hunter2"), "hub.db.password", "a secret would stand here"),
    "a token": (VALUES, put("proxy.secretToken", "ab" * 32), "proxy.secretToken", "a secret would stand here"),
    "a variable": (VALUES, put("hub.extraEnv.GITHUB_SECRET", "abc"), "hub.extraEnv.GITHUB_SECRET", "a secret"),
    "a key by its look": (VALUES, put("custom.note", "-----BEGIN PRIVATE KEY-----"), "custom.note", "a secret"),
    "a secret in code": (
        VALUES,
        put("hub.extraConfig.mine", 'c.SharedPasswordAuthenticator.user_password = "x"'),
        "hub.extraConfig.mine: c.SharedPasswordAuthenticator.user_password",
        "a secret",
    ),
    # Kubernetes' schemas
    "misspelt field": (JOB, put("spec.backofLimitPerIndex", 1), "spec.backofLimitPerIndex", "unknown key"),
    "field of a wrong type": (JOB, put("spec.completions", "many"), "spec.completions", "it is text"),
    "no containers": (JOB, drop(f"{SPEC}.containers"), f"{SPEC}.containers", "is missing"),
    "no status": (
        JOB,
        drop("spec.podFailurePolicy.rules.0.onPodConditions.0.status"),
        "spec.podFailurePolicy.rules.0.onPodConditions.0.status",
        "(Kubernetes 1.32, 1.33",
    ),
    "another version": (JOB, put("apiVersion", "batch/v9"), "kind", "no Job of batch/v9"),
    "another kind": (JOB, put("kind", "CronJob"), "kind", "it is a CronJob"),
    # our rules for Jobs
    "restart policy": (JOB, put(f"{SPEC}.restartPolicy", "Always"), f"{SPEC}.restartPolicy", "in the same pod again"),
    "no index": (JOB, put("spec.completionMode", "NonIndexed"), "spec.completionMode", "no index"),
    "shared retries": (JOB, drop("spec.backoffLimitPerIndex"), "spec.backoffLimitPerIndex", "retries are shared"),
    "an early end": (JOB, put("spec.maxFailedIndexes", 2), "spec.maxFailedIndexes", "end the Job before"),
    "no failure policy": (JOB, drop("spec.podFailurePolicy"), "spec.podFailurePolicy", "drained node"),
    "no deadline": (JOB, drop("spec.activeDeadlineSeconds"), "spec.activeDeadlineSeconds", "for ever"),
    "pods that stay": (JOB, drop("spec.ttlSecondsAfterFinished"), "spec.ttlSecondsAfterFinished", "for ever"),
    "a Job's image": (JOB, put(f"{POD}.image", "example.org/lab/cpu"), f"{POD}.image", "no image by digest"),
    "a Job's limit": (
        JOB,
        drop(f"{POD}.resources.limits.memory"),
        f"{POD}.resources.limits.memory",
        "no limit of memory",
    ),
    "a Job's shm": (JOB, drop(f"{SPEC}.volumes.1"), f"{SPEC}.volumes", "no emptyDir"),
    "a Job's root": (JOB, put(f"{SPEC}.securityContext.runAsUser", 0), f"{SPEC}.securityContext", "user 0"),
    "a Job's rights": (
        JOB,
        drop(f"{POD}.securityContext.allowPrivilegeEscalation"),
        f"{POD}.securityContext",
        "more rights",
    ),
    "a Job's gpu": (
        GPU_JOB,
        drop(f"{POD}.resources.limits.nvidia~com/gpu"),
        f"{POD}.resources.limits",
        "asks for none",
    ),
    "a Job's nodes": (GPU_JOB, drop(f"{SPEC}.affinity"), f"{SPEC}.affinity", "gpu.compute.major"),
    "a Job's machine": (JOB, drop(f"{SPEC}.nodeSelector"), f"{SPEC}.nodeSelector", "for amd64"),
    "no claim": (
        JOB,
        put(f"{SPEC}.volumes.0", {"name": "results", "emptyDir": {}}),
        f"{SPEC}.volumes",
        "lost with the pod",
    ),
    "completions": (JOB, put("spec.completions", 19), "spec.completions", "20 labs are named"),
    "a lab missing": (
        JOB,
        lambda data: data["spec"]["template"]["spec"]["containers"][0]["command"].remove("08_gpt"),
        f"{POD}.command",
        "lab 08_gpt is missing",
    ),
    "no such lab": (JOB, put(f"{POD}.command.4", "01_tensor"), f"{POD}.command", "no lab is called 01_tensor"),
    "a Job's command": (JOB, put(f"{POD}.command", ["sleep", "60"]), f"{POD}.command", "lab of its index"),
    "a Job's secret": (
        JOB,
        put(f"{POD}.env", [{"name": "API_TOKEN", "value": "abc"}]),
        f"{POD}.env.0.value",
        "a secret would stand here",
    ),
    # sizes, the first image, what the hub reads
    "a wrong unit": (
        VALUES,
        put("singleuser.memory.limit", "2GB"),
        "singleuser.memory.limit",
        "no size that can be read",
    ),
    "a Job's wrong unit": (
        JOB,
        put(f"{POD}.resources.limits.memory", "2GB"),
        f"{POD}.resources.limits.memory",
        "no size that can be read",
    ),
    "shm of a wrong unit": (
        VALUES,
        put("singleuser.storage.extraVolumes.0.emptyDir.sizeLimit", "1GB"),
        "singleuser.storage.extraVolumes",
        "cannot be read",
    ),
    "no quantity": (
        VALUES,
        put("singleuser.storage.capacity", "5GB"),
        "singleuser.storage.capacity",
        "no quantity of Kubernetes",
    ),
    "the first image": (VALUES, put("singleuser.image.tag", "latest"), "singleuser.image.tag", "none of the published"),
    "another digest": (VALUES, put("singleuser.image.tag", "f" * 64), "singleuser.image.tag", "none of the published"),
    "a variable that is not set": (
        VALUES,
        drop("hub.extraEnv.LABRIG_USER_PASSWORD"),
        "hub.extraEnv.LABRIG_USER_PASSWORD",
        "nothing sets it",
    ),
    "another authenticator": (
        VALUES,
        put("hub.config.JupyterHub.authenticator_class", "shared-pasword"),
        "hub.config.JupyterHub.authenticator_class",
        "there is no shared-pasword",
    ),
    # claims
    "an unknown access mode": (
        CLAIM,
        put("spec.accessModes.0", "ReadWriteMny"),
        "spec.accessModes.0",
        "no access mode",
    ),
    "no access mode": (CLAIM, put("spec.accessModes", []), "spec.accessModes", "no access mode is named"),
    "a claim's quantity": (
        CLAIM,
        put("spec.resources.requests.storage", "5GB"),
        "spec.resources.requests.storage",
        "no quantity of Kubernetes",
    ),
    "no size of a claim": (
        CLAIM,
        drop("spec.resources.requests.storage"),
        "spec.resources.requests.storage",
        "no size is named",
    ),
    "a claim's namespace": (CLAIM, put("metadata.namespace", "other"), "metadata.namespace", "namespace is labrig"),
    "a Job's namespace": (JOB, put("metadata.namespace", "other"), "metadata.namespace", "namespace is labrig"),
    "another claim": (
        JOB,
        put(f"{SPEC}.volumes.0.persistentVolumeClaim.claimName", "results"),
        f"{SPEC}.volumes.0.persistentVolumeClaim.claimName",
        "not that of [cluster] results",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_rejected_by_name(root: Path, files: dict[str, str], name: str) -> None:
    file, change, key, words = MUTATIONS[name]
    report = check(root, {file: changed(files[file], change)})
    found = [one for one in errors(report) if one.file == file and one.key.startswith(key) and words in one.what]
    assert found, errors(report)
    assert all(one.fix for one in found)
    with pytest.raises(VerifyError):
        report.require_good()
    assert "hunter2" not in json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (put("singleuser.memmory", {}), "singleuser.memmory", "unknown key"),
        (put("hub.baseUrl", 7), "hub.baseUrl", "it is a number"),
        (put("hub.baseUrl", None), "hub.baseUrl", "is missing"),  # null takes the chart's default away
        (
            put("singleuser.cloudMetadata", {"blockWithIptables": False, "ip": None}),
            "singleuser.cloudMetadata.ip",
            "is missing",
        ),
    ],
)
def test_a_mutation_is_rejected_by_a_charts_own_schema(
    root: Path, files: dict[str, str], stand_in: Path, change: Change, key: str, words: str
) -> None:
    found = errors(check(root, {VALUES: changed(files[VALUES], change)}, path=stand_in))
    assert [(one.key, words in one.what) for one in found] == [(key, True)]


def test_a_claim_that_no_file_makes_is_named(root: Path, files: dict[str, str]) -> None:
    renamed = changed(files[CLAIM], put("metadata.name", "labrig-result"))
    found = errors(check(root, {JOB: files[JOB], CLAIM: renamed}))
    assert [(one.file, one.key) for one in found] == [(JOB, f"{SPEC}.volumes.0.persistentVolumeClaim.claimName")]
    assert "has the name labrig-results" in found[0].what and "labs-results.yaml makes labrig-result:" in found[0].fix
    alone = check(root, {JOB: files[JOB]})  # it may be there already
    assert [(one.level, one.file, one.key) for one in alone.findings] == [("warning", JOB, found[0].key)]
    assert not check(root, {JOB: files[JOB], CLAIM: files[CLAIM]}).findings


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (put("spec.accessModes", ["ReadWriteOnce"]), "spec.accessModes", "several nodes"),
        (drop("metadata.namespace"), "metadata.namespace", "no namespace is named"),
    ],
)
def test_what_can_be_meant_of_a_claim_is_a_warning(
    root: Path, files: dict[str, str], change: Change, key: str, words: str
) -> None:
    found = check(root, {CLAIM: changed(files[CLAIM], change)}).findings
    assert [(one.level, one.key, words in one.what) for one in found] == [("warning", key, True)]


def test_the_secret_is_the_one_that_the_first_lines_make(root: Path) -> None:
    login = settings.Login(admins=("teacher",))
    text = offered.files(root, settings.Settings(login=login))[VALUES]
    assert not errors(check(root, {VALUES: text}))
    reference = "hub.extraEnv.LABRIG_USER_PASSWORD.valueFrom.secretKeyRef.name"
    one = check(root, {VALUES: text.replace("name: labrig-hub", "name: labrig-hbu", 1)})
    assert [(each.key, each.line > 0, each.fix[:16]) for each in errors(one)] == [(reference, True, "write labrig-hub")]
    assert "the first lines of this file do not make it" in errors(one)[0].what
    one = check(root, {VALUES: text.replace("key: user_password", "key: user_pasword")})
    assert [(each.key, each.line > 0, each.fix[:20]) for each in errors(one)] == [
        (reference.replace(".name", ".key"), True, "write user_password,")
    ]
    every = text.replace("name: labrig-hub", "name: other")
    assert len(errors(check(root, {VALUES: every}))) == 2
    assert not errors(check(root, {VALUES: every.replace("secret generic labrig-hub", "secret generic other")}))
    bare = changed(text, put(reference, "other"))  # without the first lines
    assert [(each.key, "others name another" in each.what) for each in errors(check(root, {VALUES: bare}))] == [
        (reference, True)
    ]


@pytest.mark.parametrize(
    ("code", "env", "missing"),
    [
        ('x = os.environ["A"]', {}, ["A"]),
        ('x = environ["A"], environ["B"]', [{"name": "A", "value": "1"}], ["B"]),
        ('x = os.environ["A"]', {"A": "1"}, []),
        ('x = os.environ.get("A"); os.environ["B"] = "1"', {}, []),
        ('x = os.environ["POD_NAMESPACE"] + os.environ["PROXY_API_SERVICE_HOST"]', {}, []),
        ("x = (", {}, []),
    ],
)
def test_a_variable_that_the_hub_reads_is_set(code: str, env: Any, missing: list[str]) -> None:
    text = yaml.safe_dump({"hub": {"extraEnv": env, "extraConfig": {"mine": code}}})
    found = list(rules.check_environment(checks.documents.read(text, VALUES)))
    assert [one.key for one in found] == [f"hub.extraEnv.{name}" for name in missing]


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000", "registry.example.org"])
def test_an_image_that_no_node_can_pull_is_named(root: Path, host: str) -> None:
    here = [replace(one, reference=one.reference.replace("registry.example.org", host)) for one in offers_of(root)]
    texts = cluster.render(root, TOLD, here)
    found = errors(checks.check(texts, here, cluster.find_labs(root), TOLD, chart.read(None)))
    places = [(one.file, one.key) for one in found if "no node of a cluster can pull" in one.what]
    assert len(places) == len(found) == (0 if host == "registry.example.org" else 6)
    if found:
        assert (JOB, f"{POD}.image") in places and (VALUES, f"{OVER}.image") in places


@pytest.mark.parametrize(
    ("file", "old", "new", "key", "near"),
    [
        (VALUES, "  storage:", "  storrage:", "singleuser.storrage", "storage"),
        (VALUES, "\nsingleuser:", "\nsingleusr:", "singleusr", "singleuser"),
        (VALUES, "    KubeSpawner:", "    KubeSpwaner:", "hub.config.KubeSpwaner", "KubeSpawner"),
        (VALUES, "  extraEnv:", "  extraEvn:", "hub.extraEvn", "extraEnv"),
        (
            VALUES,
            "extra_resource_limits:",
            "extra_resource_limts:",
            f"{GPU}.extra_resource_limts",
            "extra_resource_limits",
        ),
        (JOB, "completionMode:", "completionMod:", "spec.completionMod", "completionMode"),
        (JOB, "      containers:", "      contaners:", f"{SPEC}.contaners", "containers"),
    ],
)
def test_a_misspelt_key_is_said_without_what_follows_from_it(
    root: Path, files: dict[str, str], file: str, old: str, new: str, key: str, near: str
) -> None:
    assert old in files[file]
    found = errors(check(root, {**files, file: files[file].replace(old, new, 1)}))
    assert (found[0].key, found[0].fix) == (key, f"write {near}")
    above = key.rpartition(".")[0]
    meant = f"{above}.{near}".lstrip(".")
    assert not [one for one in found if one.key == meant or one.key.startswith(f"{meant}.")]


@pytest.mark.parametrize(
    ("wrong", "units", "right"),
    [
        ("2GB", rules.POWERS, "2G"),
        ("2Gi", rules.POWERS, "2G"),
        ("1500mb", rules.POWERS, "1500M"),
        ("5GB", rules.KUBERNETES, "5G"),
        ("5GiB", rules.KUBERNETES, "5Gi"),
        ("1.5gib", rules.KUBERNETES, "1.5Gi"),
        ("much", rules.CORES, "a number with one of m behind it"),
        ("one", {"": 1}, "a number"),
        (True, rules.POWERS, "a number with one of K, M, G, T behind it"),
    ],
)
def test_a_size_of_a_wrong_unit_is_corrected(wrong: Any, units: dict[str, float], right: str) -> None:
    assert rules.size_of(wrong, units) is None
    assert rules.correct(wrong, units) == right


@pytest.mark.parametrize(
    ("said", "size"),
    [("5Gi", 5 << 30), ("1e3", 1000), ("1E", 10**18), ("5.", 5), ("1Ei", 1 << 60), ("5Gb", None), ("", None)],
)
def test_a_quantity_is_read_as_kubernetes_does(said: str, size: float | None) -> None:
    assert rules.kubernetes(said) == size


def test_rows_are_in_plain_words(root: Path, files: dict[str, str]) -> None:
    report = check(root, {VALUES: changed(files[VALUES], put("singleuser.memory.guarantee", "8G"))})
    assert "(8192 MiB) is above the limit (2048 MiB)" in errors(report)[0].what
    report = check(root, {VALUES: changed(files[VALUES], put("singleuser.memory.limit", "2GB"))})
    assert [(one.key, one.fix) for one in errors(report)] == [("singleuser.memory.limit", "write 2G")]
    assert report.summary().startswith("values.yaml: 1 error, 4 warnings\n")
    with pytest.raises(VerifyError, match="1 error in 1 file"):
        report.require_good()
    wrong = put("hub.config.JupyterHub.authenticator_class", "shared-pasword")
    assert errors(check(root, {VALUES: changed(files[VALUES], wrong)}))[0].fix == "write shared-password"


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [1\nc: 2\n", "a: 1\nb: 2\na: 3\n", "a: 1\nb: &b 1\nc: *b\n", "a: 1\nb: 2\nc: \x00\n"]
)
def test_what_is_no_yaml_has_its_line_and_its_files_name(root: Path, text: str) -> None:
    found = errors(check(root, {VALUES: text}))
    assert [(one.line, one.what.startswith("values.yaml is no YAML")) for one in found] == [(3, True)]
    assert "<unicode string>" not in found[0].what


KEYS = [row["key"] for row in chart.matrix.read_table(chart.matrix.DATA / "chart.tsv") if row["key"].count(".") < 3]
CLOSED = {row["key"] for row in chart.matrix.read_table(chart.matrix.DATA / "chart.tsv") if row["inside"] == "closed"}


@given(key=st.sampled_from([one for one in KEYS if one.rpartition(".")[0] in {*CLOSED, ""}]), data=st.data())
@hypothesis(max_examples=60, deadline=None)
def test_any_misspelt_key_is_named(key: str, data: st.DataObject) -> None:
    from jsonschema import Draft7Validator

    above, _, last = key.rpartition(".")
    place = data.draw(st.integers(0, len(last) - 1))
    wrong = last[:place] + data.draw(st.sampled_from([one for one in "qxz_" if one != last[place]])) + last[place + 1 :]
    nested: dict[str, Any] = {wrong: None}
    for part in reversed([part for part in above.split(".") if part]):
        nested = {part: nested}
    document = checks.documents.read(yaml.safe_dump(nested), VALUES)
    found = [
        one
        for error in Draft7Validator(chart.of_table()).iter_errors(nested)
        for one in checks._of_error(document, error)
    ]
    assert [one.what for one in found] == [f"unknown key {wrong}"]


def test_a_sites_authenticator_is_looked_at_where_it_is_installed(root: Path) -> None:
    login = settings.Login(
        authenticator="jupyterhub.auth.NullAuthenticator", settings={"any_allow_confg": True}, users=("ada",)
    )
    told = settings.Settings(login=login)
    found = errors(check(root, offered.files(root, told), told))
    assert "hub.config.NullAuthenticator.any_allow_confg" in [one.key for one in found]
    told = settings.Settings(login=settings.Login(authenticator="nowhere.NoSuch", settings={"allow_all": True}))
    report = check(root, offered.files(root, told), told)
    assert not errors(report)
    said = next(one for one in report.findings if "NoSuch" in one.what)
    assert said.level == "warning" and "not looked at" in said.what


@pytest.mark.parametrize(("hub", "words"), [("5.5.0", "a login and a kernel worked"), ("4.1.0", "not tried together")])
def test_another_major_version_of_the_hub_is_a_warning(root: Path, hub: str, words: str) -> None:
    document = checks.documents.read("singleuser: {}\n", VALUES)
    found = list(rules.check_hub(document, offered.offered(root), "chart 1", hub))
    assert [(one.level, words in one.what) for one in found] == [("warning", True)] * 3
    assert not list(rules.check_hub(document, offered.offered(root), "chart 1", "6.0.0"))
    none = [replace(one, hub="") for one in offered.offered(root)]
    assert {one.level for one in rules.check_hub(document, none, "chart 1", hub)} == {"error"}


def test_what_serve_toml_says_on_purpose_is_a_warning(root: Path) -> None:
    told = settings.Settings(student=settings.Student(idle=0))
    report = check(root, offered.files(root, told), told)
    assert not errors(report)
    assert "cull.enabled" in [one.key for one in report.findings]


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hub: [", "values.yaml is no YAML that can be taken: while parsing a flow node, expected"),
        ("hub: {a: 1}\nhub: {b: 2}\n", "hub in lines 1 and 2"),
        ("a: 1\n---\nb: 2\n", "2 documents"),
        (BOMB, "the alias *a"),
        ("a: 1\n" * 200_000, "256 KiB"),
        ("[" * 5000 + "]" * 5000, "levels"),
        ("- a\n- b\n", "it is a list"),
        ("", "it is nothing"),
        ("just text", "it is text"),
        ("a: !!python/object/apply:os.system [id]\n", "python/object"),
        ("kind: Job\napiVersion: batch/v1\n", "an object of Kubernetes"),
        ("a: \x00", "special characters"),
        ("a: 2026-01-01\ncull: {timeout: 2026-01-01}\n", "it is a date"),
    ],
)
def test_a_file_that_is_something_else_is_named(root: Path, text: str, words: str) -> None:
    report = check(root, {VALUES: text})
    assert any(words in one.what and one.file == VALUES for one in errors(report)), report.findings


@pytest.mark.parametrize(
    "text", ["", "a", "kind: [a]\napiVersion: 3\n", "kind: ../x\napiVersion: v1\n", "kind: Job\napiVersion: v1\n"]
)
def test_an_object_that_is_none_is_named(root: Path, text: str) -> None:
    assert [one.key for one in errors(check(root, {JOB: text}))] == ["kind"]


@pytest.mark.parametrize(
    "text",
    [
        "hub: 3\nsingleuser: [a]\ncull: x\n",
        "singleuser: {profileList: [a, {kubespawner_override: 3}]}\n",
        "singleuser: {storage: {extraVolumes: {a: 3}}, memory: 3}\nhub: {extraConfig: 3, config: {A: 3}}\n",
    ],
)
def test_values_of_any_shape_make_no_traceback(root: Path, text: str) -> None:
    assert errors(check(root, {VALUES: text}))
    assert errors(check(root, {JOB: "kind: Job\napiVersion: batch/v1\nspec: {template: {spec: {containers: 3}}}\n"}))


@pytest.mark.parametrize(
    "rest",
    [
        "metadata: [a]\nspec: 3\n",
        "metadata: {name: [a], namespace: {b: 1}}\nspec: {accessModes: [3, {a: 1}]}\n",
        "spec: {accessModes: [a], resources: {requests: {storage: [1]}}}\n",
        "spec: {accessModes: ReadWriteMany, resources: []}\n",
    ],
)
def test_claims_of_any_shape_make_no_traceback(root: Path, files: dict[str, str], rest: str) -> None:
    report = check(root, {JOB: files[JOB], CLAIM: f"kind: PersistentVolumeClaim\napiVersion: v1\n{rest}"})
    assert {one.file for one in errors(report)} == {JOB, CLAIM}
    volumes = "kind: Job\napiVersion: batch/v1\nspec: {template: {spec: {volumes: [a, {persistentVolumeClaim: 3}]}}}\n"
    assert errors(check(root, {JOB: volumes}))
    env = (
        "hub: {extraEnv: [3, {name: a, valueFrom: 3}, {valueFrom: {secretKeyRef: {name: [1]}}}], extraConfig: {a: 3}}\n"
    )
    check(root, {VALUES: env + "singleuser: {image: {name: '[', tag: 3}, profileList: [{a: 1}]}\n"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.JupyterHub.prot = 8000", "no trait prot"),
        ("c.JupyterHub.port = 'many'", "str does not fit"),
        ("c.DockerSpwaner.mem_limit = 'x'", "no class DockerSpwaner"),
        ("c.DockerSpawner.allowed_images = {'cpu': 'example.org/x'}", "none of the published"),
        ("c.DockerSpawner.image = 'sha256:00'", "none of the published"),
        ("c.ConfigurableHTTPProxy.auth_token = 'abc'", "a secret"),
        ("c.JupyterHub.port = (", "no Python"),
        ("c.DockerSpawner.mem_limit += 1; c.DockerSpawner.mem_limt += 1", "no trait mem_limt"),
    ],
)
def test_a_hubs_configuration_is_read_and_not_run(root: Path, line: str, words: str) -> None:
    text = f"import os\nos.abort()\nc = get_config()\n{line}\n"
    found = list(checks.check_config(text, checks.CONFIG, offered.offered(root)))
    assert [words in one.what for one in found] == [True]
    assert found[0].line == 4


def test_a_hubs_configuration_that_is_right_passes(root: Path) -> None:
    one = offered.offered(root)[0]
    text = (
        "c.JupyterHub.port = 8000\n"
        f"c.DockerSpawner.allowed_images = {{'cpu': {one.config!r}, 'b': {one.reference!r}}}\n"
        "c.DockerSpawner.mem_limit = '2G'\nc.ConfigurableHTTPProxy.auth_token = read()\nx.y = 3\nc.a = 1\n"
    )
    assert not list(checks.check_config(text, checks.CONFIG, offered.offered(root)))


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ({"Chart.yaml": "name: x", "values.yaml": "{}", "values.schema.json": "{}"}, "of the name 'x'"),
        ({"Chart.yaml": "name: jupyterhub", "values.yaml": "{}"}, "no values.schema.json"),
        ({"Chart.yaml": "name: jupyterhub", "values.yaml": "[", "values.schema.json": "{}"}, "values.yaml"),
        ({"Chart.yaml": "name: jupyterhub", "values.yaml": "{}", "values.schema.json": "{"}, "values.schema.json"),
        ({}, "no Chart.yaml"),
    ],
)
def test_a_chart_that_is_none_is_said(tmp_path: Path, inside: dict[str, str], words: str) -> None:
    for name, text in inside.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        chart.read(tmp_path)
    assert words in error.value.found


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00"])
def test_an_archive_that_is_damaged_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chart.tgz").write_bytes(content)
    for path in (tmp_path / "chart.tgz", tmp_path / "missing.tgz"):
        with pytest.raises(UsageError, match="no chart that can be read"):
            chart.read(path)


def test_a_folder_is_checked_as_somebody_has_edited_it(root: Path, files: dict[str, str], tmp_path: Path) -> None:
    cluster.write(files, tmp_path)
    (tmp_path / "mine.yaml").write_text("kind: ConfigMap\napiVersion: v1\nmetadata: {name: mine}\ndata: {a: 1}\n")
    report = check(root, checks.read_folder(tmp_path))
    assert [(one.file, one.key) for one in errors(report)] == [("mine.yaml", "data.a")]
    (tmp_path / "values.yaml").unlink()
    with pytest.raises(UsageError, match=re.escape("holds no values.yaml")):
        checks.read_folder(tmp_path)


def test_without_the_extra_it_is_said_how_to_get_it(
    root: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("yaml", "jsonschema", "kubernetes_validate", "kubespawner"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            traits._traits.cache_clear()
            with pytest.raises(HostError, match="an extra") as error:
                check(root, files)
            assert error.value.fix == "make serve"
