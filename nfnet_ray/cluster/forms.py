"""Agreement on the form of a step: all trials of a study whose steps have the same shape train in the same form.

The fastest form is found by timing. Two trials that time separately might choose different forms, which round
differently. So the first trial of a shape times, and the others wait as long as it gives signs of life. The driver
writes the choice to the journal before any trial trains with it, so it also holds after a crash, a ``--resume`` and an
``--extend``. If several trials have timed because the first one seemed to be dead, the driver takes the choice that
arrives first.

:class:`FormBook` runs in the driver, and :func:`agree` in a worker.
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
"""The time without signs of life after which a trial that times is considered dead. It is long because a compiler may
block Python's threads, and because the head of the cluster may be away."""
MOST_ENDED_PROCESSES = 2
"""A form is left out after this number of processes have ended while compiling it, since a compiler that hangs or
crashes would end every process. One of them may have been on a machine that was taken back."""

logger = logging.getLogger(__name__)


class FormBook:
    """The driver's record of the forms in which its trials train.

    Args:
        name: the name of the Register in which workers look for the forms.
    """

    def __init__(self, recorder: Recorder, name: str | None = None) -> None:
        self.name = name or f"forms-{secrets.token_hex(8)}"
        self._recorder, self._register = recorder, Register(self.name)
        self._unanswered: set[str] = set()

    def take(self, trial: str, shape: str, choice: Mapping[str, Any]) -> None:
        """Records the choice of a trial, and answers with the valid one: the first choice for this shape."""
        self._recorder.record_form(trial, shape, choice)
        self._unanswered.add(shape)
        self.answer()

    def answer(self) -> None:
        """Sends the answers that could not be sent before because the head of the cluster was away."""
        for shape in [*self._unanswered]:
            known = self._recorder.state.forms.get(shape)
            try:
                if known is not None:  # otherwise the journal is lost, and the study ends
                    self._register.set(form_of(shape), known)
            except Exception as error:  # Ray may raise anything; the head may be back in a moment
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
    """The form for a trial's shape: a known one, the one that another trial is finding, or the result of ``choose``.

    ``tell`` sends the choice to the driver, and ``say`` sends it a sentence for the user.
    """
    from nfnet_ray.training.form.forms import Choice

    register, own = Register(config["forms_register"]), config["mailbox"]
    known = config["forms"].get(shape) or _wait_for_others(register, shape, own, sign_of_life)
    if known is None:
        notes = _Notes(register, shape, say, sign_of_life)
        try:
            with _signs_of_life(register, shape, own):
                choice = choose(notes)
        except Exception:  # other trials need not wait any longer
            _patiently(lambda: register.unset(claim_of(shape)))
            raise
        tell(shape, choice.to_values())
        # No signs of life here, so that the watchdog ends this process if the driver never answers.
        while known is None:
            known = _patiently(lambda: register.get(form_of(shape)))
            time.sleep(0 if known else SECONDS_BETWEEN_LOOKS)
    return Choice.from_values(known)


@contextlib.contextmanager
def _signs_of_life(register: Register, shape: str, own: str) -> Generator[None]:
    """A context in which a thread tells waiting trials that this process is alive, however long it compiles.

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
    """The FormNotes of a trial, in the register, where a process that takes over reads them."""

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
    """The form that another trial has chosen; None if this trial has to choose, and holds the claim to do so."""
    claim, since = None, time.monotonic()
    while True:
        known = _patiently(lambda: register.get(form_of(shape)))
        if known is not None:
            return known
        _patiently(lambda: register.set_first(claim_of(shape), f"{own} 0"))
        found = _patiently(lambda: register.get(claim_of(shape)))
        # The claim belongs to this trial: it was just made, or an earlier process made it and was lost.
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
    """Returns the result of ``act``; None if the head of the cluster is away, which may be back in a moment."""
    try:
        return act()
    except Exception as error:
        logger.warning("the cluster's head does not answer (%s)", error)
        return None
