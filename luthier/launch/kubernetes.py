"""Kubernetes: a Job, or a TrainJob of Kubeflow Trainer, through `kubectl`.

The command is a list and no shell reads it. Every string is quoted where YAML needs it, so no value can
become another key. Applying the same name twice is one job.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from luthier.launch.programs import call
from luthier.launch.settings import LaunchSettings
from luthier.launch.task import Launcher, Spec, Status, Task, check_task
from luthier.recipe.emit import dump_yaml
from luthier.runtime.atomic import write_text

__all__ = ["Kubernetes", "job", "kube_name", "manifest", "plain", "pod_of", "train_job"]

FAIL_AT_ONCE = [1, 2, 3, 4, 5, 6]
"""Exit codes of `luthier run` that another attempt would give again; see docs/errors.md."""


def kube_name(name: str) -> str:
    """A name Kubernetes takes: what was changed in it is made up for by a hash."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40].strip("-")
    return f"{plain or 'run'}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def manifest(task: Task, settings: LaunchSettings) -> dict[str, Any]:
    """The object that is applied.

    Raises:
        RecipeError: a name that is none.
    """
    check_task(task)
    form = train_job if settings.kubernetes.form == "trainjob" else job
    return form(task, settings, _command(task))


def _metadata(task: Spec, settings: LaunchSettings) -> dict[str, Any]:
    name = kube_name(task.name)
    return {
        "name": name,
        "namespace": settings.kubernetes.namespace,
        "labels": {"app.kubernetes.io/name": "luthier", "app.kubernetes.io/instance": name},
        "annotations": {"luthier/task": task.name},
    }


def _command(task: Task) -> list[str]:
    redirect = ["-m", "luthier.launch.here", "--out", str(task.out), "--err", str(task.err), "--"]
    return [plain(part) for part in (task.command[0], *redirect, *task.command)]


def _env(task: Spec, settings: LaunchSettings) -> list[dict[str, Any]]:
    # `$(NAME)` in a value would be expanded by Kubernetes; `$$(` stands for `$(`.
    given = [{"name": key, "value": plain(value)} for key, value in sorted(task.environment.items())]
    secret = settings.kubernetes.secret
    if secret is None:
        return given
    return given + [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
        for key in task.secrets
    ]


def plain(text: str) -> str:
    """A text in which Kubernetes expands nothing."""
    return text.replace("$", "$$")


def _needs(task: Spec, settings: LaunchSettings) -> dict[str, Any]:
    needs = task.resources
    memory = f"{-(-needs.memory_bytes // (1 << 20))}Mi"
    gpu = {settings.kubernetes.gpu_resource: str(needs.gpus)} if needs.gpus else {}
    return {"requests": {"cpu": str(needs.cpus), "memory": memory, **gpu}, "limits": {"memory": memory, **gpu}}


def _container(task: Spec, settings: LaunchSettings, command: Sequence[str]) -> dict[str, Any]:
    volumes = settings.kubernetes.volumes
    mounts = [
        {"name": f"volume-{index}", "mountPath": one.path, **({"subPath": one.sub_path} if one.sub_path else {})}
        for index, one in enumerate(volumes)
    ]
    return {
        "name": "run",
        "image": settings.kubernetes.image,
        "command": list(command),
        "workingDir": str(task.folder),
        "env": _env(task, settings),
        "resources": _needs(task, settings),
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def pod_of(task: Spec, settings: LaunchSettings, command: Sequence[str]) -> dict[str, Any]:
    """The pod that runs a command; `$(NAME)` in it is a variable of the container, `$$(` is `$(`."""
    kube = settings.kubernetes
    claims = [
        {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": one.claim}}
        for index, one in enumerate(kube.volumes)
    ]
    return {
        "restartPolicy": "Never",
        # Then a process that has not set a handler yet is not number 1, and SIGTERM ends it.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": kube.grace_seconds,
        "automountServiceAccountToken": False,
        **({"serviceAccountName": kube.service_account} if kube.service_account else {}),
        **({"priorityClassName": kube.priority_class} if kube.priority_class else {}),
        **({"nodeSelector": dict(kube.node_selector)} if kube.node_selector else {}),
        "securityContext": {"runAsNonRoot": True, "runAsUser": kube.user, "runAsGroup": kube.user, "fsGroup": kube.user,
                            "fsGroupChangePolicy": "OnRootMismatch"},
        "containers": [_container(task, settings, command)],
        "volumes": [*claims, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }  # fmt: skip


def job(task: Spec, settings: LaunchSettings, command: Sequence[str]) -> dict[str, Any]:
    """batch/v1, one pod."""
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "run", "operator": "In", "values": FAIL_AT_ONCE}},
    ]
    labels = _metadata(task, settings)["labels"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(task, settings),
        "spec": {
            "backoffLimit": settings.kubernetes.restarts,
            "activeDeadlineSeconds": task.resources.seconds,
            "podFailurePolicy": {"rules": rules},
            "podReplacementPolicy": "Failed",
            "template": {"metadata": {"labels": labels}, "spec": pod_of(task, settings, command)},
        },
    }


def train_job(task: Spec, settings: LaunchSettings, command: Sequence[str]) -> dict[str, Any]:
    """trainer.kubeflow.org/v1alpha1, one node."""
    pod = pod_of(task, settings, command)
    container = pod["containers"][0]
    kept = ("serviceAccountName", "nodeSelector", "securityContext", "volumes")
    override = {key: pod[key] for key in kept if key in pod}
    override["containers"] = [{"name": "node", "volumeMounts": container["volumeMounts"]}]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(task, settings),
        "spec": {
            "runtimeRef": {"name": settings.kubernetes.runtime},
            "trainer": {
                "image": container["image"], "command": container["command"], "numNodes": 1,
                "env": container["env"], "resourcesPerNode": container["resources"],
            },
            **_patch(override, settings),
        },
    }  # fmt: skip


def _patch(pod: dict[str, Any], settings: LaunchSettings) -> dict[str, Any]:
    """What the pods of the runtime get besides; Trainer 2.2 has another key for it."""
    if settings.kubernetes.patches == "podTemplateOverrides":
        return {"podTemplateOverrides": [{"targetJobs": [{"name": "node"}], "spec": pod}]}
    replicated = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    spec = {"template": {"spec": {"replicatedJobs": [replicated]}}}
    return {"runtimePatches": [{"manager": "luthier", "trainingRuntimeSpec": spec}]}


class Kubernetes(Launcher):
    """Hand tasks to a cluster. Home, runs and models are volumes mounted at the same paths as here."""

    remote = True

    def __init__(self, settings: LaunchSettings) -> None:
        self._settings = settings
        self._kind = "trainjob" if settings.kubernetes.form == "trainjob" else "job"

    def files(self, task: Task) -> dict[str, str]:
        """The object as YAML."""
        return {f"{kube_name(task.name)}.yaml": dump_yaml(manifest(task, self._settings))}

    def submit(self, task: Task) -> str:
        """`kubectl apply`; the handle is the object's name."""
        (name, text), *_ = self.files(task).items()
        file = task.exit_file.parent / name
        write_text(file, text)
        handle = kube_name(task.name)
        status = self.status(handle)
        if status.phase == "ended":  # an object of an earlier attempt: it would not run again
            self.stop(handle, hard=True)
        self._kubectl("apply", "-f", str(file))
        return handle

    def find(self, task: Task) -> str | None:
        """The object of this name, if it has not ended."""
        handle = kube_name(task.name)
        return handle if self.status(handle).phase in ("waiting", "running") else None

    def status(self, handle: str) -> Status:
        """From the conditions of the object, and the exit code of its last pod."""
        said = self._kubectl("get", self._kind, handle, "--ignore-not-found", "-o", "json")
        if not said.strip():
            return Status(phase="unknown", detail="no such object")
        state = json.loads(said).get("status", {})
        true = {one["type"]: one for one in state.get("conditions", []) if one.get("status") == "True"}
        if "Complete" in true:
            return Status(phase="ended", exit_code=0, detail="Complete")
        if "Failed" in true:
            return Status(phase="ended", exit_code=self._exit_code(handle), detail=true["Failed"].get("reason", ""))
        active = state.get("active") or any(one.get("active") for one in state.get("jobsStatus", []))
        return Status(phase="running" if active else "waiting")

    def _exit_code(self, handle: str) -> int | None:
        said = self._kubectl("get", "pods", "-l", self._pods_of(handle), "-o", "json")
        codes = [
            (pod["metadata"].get("creationTimestamp", ""), ended["exitCode"])
            for pod in json.loads(said or "{}").get("items", [])
            for one in pod.get("status", {}).get("containerStatuses", [])
            if (ended := one.get("state", {}).get("terminated")) is not None
        ]
        code = max(codes)[1] if codes else None
        return code if code is None or code <= 128 or code == 130 else 128 - code

    def stop(self, handle: str, *, hard: bool) -> None:
        """Delete the object: its pod gets SIGTERM, and SIGKILL after the grace time, or at once if `hard`."""
        if hard:
            self._kubectl("delete", "pods", "-l", self._pods_of(handle), "--now", "--wait=false")
        wait = "--wait=true" if hard else "--wait=false"
        self._kubectl("delete", self._kind, handle, "--ignore-not-found", "--cascade=foreground", wait, "--timeout=45s")

    def _pods_of(self, handle: str) -> str:
        label = "jobset.sigs.k8s.io/jobset-name" if self._kind == "trainjob" else "app.kubernetes.io/instance"
        return f"{label}={handle}"

    def _kubectl(self, *arguments: str) -> str:
        return call(["kubectl", "--namespace", self._settings.kubernetes.namespace, *arguments]) or ""
