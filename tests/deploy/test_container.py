"""The container file has what it needs, and the programs that run in its pods besides Ray work.

No image is built here; test_image.py runs one. Takes about five seconds.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deploy import fetch_data
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


def defaults(text: str) -> dict[str, str]:
    """What the build's arguments are where nobody says otherwise."""
    return dict(rest.split("=", 1) for word, rest in instructions(text) if word == "ARG")


def stages(text: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(text):
        if instruction[0] == "FROM":
            found.append([])
        if found:  # arguments that all stages know come before the first
            found[-1].append(instruction)
    return found


def container_faults(text: str) -> list[str]:
    """What a reviewer would send back."""
    faults = []
    all_stages = stages(text)
    names: set[str] = set()
    for stage in all_stages:
        image, *alias = Template(stage[0][1]).substitute(defaults(text)).split(" AS ")
        if image not in names and not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}", image):
            faults.append(f"{image} is not pinned by a version and a digest")
        names |= set(alias)
    final = all_stages[-1]
    users = [rest for word, rest in final if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        faults.append("the image does not run as a user by number that is not root")
    compiled = {
        name for word, rest in final if word == "RUN" and "compileall" in rest for name in rest.split()
    }
    faults += [
        f"{rest.split()[0]} is not compiled, and the user who runs may not write there"
        for word, rest in final
        if word == "COPY"
        and (REPOSITORY / rest.split()[0] / "__init__.py").exists()
        and rest.split()[0] not in compiled
    ]
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for word, rest in instructions(text):
        faults += [
            f"{mount} is no secret that may be missing"
            for mount in re.findall(r"--mount=\S+", rest)
            if not mount.startswith("--mount=type=secret,") or "required" in mount
        ]
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
        (r"type=secret,id=apt", "type=bind,source=apt", "no secret"),
        (r"USER 1000:1000", "USER 0", "not root"),
        (r"USER 1000:1000", "USER ray", "by number"),
        (r"USER 1000:1000\n", "", "not root"),
        (r"COPY studies studies", "ADD studies studies", "ADD"),
        (r"COPY studies studies", "COPY study study", "does not exist"),
        (r"COPY studies studies", "COPY docs docs", ".dockerignore"),
        (r"libopencv-core406", "libopencv-dev", "libopencv-dev"),
        (r"-q nfnet_ray studies", "-q nfnet_ray", "studies is not compiled"),
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
    [python] = re.findall(r"^python:([\d.]+)-", defaults(text)["BASE"])
    assert Version(python) in SpecifierSet(project["project"]["requires-python"])
    assert defaults(text)["PYTHON"] == f"/usr/local/bin/python{python.rpartition('.')[0]}"
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


def copy_sources(stage: list[tuple[str, str]], folder: Path) -> None:
    """Copies to a folder what a stage copies from the repository."""
    for word, rest in stage:
        if word == "COPY" and "--from=" not in rest:
            *sources, target = rest.split()
            if target.endswith("/"):
                (folder / target).mkdir(parents=True, exist_ok=True)
            for source in map(REPOSITORY.joinpath, sources):
                if source.is_dir():
                    shutil.copytree(source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, folder / target)


def test_what_the_build_stage_copies_is_enough_for_the_decoder(tmp_path: Path) -> None:
    _, build, _ = stages(CONTAINERFILE.read_text())
    copy_sources(build, tmp_path)
    [command] = [rest for word, rest in build if word == "RUN" and "setup.py" in rest]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    # -S skips the .pth files, one of which would put the repository on the path.
    start = (
        f"import runpy, sys; sys.path.insert(0, {sysconfig.get_path('purelib')!r}); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    start = shlex.join([sys.executable, "-S", "-c", start])
    python.write_text(f'#!/bin/bash\ncase "$*" in *purelib*) echo built ;; *) exec {start} "$@" ;; esac\n')
    python.chmod(0o755)
    command = command.replace("/tmp/build", str(tmp_path / "temporary"))
    result = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "built").glob("_nfnet_ray_jpeg*.so")), result.stderr


def test_what_the_image_holds_is_enough_for_its_last_check(tmp_path: Path) -> None:
    """A folder with all that the last stage copies: an import of what was moved or left out would end each build."""
    _, _, run = stages(CONTAINERFILE.read_text())
    copy_sources(run, tmp_path)
    [check] = [rest for word, rest in run if word == "RUN" and rest.startswith("python -c ")]
    program = shlex.split(check)[2]
    assert "nfnet_ray" in program
    # -S skips the .pth files, one of which would put the repository on the path.
    start = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); exec(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-S", "-c", start, program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert result.returncode == 0, result.stderr


# --- the image of this machine ----------------------------------------------------------------------------------------

BUILD_HERE = REPOSITORY / "deploy" / "build_here.sh"
# The build, that keeps what it was shown and asked for; the base is there already.
A_BUILDAH = """
[ "$1" = build ] || exit 0
for word in "$@"; do
    case "$word" in id=*) source=${word#*src=}; cp "$source" "$KEPT/" ;; esac
    echo "$word" >> "$KEPT/asked"
done"""
AN_APT_GET = """[ "$1" = indextargets ] || exit 1
echo "mirror:/debian/ bookworm main"
echo "mirror:/debian/ bookworm-updates main"
echo "mirror:/security/ bookworm-security main"
echo "elsewhere:/ bookworm contrib"
"""
A_PIP = """cat <<'END'
:env:.cert='/etc/a.pem'
global.index-url='index:/main'
global.extra-index-url='file:/a\\nindex:/more /opt/b'
END"""


def build_here(
    tmp_path: Path, programs: dict[str, str], **environment: str
) -> subprocess.CompletedProcess[str]:
    for name, body in ({"id": "echo 0", "debootstrap": "exit 1"} | programs).items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "KEPT": str(tmp_path / "kept")}
    (tmp_path / "kept").mkdir(exist_ok=True)
    return subprocess.run(
        [BUILD_HERE],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )


def test_a_build_here_fetches_as_this_machine_does_and_keeps_none_of_it(tmp_path: Path) -> None:
    certificates = tmp_path / "company.pem"
    certificates.write_text("a company's own")
    programs = {"buildah": A_BUILDAH, "apt-get": AN_APT_GET, "python3": A_PIP}
    proxy = "proxy:/user's $HOME"
    result = build_here(
        tmp_path, programs, SSL_CERT_FILE=str(certificates), UV_DEFAULT_INDEX="index:/uv", https_proxy=proxy
    )
    assert result.returncode == 0, result.stderr
    kept = tmp_path / "kept"
    assert (kept / "apt").read_text().splitlines() == [
        "deb mirror:/debian/ bookworm main",
        "deb mirror:/debian/ bookworm-updates main",
        "deb mirror:/security/ bookworm-security main",
    ]
    assert (kept / "certificates").read_text() == certificates.read_text()
    show = '. $0; printf \'%s\\n\' "$PIP_INDEX_URL" "$PIP_EXTRA_INDEX_URL" "$UV_DEFAULT_INDEX" "$https_proxy"'
    shown = subprocess.run(
        ["sh", "-c", show, kept / "environment"], env={}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == ["index:/main", "index:/more", "index:/uv", proxy]
    asked = (kept / "asked").read_text()
    arguments = re.findall(r"^(\w+)=/?[\w./:-]+$", asked, re.MULTILINE)
    assert set(arguments) == set(defaults(CONTAINERFILE.read_text()))
    assert not re.search("index:|mirror:|proxy", asked)
    assert "://" not in BUILD_HERE.read_text()


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({"id": "echo 1000"}, "need root"),
        ({"buildah": "", "apt-get": "exit 100", "python3": ""}, "name a mirror with MIRROR="),
    ],
)
def test_what_a_build_here_lacks_is_one_line(tmp_path: Path, programs: dict[str, str], message: str) -> None:
    result = build_here(tmp_path, programs)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


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
    from nfnet_ray.data.files.verification import check_all

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


def test_parts_are_fetched_side_by_side_and_again_if_they_fail(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (few_digits / "train.beton").stat().st_size
    side_by_side, failed = threading.Barrier(2), set()
    monkeypatch.setattr(fetch_data, "PART_BYTES", size // 2 + 1)
    monkeypatch.setattr(fetch_data, "WAITS_SECONDS", (0.0,))

    class Store:
        def __init__(self, path: str) -> None:
            self.file = open(path, "rb")  # noqa: SIM115

        def __enter__(self) -> Store:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read_at(self, count: int, start: int) -> bytes:
            side_by_side.wait(HANG_SECONDS)
            if start not in failed:
                failed.add(start)
                raise OSError("connection reset")
            return os.pread(self.file.fileno(), count, start)

    storage: Any = SimpleNamespace(open_input_file=Store)
    wanted: Any = SimpleNamespace(path=str(few_digits / "train.beton"), size=size)
    with (tmp_path / "copy").open("wb") as copy:
        fetch_data._copy(storage, wanted, copy)
    assert (tmp_path / "copy").read_bytes() == (few_digits / "train.beton").read_bytes()
    failed.clear()
    monkeypatch.setattr(fetch_data, "WAITS_SECONDS", ())
    with (tmp_path / "copy").open("wb") as copy, pytest.raises(OSError, match="connection reset"):
        fetch_data._copy(storage, wanted, copy)


@pytest.mark.parametrize("uri", ["file:///nowhere/at/all", "nowhere", "ftp://host/data"])
def test_a_place_without_data_is_one_clear_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(uri)):
        fetch(uri, tmp_path)
    assert list(tmp_path.iterdir()) == []
