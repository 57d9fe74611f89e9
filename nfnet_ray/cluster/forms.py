"""One form for all trials of a study whose steps have the same shape: how their workers and the driver agree on it.

The fastest form is found by timing, and two trials that time by themselves may choose two forms, with other last bits.
So the first trial of a shape times; the others wait for it, as long as it gives signs of life, and the driver writes
its choice into the journal before anybody trains with it. With that, the choice holds after a crash, a ``--resume`` and
an ``--extend``. If several trials have timed after all, since the first one seemed to be dead, the driver takes the
choice that reaches it first.

The driver's part is :class:`FormBook`; :func:`agree` runs in a worker.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

from nfnet_ray.cluster.mailbox import Register
from nfnet_ray.cluster.messages.configs import WorkerConfig
from nfnet_ray.cluster.messages.register_values import begun_of, claim_of, form_of

if TYPE_CHECKING:
    from nfnet_ray.study.recorder import Recorder
    from nfnet_ray.training.context import FormNotes
    from nfnet_ray.training.form.forms import Choice

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_SIGNS = 10.0
SECONDS_WITHOUT_NEWS = 600.0
"""After which a trial that times is taken for dead. Far more than between its signs of life, since a compiler may keep
Python's threads from running, and the cluster's head may be away."""
MOST_ENDED_PROCESSES = 2
"""While they compiled a form, until it is left out: a compiler that hangs or crashes would end them all. One may have
been on a machine that was taken back."""

logger = logging.getLogger(__name__)


class FormBook:
    """The driver's record of the forms that its trials are trained in.

    Args:
        name: of the Register in which the workers find them.
    """

    def __init__(self, recorder: Recorder, name: str | None = None) -> None:
        self.name = name or f"forms-{secrets.token_hex(8)}"
        self._recorder, self._register = recorder, Register(self.name)
        self._unanswered: set[str] = set()

    def take(self, trial: str, shape: str, choice: Mapping[str, Any]) -> None:
        """Takes in what a trial has chosen, and answers with what holds: the first choice of the shape."""
        self._recorder.record_form(trial, shape, choice)
        self._unanswered.add(shape)
        self.answer()

    def answer(self) -> None:
        """Gives the answers that could not be given yet, because the cluster's head was away."""
        for shape in [*self._unanswered]:
            known = self._recorder.state.forms.get(shape)
            try:
                if known is not None:  # else the journal is lost, and the study ends
                    self._register.set(form_of(shape), known)
            except Exception as error:  # whatever Ray raises; the head may be back in a moment
                logger.warning("the cluster's head does not answer (%s)", error)
                return
            self._unanswered.discard(shape)


def agree(
    config: WorkerConfig,
    shape: str,
    choose: Callable[[FormNotes], Choice],
    tell: Callable[[str, dict[str, Any]], object],
    say: Callable[[str], object],
    sign_of_life: Callable[[], object],
) -> Choice:
    """The form of a trial's shape: a known one, that of the trial which times it now, or the one that ``choose`` finds.

    ``tell`` sends the choice to the driver, and ``say`` sends it a sentence for a person.
    """
    from nfnet_ray.training.form.forms import Choice

    register, own = Register(config["forms_register"]), config["mailbox"]
    known = config["forms"].get(shape) or _wait_for_others(register, shape, own, sign_of_life)
    if known is None:
        notes = _Notes(register, shape, say, sign_of_life)
        try:
            with _signs_of_life(register, shape, own):
                choice = choose(notes)
        except Exception:  # no other trial need wait
            _patiently(lambda: register.unset(claim_of(shape)))
            raise
        tell(shape, choice.to_values())
        # Without signs of life: if the driver never answers, the watchdog ends this process.
        while known is None:
            known = _patiently(lambda: register.get(form_of(shape)))
            time.sleep(0 if known else SECONDS_BETWEEN_LOOKS)
    return Choice.from_values(known)


@contextlib.contextmanager
def _signs_of_life(register: Register, shape: str, own: str) -> Generator[None]:
    """Within it a thread tells the trials that wait that this process is alive, however long it compiles.

    If compiling never ends, the watchdog ends the process.
    """
    over = threading.Event()

    def beat() -> None:
        for number in itertools.count(1):
            if over.wait(SECONDS_BETWEEN_SIGNS):
                return
            _patiently(lambda number=number: register.set(claim_of(shape), f"{own} {number}"))

    thread = threading.Thread(target=beat, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Notes:
    """The FormNotes of a trial: in the register, where a process that takes over finds them."""

    def __init__(
        self,
        register: Register,
        shape: str,
        say: Callable[[str], object],
        sign_of_life: Callable[[], object],
    ) -> None:
        self._register, self._name = register, begun_of(shape)
        self._say, self._sign_of_life = say, sign_of_life
        self._form, self._has_said = "", False

    def begin_compiling(self, form: str) -> bool:
        begun = self._begun()
        if begun.get(form, 0) >= MOST_ENDED_PROCESSES:
            return False
        if not self._has_said:
            self._has_said = True
            self._say(
                "compiled forms of a step are timed, each after minutes of compilation; "
                "to train without: --set compile=false"
            )
        self._form = form
        self._set(begun | {form: begun.get(form, 0) + 1})
        return True

    def end_form(self) -> None:
        if self._form:
            self._set({form: count for form, count in self._begun().items() if form != self._form})
            self._form = ""
        self._sign_of_life()

    def _begun(self) -> dict[str, int]:
        return _patiently(lambda: self._register.get(self._name)) or {}

    def _set(self, begun: dict[str, int]) -> None:
        _patiently(lambda: self._register.set(self._name, begun))


def _wait_for_others(
    register: Register, shape: str, own: str, sign_of_life: Callable[[], object]
) -> dict[str, Any] | None:
    """The form that another trial has chosen; None if this trial has to choose, which then holds the claim."""
    claim, since = None, time.monotonic()
    while True:
        known = _patiently(lambda: register.get(form_of(shape)))
        if known is not None:
            return known
        _patiently(lambda: register.set_first(claim_of(shape), f"{own} 0"))
        found = _patiently(lambda: register.get(claim_of(shape)))
        # Its own: of a process before this one, which was lost, or just made.
        if found is not None and found.startswith(f"{own} "):
            return None
        if found != claim:
            claim, since = found, time.monotonic()
        elif time.monotonic() - since > SECONDS_WITHOUT_NEWS:
            _patiently(lambda: register.set(claim_of(shape), f"{own} 0"))
            return None
        sign_of_life()
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _patiently(act: Callable[[], Any]) -> Any:
    """Its result; None if the cluster's head is away, which may be back in a moment."""
    try:
        return act()
    except Exception as error:
        logger.warning("the cluster's head does not answer (%s)", error)
        return None
