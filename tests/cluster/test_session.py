"""Tokens: files in a user's home affect neither the start of a local Ray nor the connection to a cluster.

About 40 s: several Rays.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import node_command
from tests.deadlines import HANG_SECONDS
from tests.ports import unused_port

pytestmark = pytest.mark.slow

# A worker that wants to know the first task's result has to ask this process for it.
ASK = """\
import sys
{imports}
from nfnet_ray.cluster.connection.session import ray_session
from nfnet_ray.errors import UserError
try:
    with ray_session(sys.argv[1]):
        import ray
        first = ray.remote(lambda: 20).remote()
        print(ray.get(ray.remote(lambda refs: 1 + ray.get(refs[0])).remote([first]), timeout={HANG_SECONDS}))
except UserError as error:
    print(error)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token in it, for programs that say nothing of tokens."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(params=["disabled", "token"])
def head(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """The address of a Ray, and whether it wants the token."""
    assert home
    short = tempfile.mkdtemp()  # sockets lie in it, whose paths have to be short
    monkeypatch.setenv("RAY_TMPDIR", short)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", request.param)
        process = subprocess.Popen(
            node_command("head", gcs_server_port=unused_port(), num_cpus=1, no_monitor=True),
            stdout=subprocess.PIPE,
            text=True,
        )
    assert process.stdout is not None
    yield process.stdout.readline().strip(), request.param
    process.terminate()
    process.wait(timeout=HANG_SECONDS)
    shutil.rmtree(short)


def said(address: str, imports: str = "") -> str:
    program = ASK.format(imports=imports, HANG_SECONDS=HANG_SECONDS)
    result = subprocess.run(
        [sys.executable, "-c", program, address],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    return result.stdout or result.stderr


@pytest.mark.usefixtures("home")
def test_a_ray_of_our_own_starts_where_a_token_lies_about() -> None:
    """Ray reads how it is to be used when it is imported; what is set afterwards reaches its other processes alone."""
    assert said("local", imports="import ray") == "21\n"


def test_a_cluster_is_sent_the_token_if_it_wants_one_and_only_then(
    head: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = head
    assert said(address) == "21\n"
    monkeypatch.setenv("RAY_ADDRESS", address)  # as in a job that was submitted
    assert said("auto") == "21\n"


@pytest.mark.parametrize("imported", ["disabled", "token"])
def test_a_ray_that_was_imported_in_another_mode_is_told_so(head: tuple[str, str], imported: str) -> None:
    """As in a notebook that imports Ray first. Else it would wait for the head, or for its workers."""
    address, mode = head
    with_mode = (
        f"import os; os.environ['RAY_AUTH_MODE'] = '{imported}'; import ray; del os.environ['RAY_AUTH_MODE']"
    )
    answer = said(address, imports=with_mode)
    if imported == mode:
        assert answer == "21\n"
    else:
        assert f"imported Ray without RAY_AUTH_MODE={mode}" in answer
        assert answer.count("\n") == 1
