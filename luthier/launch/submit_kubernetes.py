"""Kubernetes: the recipe as a ConfigMap, and a Job of one pod, an indexed Job with a headless service, or a TrainJob.

The runtime of a TrainJob sets PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR and PET_MASTER_PORT in the
container, and makes the service. They are what torchrun would read; `luthier launch` is given them as arguments,
because Kubernetes puts `$(NAME)` of the container's variables into its command.

Sources: Kubernetes, Job with Pod-to-Pod Communication; Kubeflow Trainer, pkg/runtime/framework/plugins/torch.
"""

from __future__ import annotations

from typing import Any

from luthier.launch.kubernetes import job, kube_name, plain, train_job
from luthier.launch.settings import LaunchSettings
from luthier.launch.task import Spec
from luthier.recipe.emit import dump_yaml

__all__ = ["MOUNTED_RECIPE", "kubernetes_file"]

MOUNTED_RECIPE = "/etc/luthier/recipe.yaml"
"""Where the recipe is in the container."""
PORT = 29500
NODE = "LUTHIER_NODE"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def kubernetes_file(spec: Spec, settings: LaunchSettings, *, nodes: int, recipe_text: str) -> str:
    """The documents, in the order in which they are made."""
    name = kube_name(spec.name)
    config = {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": settings.kubernetes.namespace},
        "data": {"recipe.yaml": recipe_text},
    }  # fmt: skip
    documents: list[dict[str, Any]] = [config]
    if settings.kubernetes.form == "trainjob":
        documents.append(_several_nodes(spec, settings, nodes=nodes))
    elif nodes == 1:
        documents.append(job(spec, settings, [plain(part) for part in spec.command]))
    else:
        documents += [_service(name, settings), _indexed(spec, settings, nodes=nodes)]
    _mount_recipe(documents[-1], name)
    return "---\n".join(dump_yaml(document, blocks=True) for document in documents)


def _service(name: str, settings: LaunchSettings) -> dict[str, Any]:
    """The names of the pods, from before they are ready."""
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": settings.kubernetes.namespace},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True,
                 "selector": {"app.kubernetes.io/instance": name}, "ports": [{"name": "rendezvous", "port": PORT}]},
    }  # fmt: skip


def _indexed(spec: Spec, settings: LaunchSettings, *, nodes: int) -> dict[str, Any]:
    name = kube_name(spec.name)
    command = [plain(part) for part in spec.command]
    command += ["--nodes", str(nodes), "--node-rank", f"$({NODE})", "--rendezvous", f"{name}-0.{name}:{PORT}"]
    made = job(spec, settings, command)
    # When one pod ends, all do: each attempt costs as many failures as there are pods.
    limit = settings.kubernetes.restarts * nodes
    made["spec"] = {
        "completionMode": "Indexed", "completions": nodes, "parallelism": nodes, **made["spec"], "backoffLimit": limit,
    }  # fmt: skip
    pod = made["spec"]["template"]["spec"]
    pod["subdomain"] = name
    pod["containers"][0]["env"].append({"name": NODE, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}})
    pod["containers"][0]["ports"] = [{"name": "rendezvous", "containerPort": PORT}]
    return made


def _several_nodes(spec: Spec, settings: LaunchSettings, *, nodes: int) -> dict[str, Any]:
    """`--num-gpus` or `--num-processes` is the last option of the command, and becomes the runtime's."""
    *front, processes = spec.command
    command = [*(plain(part) for part in front), "$(PET_NPROC_PER_NODE)", "--nodes", "$(PET_NNODES)"]
    command += ["--node-rank", "$(PET_NODE_RANK)", "--rendezvous", "$(PET_MASTER_ADDR):$(PET_MASTER_PORT)"]
    made = train_job(spec, settings, command)
    made["spec"]["trainer"] |= {"numNodes": nodes, "numProcPerNode": int(processes)}
    return made


def _mount_recipe(made: dict[str, Any], name: str) -> None:
    mount = {"name": "recipe", "mountPath": "/etc/luthier", "readOnly": True}
    volume = {"name": "recipe", "configMap": {"name": name}}
    spec = made["spec"]
    if made["kind"] == "Job":
        pod = spec["template"]["spec"]
    elif "runtimePatches" in spec:
        replicated = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
        pod = replicated["template"]["spec"]["template"]["spec"]
    else:
        pod = spec["podTemplateOverrides"][0]["spec"]
    pod["volumes"].append(volume)
    pod["containers"][0]["volumeMounts"].append(mount)
