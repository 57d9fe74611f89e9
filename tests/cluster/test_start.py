"""A local Ray that does not start, and where it keeps its sockets. No Ray is started."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.cluster.connection import session
from nfnet_ray.cluster.connection.local_ray import LocalRay
from nfnet_ray.cluster.worker import keep_compiled
from nfnet_ray.errors import UserError
from nfnet_ray.processor import available_cpus

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | str]:
    """What each start of Ray does, in turn: it raises, or is that."""
    outcomes: list[Exception | str] = []

    def start(_self: LocalRay, **_options: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(LocalRay, "start", start)
    monkeypatch.setattr(LocalRay, "end", lambda _self: None)
    return outcomes


def test_a_ray_that_is_late_is_started_once_more(starts: list[Exception | str]) -> None:
    starts += [Exception(LATE), "up"]
    assert session._start(LocalRay(), {}) == "up"
    starts += [Exception(LATE), Exception(LATE)]
    with pytest.raises(
        UserError, match=r"^Ray does not start on this machine \(The current node timed out .*logs$"
    ):
        session._start(LocalRay(), {})


def test_another_reason_is_said_at_once_and_in_one_line(starts: list[Exception | str]) -> None:
    starts += [RuntimeError("\n  no such thing\nand much more"), "up"]
    with pytest.raises(UserError, match=r"\(no such thing\)") as caught:
        session._start(LocalRay(), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "complaint"),
    [
        ("/" + "x" * 39, "40 bytes, and 39 are the most"),
        ("relative", "relative"),
        ("/dev/null", "is not a folder"),
        ("/proc", "cannot be written"),
    ],
)
@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_that_ray_cannot_use(
    monkeypatch: pytest.MonkeyPatch, name: str, folder: str, complaint: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, folder)
    with pytest.raises(UserError, match=f"^{name}: .*{complaint}"):
        session.check_temporary_folder()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setenv("TMPDIR", "/tmp")
    session.check_temporary_folder()


def test_a_disk_with_too_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(session, "LEAST_TEMPORARY_BYTES", 10**18)
    with pytest.raises(UserError, match=r"RAY_TMPDIR: .*less than .* MB of room.*make room"):
        session.check_temporary_folder()


def test_without_a_home_it_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("RAY_ADDRESS", "of.a.cluster:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://of.a.cluster:8265")
    session._forget_clusters()
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64
    assert not {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & set(os.environ)


def test_a_container_has_the_cores_that_its_limit_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    assert available_cpus(tmp_path) == 64
    for limit, cores in (("max", 64), ("450000", 4), ("50000", 1), ("9600000", 64)):
        (tmp_path / "cpu.max").write_text(f"{limit} 100000\n")
        assert available_cpus(tmp_path) == cores


@pytest.mark.parametrize("home", ["/proc/nobody", "/dev/null"])
def test_compiled_code_is_kept_without_a_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # as if it was not set; and so put back at the end
    monkeypatch.setenv("HOME", home)
    keep_compiled()
    kept = tmp_path / f"nfnet_ray-{os.getuid()}" / "inductor"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(kept)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".cache" / "nfnet_ray" / "inductor")
