"""The container file says what it must, and what runs in its pods beside Ray does what it should.

No image is built here: that needs a container engine and a registry. Takes about five seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deploy.fetch_data import fetch
from nfnet_ray.errors import UserError
from tests.deadlines import HANG_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
CONTAINERFILE = REPOSITORY / "deploy" / "Containerfile"
LEAVE_NODE = REPOSITORY / "deploy" / "leave_node.sh"


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments), with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest) for line in joined.splitlines() if line for word, _, rest in [line.partition(" ")]]


def stages(text: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(text):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def container_faults(text: str) -> list[str]:
    """What a reviewer would send back."""
    faults = []
    all_stages = stages(text)
    names: set[str] = set()
    for stage in all_stages:
        image, *alias = stage[0][1].split(" AS ")
        if image not in names and not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}", image):
            faults.append(f"{image} is not pinned by a version and a digest")
        names |= set(alias)
    final = all_stages[-1]
    users = [rest for word, rest in final if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        faults.append("the image does not run as a user by number that is not root")
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for word, rest in instructions(text):
        if word == "ADD":
            faults.append(f"ADD {rest}: fetches or unpacks unseen; COPY")
        if word == "COPY" and "--from=" not in rest:
            for source in rest.split()[:-1]:
                if not (REPOSITORY / source).exists():
                    faults.append(f"COPY {source}: does not exist")
                if not any(f"!{path}" in ignore for path in (source, *map(str, Path(source).parents))):
                    faults.append(f"COPY {source}: .dockerignore keeps it out")
    if leftover := re.findall(
        r"\S+-dev\b|\bpkg-config\b", " ".join(rest for word, rest in final if word == "RUN")
    ):
        faults.append(f"the image that runs has {leftover}")
    return faults


def test_the_container_file_has_no_faults() -> None:
    assert container_faults(CONTAINERFILE.read_text()) == []
    assert (REPOSITORY / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (r"@sha256:\w+", "", "not pinned"),
        (r":3\.\S+@", ":latest@", "not pinned"),
        (r"USER 1000:1000", "USER 0", "not root"),
        (r"USER 1000:1000", "USER ray", "by number"),
        (r"USER 1000:1000\n", "", "not root"),
        (r"COPY studies studies", "ADD studies studies", "ADD"),
        (r"COPY studies studies", "COPY study study", "does not exist"),
        (r"COPY studies studies", "COPY docs docs", ".dockerignore"),
        (r"libopencv-core406", "libopencv-dev", "libopencv-dev"),
    ],
)
def test_a_fault_is_found(old: str, new: str, fault: str) -> None:
    text, changed = re.subn(old, new, CONTAINERFILE.read_text())
    assert changed
    assert any(fault in found for found in container_faults(text))


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert result.stdout + result.stderr == ""
    bad = subprocess.run(
        [hadolint, "-"], input="FROM debian\nRUN cd /tmp", capture_output=True, text=True, check=False
    )
    assert "DL3006" in bad.stdout


def test_it_holds_the_locked_packages_for_a_python_of_the_project() -> None:
    text = CONTAINERFILE.read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    [python] = re.findall(r"^FROM python:([\d.]+)-", text, re.MULTILINE)
    assert Version(python) in SpecifierSet(project["project"]["requires-python"])
    assert f"PYTHON=/usr/local/bin/python{python.rpartition('.')[0]} " in text
    build, run = stages(text)[1:]
    assert any("requirements.txt" in rest for word, rest in build if word == "COPY")
    assert "--require-hashes" in (REPOSITORY / "deploy" / "install.sh").read_text()
    assert any("deploy/install.sh" in rest for word, rest in build if word == "RUN")
    assert (
        "COPY",
        "--from=build /opt/nfnet_ray/.venv /opt/nfnet_ray/.venv",
    ) in run  # scripts in it name their place
    installed = " ".join(rest for word, rest in run if word == "RUN")
    for program in ("wget", "procps", "g++"):  # KubeRay's probes, leave_node.sh, torch.compile
        assert program in installed.split()
    assert "install.sh dev" not in text  # no tools of development


# --- what a worker pod does when it is ended --------------------------------------------------------------------------


def leave(
    tmp_path: Path, ray: str, pgrep: str, seconds: int
) -> tuple[subprocess.CompletedProcess[str], float]:
    for name, body in (("ray", ray), ("pgrep", pgrep)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRAIN_SECONDS": str(seconds)}
    started = time.monotonic()
    result = subprocess.run(
        [LEAVE_NODE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    return result, time.monotonic() - started


def test_a_worker_tells_ray_and_leaves_when_its_last_task_has(tmp_path: Path) -> None:
    busy_twice = 'echo "$@" >> asked; [ "$(wc -l < asked)" -le 2 ]'
    result, _ = leave(tmp_path, 'echo "$@" > told', busy_twice, 30)
    assert result.returncode == 0
    told = (tmp_path / "told").read_text()
    assert told.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert "--deadline-remaining-seconds 30" in told
    assert len((tmp_path / "asked").read_text().splitlines()) == 3


@pytest.mark.parametrize(("ray", "pgrep"), [("true", "true"), ("exit 1", "true"), ("sleep 60", "true")])
def test_a_worker_waits_no_longer_than_it_may(tmp_path: Path, ray: str, pgrep: str) -> None:
    result, seconds = leave(tmp_path, ray, pgrep, 2)
    assert result.returncode == 0
    assert 1 < seconds < 30
    assert ("did not take the notice" in result.stderr) == (ray != "true")


def test_idle_workers_of_ray_do_not_hold_a_node() -> None:
    [pattern] = re.findall(r"pgrep --full '([^']*)'", LEAVE_NODE.read_text())
    assert re.match(pattern, "ray::ImplicitFunc.train()")
    assert re.match(pattern, "ray::RayTrainWorker")
    assert not re.match(pattern, "ray::IDLE")
    assert not re.match(pattern, "/opt/nfnet_ray/.venv/bin/python -m ray::")


# --- data from object storage -----------------------------------------------------------------------------------------


def test_a_data_set_is_fetched_and_a_second_attempt_copies_what_is_missing(
    few_digits: Path, tmp_path: Path
) -> None:
    from nfnet_ray.data.verification import check_all

    fetched = fetch(few_digits.as_uri(), tmp_path)
    assert fetched == tmp_path / few_digits.name
    check_all(fetched, 1)
    beton, manifest = fetched / "train.beton", fetched / "train.parquet"
    beton.write_bytes(beton.read_bytes()[:-1000])
    written = manifest.stat().st_mtime_ns
    fetch(few_digits.as_uri(), tmp_path)
    check_all(fetched, 1)
    assert manifest.stat().st_mtime_ns == written
    assert not list(fetched.glob("*.partial"))


@pytest.mark.parametrize("uri", ["file:///nowhere/at/all", "nowhere", "ftp://host/data"])
def test_a_place_without_data_is_one_clear_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(uri)):
        fetch(uri, tmp_path)
    assert list(tmp_path.iterdir()) == []
