"""What a user meets before the first line of Python runs: make, the installer, the lock.

The installer and the Makefile are the real ones, in a folder of their own; the machine around them (apt-get,
sudo, interpreters, uv) is made of small scripts, so nothing is installed and no network is used.
Takes about two seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LOCKS = ("requirements.txt", "requirements-dev.txt")  # what runs, and the tools of development as well
RUN_TIME, WITH_TOOLS = ((REPOSITORY / name).read_text() for name in LOCKS)
PINNED_UV = re.search(r"^uv==(\S+)", (REPOSITORY / "deploy/uv.txt").read_text(), re.MULTILINE)[1]

# What the scripts under test may take for granted on a fresh machine.
PLAIN_TOOLS = ["bash", "dirname", "env", "id", "ln", "make", "mkdir", "mktemp", "rm", "sed", "touch", "true"]
DECODER = "nfnet_ray/data/decoding/jpeg_box.c"
# An interpreter: says yes to what it is asked, tells its own path, and as .venv's where packages go. Where there is
# no_compiler it builds nothing, and as setuptools with an optional extension it says so and ends well.
A_PYTHON = """
case "$*" in
    *realpath*) echo "$0" ;;
    *purelib*) echo .venv ;;
    *"-m venv"*) echo "$0" > chosen; exit 1 ;;
    "setup.py "*"build_ext --build-lib .venv "*)
        if [ -e no_compiler ]; then echo "warning: build_ext: failed" >&2; else echo >> .venv/_nfnet_ray_jpeg.so; fi ;;
esac"""
A_UV = f"""
case "$*" in
    --version) echo "uv {PINNED_UV} (a machine)" ;;
    venv*) mkdir -p .venv/bin; ln -s "$PYTHON" .venv/bin/python ;;
    "pip sync"*) echo "${{@: -1}}" >> synced; [ ! -e broken_network ] ;;
esac"""


class Machine:
    """A checkout, and a PATH on which there is only what was put there."""

    def __init__(self, root: Path) -> None:
        self.checkout, self.programs = root / "checkout", root / "programs"
        self.programs.mkdir()
        for name in PLAIN_TOOLS:
            (self.programs / name).symlink_to(shutil.which(name))
        shutil.copytree(REPOSITORY / "deploy", self.checkout / "deploy")
        (self.checkout / DECODER).parent.mkdir(parents=True)
        for name in ["Makefile", "pyproject.toml", *LOCKS, "setup.py", DECODER]:
            shutil.copy(REPOSITORY / name, self.checkout / name)
        an_hour_ago = time.time() - 3600
        for path in self.checkout.rglob("*"):
            os.utime(path, (an_hour_ago, an_hour_ago))

    def add(self, path: str, script: str) -> Path:
        """A program: on the PATH, or, for a path with a folder in it, in the checkout."""
        program = (self.checkout if "/" in path else self.programs) / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.unlink(missing_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{script}\n")
        program.chmod(0o755)
        return program

    def add_system_packages(self) -> None:
        for name in ["g++", "pkg-config"]:
            self.add(name, "exit 0")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.programs), "HOME": str(self.checkout)} | environment
        return subprocess.run(
            command, cwd=self.checkout, env=environment, capture_output=True, text=True, check=False
        )

    def install(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("deploy/install.sh", *arguments, **environment)

    def read(self, name: str) -> str:
        return (self.checkout / name).read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


# --- the lock -------------------------------------------------------------------------------------

GROUPS = {"project": PYPROJECT["project"]["dependencies"]} | PYPROJECT["dependency-groups"]
DIRECT = [(group, Requirement(text)) for group, texts in GROUPS.items() for text in texts]
each_lock = pytest.mark.parametrize("lock", [RUN_TIME, WITH_TOOLS], ids=LOCKS)


def pins(lock: str) -> dict[str, str]:
    """Each line that names a version, with its environment marker, and all that follows it: the hashes, and why."""
    blocks = re.split(r"^(?=[^\s#])", lock, flags=re.MULTILINE)[1:]
    return {head: rest for head, _, rest in (block.partition("\n") for block in blocks)}


@pytest.mark.parametrize(("group", "requirement"), DIRECT, ids=lambda value: getattr(value, "name", value))
def test_dependency_is_locked_within_its_bounds_and_explained(group: str, requirement: Requirement) -> None:
    name = re.escape(requirement.name)
    for lock in (RUN_TIME, WITH_TOOLS):
        versions = re.findall(rf"^{name}==(\S+)", lock, re.MULTILINE)
        # What is a tool alone is not installed for a study.
        assert bool(versions) == (group != "dev" or lock == WITH_TOOLS)
        assert all(Version(version) in requirement.specifier for version in versions)
    assert f"| {requirement.name} |" in (REPOSITORY / "docs/dependencies.md").read_text()


def test_what_runs_is_a_part_of_what_is_tested_with() -> None:
    # Without the markers: a tool may want a package on further platforms.
    run_time, with_tools = (
        {pin.partition(" ;")[0]: re.findall(r"--hash=(\S+)", rest) for pin, rest in pins(lock).items()}
        for lock in (RUN_TIME, WITH_TOOLS)
    )
    assert run_time.items() < with_tools.items()


@each_lock
@pytest.mark.parametrize("name", ["ffcv", "opencv-python", "numba"])
def test_ffcv_and_what_it_alone_asks_for_are_for_linux_alone(name: str, lock: str) -> None:
    """Elsewhere it need not be built: nfnet_ray/data/decoding/plain.py reads its files."""
    (pin,) = re.findall(rf"^{name}==.*?(?: \\)?$", lock, re.MULTILINE)
    marker = Requirement(pin.removesuffix(" \\")).marker
    assert marker is not None
    assert [marker.evaluate({"sys_platform": platform}) for platform in ("linux", "darwin")] == [True, False]


@each_lock
def test_every_pin_has_hashes(lock: str) -> None:
    assert len(pins(lock)) > len(DIRECT)
    assert [pin for pin, rest in pins(lock).items() if "==" not in pin or "--hash=sha256:" not in rest] == []


@each_lock
def test_lock_names_no_index_and_no_machine(lock: str) -> None:
    assert re.findall(r"https?:|file:|--index|--find-links|\s/\S+", lock) == []


def test_installer_and_package_agree_on_the_python_range() -> None:
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (REPOSITORY / "deploy/install.sh").read_text()


# --- system packages ------------------------------------------------------------------------------

PACKAGES = "g++ pkg-config libopencv-dev libturbojpeg0-dev"


def test_without_apt_one_line_says_what_is_missing(machine: Machine) -> None:
    machine.add("python3.12", A_PYTHON)
    result = machine.install()
    assert result.returncode == 1
    assert only_line(result.stderr).endswith(f"system packages are missing (Debian's names): {PACKAGES}")
    assert not (machine.checkout / ".venv").exists()


def test_without_rights_one_line_says_what_to_install(machine: Machine) -> None:
    machine.add("python3.12", A_PYTHON)
    machine.add("id", "echo 1000")
    machine.add("sudo", "exit 1")
    machine.add("apt-get", "touch apt_was_called")
    result = machine.install()
    assert result.returncode == 1
    assert only_line(result.stderr).endswith(f"as root: apt-get update && apt-get install {PACKAGES}")
    assert not (machine.checkout / "apt_was_called").exists()


@pytest.mark.parametrize("user", ["0", "1000"])
def test_missing_packages_and_no_others_are_asked_of_apt(machine: Machine, user: str) -> None:
    machine.add("python3.12", A_PYTHON)
    machine.add("g++", "exit 0")
    machine.add("pkg-config", '[ "$*" != "--exists libturbojpeg" ]')
    machine.add("id", f"echo {user}")
    machine.add("sudo", '[ "$1" != -n ] || shift; touch sudo_was_used; exec "$@"')
    machine.add("apt-get", 'echo "$*" >> asked; [[ "$*" != *install* ]]')
    result = machine.install()
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("apt-get update && apt-get install libturbojpeg0-dev")
    assert machine.read("asked").splitlines()[-1].endswith("--no-install-recommends libturbojpeg0-dev")
    assert (machine.checkout / "sudo_was_used").exists() == (user != "0")


# --- the interpreter ------------------------------------------------------------------------------


def test_newest_python_that_runs_is_chosen(machine: Machine) -> None:
    machine.add("python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    chosen = machine.add("python3.12", A_PYTHON)
    machine.add("python3.11", A_PYTHON)
    machine.install("uv")
    assert machine.read("chosen").strip() == str(chosen)


def test_named_python_is_chosen(machine: Machine) -> None:
    machine.add("python3.13", A_PYTHON)
    chosen = machine.add("python3.11", A_PYTHON)
    machine.install("uv", PYTHON="python3.11")
    assert machine.read("chosen").strip() == str(chosen)


@pytest.mark.parametrize("name", ["python3.9", "no_such_python"])
def test_named_python_that_does_not_fit_is_refused_in_one_line(machine: Machine, name: str) -> None:
    machine.add("python3.12", A_PYTHON)
    machine.add("python3.9", "exit 1")
    result = machine.install(PYTHON=name)
    assert result.returncode == 1
    assert f"PYTHON={name} is not a working Python 3.11, 3.12 or 3.13" in only_line(result.stderr)


def test_without_python_one_line_says_so(machine: Machine) -> None:
    result = machine.install()
    assert result.returncode == 1
    assert "no Python here" in only_line(result.stderr)


# --- finished and unfinished installations --------------------------------------------------------


@pytest.fixture
def equipped(machine: Machine) -> Machine:
    """A machine on which the whole installation runs through."""
    machine.add_system_packages()
    machine.add("python3.12", A_PYTHON)
    machine.add(".venv-uv/bin/uv", A_UV)
    return machine


def make(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    return machine.run("make", *arguments, f"PYTHON={machine.programs / 'python3.12'}")


def synced(machine: Machine) -> list[str]:
    """Which lock each installation so far was made from."""
    record = machine.checkout / "synced"
    return record.read_text().split() if record.exists() else []


def change(machine: Machine, name: str) -> None:
    """Makes a file, and no other, newer than the installation."""
    half_an_hour_ago = time.time() - 1800
    for stamp in (machine.checkout / ".venv").glob(".installed*"):
        os.utime(stamp, (half_an_hour_ago, half_an_hour_ago))
    (machine.checkout / name).touch()


def test_second_make_installs_nothing_until_the_lock_changes(equipped: Machine) -> None:
    equipped.add("python3.12", A_PYTHON + '\n[[ "$*" != studies* ]] || echo "$*"')
    for _ in range(2):
        result = make(equipped, "study", "ARGS=--plan --set seed=1")
        assert (result.returncode, result.stdout) == (0, "studies/agc_sweep.py --plan --set seed=1\n")
    assert synced(equipped) == ["requirements.txt"]
    change(equipped, "requirements.txt")
    make(equipped, "study")
    assert synced(equipped) == ["requirements.txt"] * 2


def test_tests_install_the_tools_as_well_and_a_study_takes_none_away(equipped: Machine) -> None:
    def goals(*names: str) -> list[str]:
        before = len(synced(equipped))
        for name in names:
            assert make(equipped, name).returncode == 0
        return synced(equipped)[before:]

    assert goals("study") == ["requirements.txt"]
    # In the same environment: only what is missing is installed.
    survivor = equipped.checkout / ".venv/a_package"
    survivor.touch()
    assert goals("lint", "study", "test") == ["requirements-dev.txt"]
    change(equipped, "requirements.txt")
    assert goals("study", "lint") == ["requirements-dev.txt"]
    assert survivor.exists()
    for names, lock in ((("test", "study"), "requirements-dev.txt"), (("study",), "requirements.txt")):
        shutil.rmtree(equipped.checkout / ".venv")
        assert goals(*names) == [lock]


@pytest.mark.parametrize("goal", ["study", "lint"])
def test_tools_that_were_broken_off_are_not_taken_for_installed(equipped: Machine, goal: str) -> None:
    make(equipped, "study")
    (equipped.checkout / "broken_network").touch()
    assert make(equipped, "lint").returncode != 0
    assert list((equipped.checkout / ".venv").glob(".installed*")) == []
    leftover = equipped.checkout / ".venv/half_a_package"
    leftover.touch()
    (equipped.checkout / "broken_network").unlink()
    assert make(equipped, goal).returncode == 0
    assert not leftover.exists()


def test_installer_refuses_what_it_does_not_know(equipped: Machine) -> None:
    result = equipped.install("devel")
    assert result.returncode == 1
    assert "devel" in only_line(result.stderr)
    assert not (equipped.checkout / ".venv").exists()


def test_an_interrupted_installation_starts_again(equipped: Machine) -> None:
    (equipped.checkout / "broken_network").touch()
    assert make(equipped, "study").returncode != 0
    assert not (equipped.checkout / ".venv/.installed").exists()
    leftover = equipped.checkout / ".venv/half_a_package"
    leftover.touch()

    (equipped.checkout / "broken_network").unlink()
    assert make(equipped, "study").returncode == 0
    assert (equipped.checkout / ".venv/.installed").exists()
    assert not leftover.exists()


def test_environment_finds_the_project(equipped: Machine) -> None:
    make(equipped, "study")
    assert equipped.read(".venv/nfnet_ray.pth").strip() == str(equipped.checkout)


def test_decoder_is_built_again_when_its_source_changes(equipped: Machine) -> None:
    assert make(equipped, "study").stderr == ""
    library = equipped.checkout / ".venv/_nfnet_ray_jpeg.so"
    assert library.read_text() == "\n"
    change(equipped, DECODER)
    (equipped.checkout / "no_compiler").touch()
    assert make(equipped, "study").returncode == 0
    assert not library.exists()  # rather none than that of another source


def test_without_a_compiler_one_line_says_that_decoding_is_slower(equipped: Machine) -> None:
    (equipped.checkout / "no_compiler").touch()
    result = make(equipped, "study")
    assert result.returncode == 0
    assert (equipped.checkout / ".venv/.installed").exists()
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("install: ")]
    assert "jpeg_box.c could not be built" in line


# --- what continuous integration and git see ------------------------------------------------------


@pytest.mark.parametrize(("status", "closing_line"), [(0, "3 passed in 0.10s"), (1, "1 failed in 0.10s")])
def test_ci_ends_with_the_tests_closing_line(machine: Machine, status: int, closing_line: str) -> None:
    shutil.copytree(REPOSITORY / ".ci", machine.checkout / ".ci")
    (machine.checkout / "Makefile").write_text(f"test:\n\t@echo '{closing_line}'; exit {status}\n")
    result = machine.run(".ci/run")
    assert result.stdout.splitlines()[-1] == closing_line
    assert result.stderr == ""
    assert bool(result.returncode) == bool(status)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("nfnet_ray/data/loading/loader.py", False),
        ("studies/results/agc_sweep.csv", False),
        ("tests/fixtures/agc.npz", False),
        ("data/cifar10/train.bin", True),
        ("runs/agc_sweep/journal.jsonl", True),
        ("tests/digits.beton", True),
        ("mlflow.db", True),
        (".venv/.installed", True),
        ("nfnet_ray/data/__pycache__/loader.pyc", True),
    ],
)
def test_git_ignores_what_runs_leave_behind_and_no_source(tmp_path: Path, path: str, ignored: bool) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    checked = subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "--quiet", path], check=False)
    assert (checked.returncode == 0) == ignored
