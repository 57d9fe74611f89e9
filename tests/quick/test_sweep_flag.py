"""``--sweep``: a space from the command line, for every study and for a question of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nfnet_ray.errors import UserError
from nfnet_ray.recipe import Recipe
from nfnet_ray.study.cost.probe_process import Probe
from nfnet_ray.study.space import Domain, Range, SameAs, When, domain_text
from nfnet_ray.study.space.asked import asked_space
from nfnet_ray.study.space.sweep_text import parse_sweep
from studies.agc_sweep import agc_sweep
from studies.running.flags import main
from studies.running.from_python import _domain
from studies.sam_sweep import sam_sweep
from studies.sweep import PROGRAM

FOLDER = Path(__file__).resolve().parents[2] / "studies"
CLIP, RHO, SHARE = "optimizer.agc.clip_factor", "optimizer.sam.rho", "optimizer.sam.ascent_share"
METHOD = "optimizer.sam.method"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (f"{CLIP}=0.01,0.02,none", (0.01, 0.02, None)),
        (f"{CLIP} = 0.01 , none", (0.01, None)),
        (f"{CLIP}=0.01", (0.01,)),
        ("model.name=nfnet_f0,nfnet_f1", ("nfnet_f0", "nfnet_f1")),
        ("data.flip=true,False", (True, False)),
        ("model.overrides.width=[16,32],[32,64],none", ((16, 32), (32, 64), None)),
        (f"{CLIP}=log:0.002..0.3", Range(0.002, 0.3, log=True)),
        (f"{CLIP}=0.1..0.5", Range(0.1, 0.5)),
        (f"{CLIP}=log:1e-3..1", Range(1e-3, 1, log=True)),
        (f"{CLIP}=int:1..5", Range(1, 5, integer=True)),
        ("batch_size=16..256", Range(16, 256, integer=True)),
        ("batch_size=log:16..256", Range(16, 256, log=True, integer=True)),
        (f"{CLIP}=none,log:0.002..0.3", Range(0.002, 0.3, log=True, or_none=True)),
        (f"{CLIP}=0.1..0.5,none", Range(0.1, 0.5, or_none=True)),
        ("data.eval_size=same:data.image_size", SameAs("data.image_size")),
        (f"{SHARE}=1,0.2 if {RHO}", When((1, 0.2), RHO)),
        (f"{SHARE}=0.1..1 if {METHOD}=looksam,esam", When(Range(0.1, 1), METHOD, ("looksam", "esam"))),
        (f"{SHARE}=1,0.2 if {RHO} and {METHOD}=sam", When(When((1, 0.2), RHO), METHOD, ("sam",))),
        ("optimizer.agc.exclude=[stem.*],[a, b],[]", (("stem.*",), ("a", "b"), ())),
        ("model.weights=/a/../b.pt,none", ("/a/../b.pt", None)),
    ],
)
def test_what_a_text_means(text: str, domain: Domain) -> None:
    name, parsed = parse_sweep(text)
    assert (name, parsed) == (text.partition("=")[0].strip(), domain)
    if "/" not in text:
        assert parse_sweep(f"{name}={domain_text(parsed)}") == (name, parsed)


BAD_SWEEPS = [
    ("data.eval_size=same:", "write the other field behind same:"),
    (CLIP, "write it as FIELD=0.01,0.02,none"),
    (f"{CLIP}=", "there is no value; is a shell variable not set?"),
    (f"{CLIP}=0.1,,0.2", "a value is missing next to a comma"),
    (f"{CLIP}=0.1,", "a value is missing next to a comma"),
    ("optimizer.agc.clip_facto=1", f"did you mean {CLIP}"),
    ("seed=0,1", "seed cannot be swept: give --seeds N"),
    (f"{CLIP}=0.1,log:0.2..0.3", "only none can be combined with a range"),
    (f"{CLIP}=0.1..0.2,0.3..0.4", "give one range, or list all values"),
    (f"{CLIP}=lin:0.1..0.2", "lin is not a kind of range; there are log:LOW..HIGH and int:LOW..HIGH"),
    (f"{CLIP}=0.1..x", "the ends of a range are numbers"),
    (f"{CLIP}=..", "the ends of a range are numbers"),
    (f"{CLIP}=0.1 if", f"{CLIP} = '0.1 if' is not allowed"),
    (f"{CLIP}=0.1 if {RHO}=", "write a condition as"),
    (f"{CLIP}=0.1 if {RHO} if {METHOD}", "join conditions with 'and'"),
    (f"{CLIP}=0.1 if optimizer.sam.rhoo", "did you mean optimizer.sam.rho"),
    (f"{CLIP}=0.1..0.2 if {RHO}", f"its condition never holds, since {RHO} is none; set or sweep {RHO} accordingly"),
    (f"{CLIP}=0.2..0.1", "the low end must be less than the high end"),
    (f"{CLIP}=auto", "it takes a number above 0, or none"),
    (f"{METHOD}=1..2", "the field does not take numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_SWEEPS)
def test_a_bad_sweep_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        asked_space({}, Recipe(), {}, dict([parse_sweep(text)]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sweep_replaces_the_domain_of_the_study_or_is_its_last_field() -> None:
    space: Mapping[str, Domain] = {CLIP: (0.01, 0.02), "batch_size": (64, 256)}
    asked = asked_space(space, Recipe(), {"batch_size": 64}, {RHO: (None, 0.1), CLIP: (0.5,)})
    assert list(asked.items()) == [(CLIP, (0.5,)), ("batch_size", (4096,)), (RHO, (None, 0.1))]
    with pytest.raises(UserError, match="batch_size is both set and swept"):
        asked_space(space, Recipe(), {"batch_size": 64}, {"batch_size": (1, 2)})


def plan(program: Any, name: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    measured = Probe(1.0, 1.0, (0.1, 0.1), images=64, image_size=32, eval_seconds=1.0, eval_images=360)
    monkeypatch.setattr("studies.running.planning.plan_text.probe_at_once", lambda *_: measured)
    return main(program, FOLDER / f"{name}.py", ["--plan", *flags])


def words(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def test_a_question_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        plan(
            PROGRAM, "sweep", monkeypatch, "--sweep", f"{RHO}=none,0.1", "--sweep", f"{SHARE}=1,0.2 if {RHO}"
        )
        == 0
    )
    said = words(capsys)
    assert "Which rho is best, and how does that depend on ascent_share?" in said
    assert "none – 0/8 waiting 0.1 1 0/8 waiting 0.1 0.2 0/8 waiting" in said
    assert f"{SHARE} is swept over 1,0.2 if {RHO}." in said
    assert "without compiling" not in said
    assert plan(PROGRAM, "sweep", monkeypatch, "--sweep", f"{RHO}=none,0.1", "--set", "compile=auto") == 0
    assert "; without compiling, where trials may be faster" in words(capsys)
    assert plan(PROGRAM, "sweep", monkeypatch) == 2
    assert "there is nothing to sweep: give --sweep FIELD=VALUES, such as" in words(capsys)
    assert list(tmp_path.iterdir()) == []


def test_every_study_takes_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ranges = ("--sweep", f"{CLIP}=none,log:0.002..0.3", "--set", "batch_size=64", "--trials", "5")
    assert plan(agc_sweep, "agc_sweep", monkeypatch, *ranges) == 0
    said = words(capsys)
    assert "5 trials of nfnet_pico" in said
    assert f"{CLIP} is swept over none,log:0.002..0.3." in said
    assert plan(sam_sweep, "sam_sweep", monkeypatch, "--sweep", f"{SHARE}=0.5 if {RHO}") == 0
    assert "6 trials of nfnet_pico" in words(capsys)
    assert plan(sam_sweep, "sam_sweep", monkeypatch, "--set", f"{RHO}=none") == 0
    said = words(capsys)
    assert "1 trial of nfnet_pico" in said
    assert (
        f"{SHARE} is 1 in every trial: its condition never holds, since {RHO} is none; set or sweep" in said
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--set", f"{CLIP}=0.1,0.2"],
            f"--set takes one value; to try several, give a study --sweep {CLIP}=0.1,0.2",
        ),
        (["--set", f"{CLIP}=log:0.1..0.2"], f"to try several, give a study --sweep {CLIP}=log:0.1..0.2"),
        (["--set", f"{METHOD}=sam,esam"], f"to try several, give a study --sweep {METHOD}=sam,esam"),
        (["--sweep", f"{CLIP}=1", "--sweep", f"{CLIP}=2"], f"--sweep {CLIP} is given twice"),
        (["--sweep", f"{CLIP}=1", "--set", f"{CLIP}=2"], f"{CLIP} is both set and swept"),
        (["--sweep", f"{CLIP}=1,2", "--resume", "x"], ""),
    ],
)
def test_a_wrong_command_line_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(agc_sweep, "agc_sweep", monkeypatch, *flags) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_python_takes_the_same_spaces() -> None:
    assert _domain(CLIP, "none,log:0.002..0.3") == Range(0.002, 0.3, log=True, or_none=True)
    assert _domain(CLIP, [0.1, None]) == (0.1, None)
    assert _domain(CLIP, When((0.1,), RHO)) == When((0.1,), RHO)


def test_lists_of_numbers_can_be_set_as_before() -> None:
    from nfnet_ray.recipe import parse_setting

    assert parse_setting("model.overrides.width=16,32") == ("model.overrides.width", (16, 32))
    assert parse_setting("model.weights=a,b.pt") == ("model.weights", "a,b.pt")
