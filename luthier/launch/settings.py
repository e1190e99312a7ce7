"""Where runs go, from the server's configuration. Never from a request: some of these values are run by a shell."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from luthier.recipe.section import Section
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["KubernetesSettings", "LaunchSettings", "SkySettings", "SlurmSettings", "Volume", "launch_settings"]

Plain = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:,=/@&|+\[\]*-]*$")]
"""A value of a cluster's own vocabulary: no space, no quote, no leading dash."""
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""A name in Kubernetes."""
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$")]


class SlurmSettings(Section):
    """For `kind: slurm`."""

    partition: Plain | None = None
    """`--partition`."""
    account: Plain | None = None
    """`--account`."""
    qos: Plain | None = None
    """`--qos`."""
    constraint: Plain | None = None
    """`--constraint`."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell before the run, for instance `module load cuda`."""
    signal_seconds: Annotated[int, Field(ge=30)] = 300
    """How long before the time limit the run is told to save; it is then put in line again."""


class Volume(Section):
    """A claim, mounted where the paths of home and runs are."""

    claim: Label
    """Name of a PersistentVolumeClaim that all nodes can write."""
    path: AbsolutePath
    """Where it is mounted."""
    sub_path: str | None = None
    """Folder of the claim."""


class KubernetesSettings(Section):
    """For `kind: kubernetes`."""

    form: Literal["job", "trainjob"] = "job"
    """`job`: batch/v1; `trainjob`: Kubeflow Trainer (trainer.kubeflow.org/v1alpha1)."""
    namespace: Label = "default"
    """Where the job is made."""
    image: Plain = "luthier:latest"
    """Container image with Luthier in it (`deploy/Dockerfile`)."""
    volumes: list[Volume] = Field(default_factory=list)
    """Home, runs and model caches; the paths are those of this machine."""
    secret: Label | None = None
    """A Secret with one key for each variable of `pass_secrets`."""
    service_account: Label | None = None
    """Account of the pod."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels a node must have."""
    priority_class: Label | None = None
    """`priorityClassName`."""
    runtime: Label = "torch-distributed"
    """`trainjob`: the ClusterTrainingRuntime."""
    patches: Literal["runtimePatches", "podTemplateOverrides"] = "runtimePatches"
    """`trainjob`: how pods get volumes and user: Trainer 2.2 and later, or before."""
    gpu_resource: Plain = "nvidia.com/gpu"
    """Name of the device plugin's resource."""
    restarts: Annotated[int, Field(ge=0)] = 4
    """Pods started again after failures; evictions and preemptions do not count."""
    grace_seconds: Annotated[int, Field(ge=10)] = 120
    """From SIGTERM to SIGKILL: time for a checkpoint."""
    user: Annotated[int, Field(ge=1)] = 10001
    """User and group id in the container; the volumes must be writable for it."""


class SkySettings(Section):
    """For `kind: skypilot`."""

    cloud: Plain | None = None
    """`resources.infra`, for instance `aws` or `k8s`; None: the cheapest."""
    image: Plain | None = None
    """`resources.image_id`."""
    spot: bool = True
    """Take machines that may be preempted; the run goes on elsewhere from its checkpoint."""
    mounts: dict[AbsolutePath, str] = Field(default_factory=dict)
    """Path -> bucket, for instance `/data: s3://my-bucket`; home and runs must be below such a path."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell once a machine, for instance `pip install 'luthier[train]'`."""


class LaunchSettings(Section):
    """Where the runs of jobs are computed, and what they may ask for."""

    kind: Literal["local", "slurm", "kubernetes", "skypilot"] = "local"
    """`local`: children of the worker."""
    slots: Annotated[int, Field(ge=1, le=256)] = 1
    """Jobs handed over at a time, where `kind` is not `local`."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 1
    """GPUs of a run, of one machine; several: `luthier launch --num-gpus N`. `local`: see `workers.devices`."""
    gpu_type: Plain | None = None
    """As the cluster names it, for instance `h100`."""
    cpus: Annotated[int, Field(ge=1)] = 8
    """Cores of a run."""
    memory_gib: Annotated[int, Field(ge=1)] = 32
    """Least host memory of a run."""
    time_margin: Annotated[float, Field(ge=1.0)] = 1.5
    """Times the plan's seconds."""
    overhead_minutes: Annotated[int, Field(ge=1)] = 60
    """For loading, scoring, merging: what the plan does not count."""
    max_minutes: Annotated[int, Field(ge=1)] = 2880
    """Longest time limit; a run that needs more is put in line again, and goes on from its checkpoint."""
    python: str = "python"
    """Python with Luthier, where the run is computed."""
    command: list[str] | None = None
    """Program and first arguments, for instance of a container's; the recipe follows. null: `PYTHON -m luthier run`,
    or `luthier launch --num-gpus N`."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further variables of a run, for instance `HF_HOME`. What runs elsewhere gets no others."""
    pass_secrets: list[str] = Field(default_factory=lambda: ["HF_TOKEN", "WANDB_API_KEY"])
    """Secrets of this process that runs may see. All others are taken out of their environment."""
    slurm: SlurmSettings = Field(default_factory=SlurmSettings)
    """Keys of `kind: slurm`."""
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings)
    """Keys of `kind: kubernetes`."""
    skypilot: SkySettings = Field(default_factory=SkySettings)
    """Keys of `kind: skypilot`."""


def launch_settings(value: Any) -> LaunchSettings:
    """Check a mapping, for instance read from the server's configuration.

    Raises:
        RecipeError: every wrong or unknown key.
    """
    try:
        return LaunchSettings.model_validate(value)
    except ValidationError as error:
        problems = [
            Problem(
                code="L150", message=f"`launch.{'.'.join(map(str, one['loc']))}`: {one['msg'].lower()}",
                hint="see docs/jobs.md, Launchers",
            )
            for one in error.errors()
        ]  # fmt: skip
        raise RecipeError(problems=problems) from error
