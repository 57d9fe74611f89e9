"""A study in a notebook: its tables, its answer in words, and the charts of its report.

>>> import nfnet_ray                                                               # doctest: +SKIP
>>> study = nfnet_ray.load_study("first_try")                                      # doctest: +SKIP
>>> print(study.answer())                                                          # doctest: +SKIP
>>> study.figure("accuracy_against_time", x="epochs")                              # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dashboards.trained_network import WhichEpoch, trained_network
from nfnet_ray.analysis import (
    StudyRecord,
    best_per_stratum,
    effect_sentences,
    time_sentences,
)
from nfnet_ray.analysis import load_study as load_record
from nfnet_ray.analysis.comparability import comparability
from nfnet_ray.command_line.python_arguments import a_flag, a_list, a_path, a_text, one_of
from nfnet_ray.errors import UserError
from nfnet_ray.metric import METRIC
from nfnet_ray.places import in_words

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure
    from torch import nn

    from dashboards.figures.painting import Theme
    from dashboards.page import Chart


@dataclass(frozen=True, repr=False, eq=False)
class StudyResults(StudyRecord):
    """A :class:`~nfnet_ray.analysis.StudyRecord` with its answer and figures, as returned by
    ``nfnet_ray.load_study``."""

    @classmethod
    def of(cls, record: StudyRecord) -> StudyResults:
        return cls(**{field.name: getattr(record, field.name) for field in fields(StudyRecord)})

    def answer(self) -> str:
        """Returns what the study found, as its command line prints it at the end, with one answer on each line.

        The answers are the times at equal accuracy, the best setting under each condition with its interval, and the
        effects of the fields. If no trial has finished with an accuracy, the text says so.
        """
        said = comparability(self).sentences() if self.parts else []
        return "\n".join([*said, *answer_sentences(self)])

    @functools.cached_property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that this study has, in the order of its report."""
        return tuple(self._charts)

    def figure(
        self,
        name: str,
        *,
        x: str = "time",
        y: str = METRIC,
        log_x: bool = False,
        log_y: bool = False,
        dark: bool = False,
    ) -> PlotlyFigure:
        """Returns a chart of the report as a Plotly figure, with all of its panels.

        Args:
            name: one of :attr:`figures`.
            x: for ``accuracy_against_time``, the X axis: ``time``, ``epochs``, ``images``, ``accelerator_hours``, and
                if they are known ``cost`` and ``energy`` (kWh).
            y: for ``accuracy_against_time``, the metric: a column of ``epochs``.
            log_x, log_y: for ``accuracy_against_time``, whether an axis is logarithmic.
            dark: whether to use the colours for a dark notebook.

        Raises:
            UserError: the study has no such figure, axis or metric.
        """
        from dashboards.catalogue import chart_colors, chosen_charts, with_chosen_axes
        from dashboards.figures.plotly_figures import plotly_figure, shown_at_first
        from dashboards.figures.time_charts import levels

        for axis, chosen in (("x", x), ("y", y)):
            a_text(axis, chosen, "the name of an axis" if axis == "x" else "the name of a metric")
        for option, is_on in (("log_x", log_x), ("log_y", log_y), ("dark", dark)):
            a_flag(option, is_on)
        theme: Theme = "dark" if dark else "light"
        charts = with_chosen_axes(
            chosen_charts(self._charts, name, self.study["name"]), x, y, log_x=log_x, log_y=log_y
        )
        panels = [(chart.title, shown_at_first(chart.figure)) for chart in charts]
        return plotly_figure(panels, levels(self).labels, chart_colors(self, theme), theme)

    def load_model(self, trial: str | None = None, *, epoch: WhichEpoch = "last") -> nn.Module:
        """Returns the network that a trial has trained, on the CPU and in evaluation mode.

        It has the weights with which the trial's accuracy was measured: the moving average, if the Recipe has one. It
        takes normalised images (N, 3, H, W), which :func:`nfnet_ray.data.normalise.normalise` makes from bytes, and
        returns logits (N, classes). A user's own network is built by the code that the study has kept.

        >>> study = nfnet_ray.load_study("first_try")                              # doctest: +SKIP
        >>> best = study.trials.loc[study.trials["last_top1"].idxmax(), "trial"]   # doctest: +SKIP
        >>> network = study.load_model(best)                                       # doctest: +SKIP

        Args:
            trial: the trial's name in the table ``trials``; it may be omitted if there is only one trial.
            epoch: ``last``, to which the accuracies in all tables refer, or ``best``: the epoch with the highest
                accuracy.

        Raises:
            UserError: the trial does not exist, it has finished no epoch, its checkpoint is missing or damaged, or the
                record is that of an export, which has no checkpoints.
        """
        which: WhichEpoch = one_of("epoch", epoch, ("last", "best"))  # pyrefly: ignore[bad-assignment]
        return trained_network(self, trial, which)

    def save_figures(self, folder: str | Path, names: Sequence[str] | None = None) -> list[Path]:
        """Writes figures as SVG and PDF, as wide as the column of a paper, and returns the paths.

        A figure with several panels becomes several files, such as ``accuracy_against_time-batch_size_64.svg``.
        Matplotlib draws them, with texts stored as text.

        Args:
            names: some of :attr:`figures`; by default all.

        Raises:
            UserError: the study has no such figure, or the folder cannot be written.
        """
        from dashboards.catalogue import chart_colors, chosen_charts
        from dashboards.figures.paper.files import write_figures
        from dashboards.figures.time_charts import levels

        folder = a_path("folder", folder)
        if names is None:
            names = self.figures
        names = a_list("names", [names] if isinstance(names, str) else names, "a list of names of figures")
        charts = {name: chosen_charts(self._charts, name, self.study["name"]) for name in names}
        try:
            return write_figures(charts, levels(self).labels, chart_colors(self), folder)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {in_words(error)}; choose another place") from error

    def to_latex(self, *, caption: str | None = None, label: str | None = None) -> str:
        r"""Returns the settings with their accuracies, intervals and times as a LaTeX table with the rules of booktabs.

        The result is a ``tabular`` or, with a caption or a label, a ``table`` like that of
        :meth:`pandas.DataFrame.to_latex`. The document needs ``\usepackage{booktabs}``. ``python -m dashboards.report
        STUDY --data DIR`` writes it, too.
        """
        from nfnet_ray.analysis.files.latex import settings_latex

        for name, text in (("caption", caption), ("label", label)):
            if text is not None:
                a_text(name, text, "a text of LaTeX")
        return settings_latex(self, caption, label)

    @functools.cached_property
    def _charts(self) -> dict[str, tuple[Chart, ...]]:
        from dashboards.catalogue import charts_by_name

        return charts_by_name(self)


def load_study(study: str | Path | Sequence[str | Path], *more: str | Path) -> StudyResults:
    """Reads the journal of a study, which may still be running, or those of several studies as one record.

    Args:
        study: a study's folder, its name under ``runs``, or a folder that ``python -m studies export`` wrote; or a list
            of these.
        more: further studies. The tables of several studies have a column ``study``, and their answer first says what
            prevents comparisons.

    Raises:
        UserError: a study does not exist, a study is given twice, or a journal is damaged or does not begin with
            ``study_started``.
    """
    return StudyResults.of(load_record(study, *more))


def answer_sentences(record: StudyRecord) -> list[str]:
    """Returns times, the best setting of each stratum and the effects of fields, or says that no setting is best."""
    bests = best_per_stratum(record)
    answers = [f"{said}." for said in (*time_sentences(record), *(best.sentence() for best in bests))]
    if not answers:
        return ["No trial finished with an accuracy, so there is no best setting."]
    # Effects of fields are only defined within a study.
    return answers if record.parts else [*answers, *(f"{said}." for said in effect_sentences(record))]
