"""Contract: what `deploy/` says agrees with the package. The files themselves are not run here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from luthier.jobs.worker.settings import WorkersSection
from luthier.launch.settings import KubernetesSettings
from luthier.recipe.yaml12 import parse_yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def _unit() -> dict[str, str]:
    lines = (DEPLOY / "luthier-api.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_image_is_made_of_files_that_are_there_and_runs_as_nobody_special():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [part for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for part in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept, "what is copied is what the context holds"
    user = KubernetesSettings().user
    assert f"USER {user}:{user}" in text and f"useradd --uid {user}" in text
    assert text.index("USER ") < text.index('CMD ["luthier"')
    stages = set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    assert {"runtime-cpu", "runtime-cuda"} <= stages
    extras = re.search(r'ARG EXTRAS="(.+)"', text)[1].split(",")
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras)


def test_everybody_leaves_a_run_time_to_save():
    grace = WorkersSection().grace_seconds + 10
    assert int(_unit()["TimeoutStopSec"]) >= grace
    compose = parse_yaml((DEPLOY / "docker-compose.yml").read_text(), origin="compose")
    assert not compose.problems
    service = compose.value["services"]["api"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= grace
    assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "loopback unless somebody decides otherwise"


def test_the_unit_keeps_what_a_crash_must_not_take_down():
    unit = _unit()
    assert unit["KillMode"] == "mixed" and unit["OOMPolicy"] == "continue" and unit["Restart"] == "on-failure"
    assert unit["User"] != "root" and unit["NoNewPrivileges"] == "yes" and "MemoryDenyWriteExecute" not in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_the_unit(tmp_path):
    text = (DEPLOY / "luthier-api.service").read_text().replace("/opt/luthier/bin/luthier", "/bin/true")
    (tmp_path / "luthier-api.service").write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / "luthier-api.service")], capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
