"""Shows a new network's signal propagation: measured and expected variance by block, as a page and a table.

    python -m dashboards.signal_propagation NAME PAGE.html [--size PIXELS] [--set FIELD=VALUE]

The network is measured on noise (:func:`nfnet_ray.models.signal.signal_of_new_network`).
"""

from __future__ import annotations

from nfnet_ray.command_line.program import begin

if __name__ == "__main__":
    begin()  # first, as the following imports take seconds

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dashboards.figures.level_styles import INK, Look, levels_of, looks_of
from dashboards.figures.time_charts import Figure
from dashboards.page import Chart, Legend, legend_entry, render_page
from nfnet_ray.command_line.arguments import given_path, positive
from nfnet_ray.command_line.exit_code import exit_code_of
from nfnet_ray.command_line.one_line_parser import OneLineParser
from nfnet_ray.errors import UserError
from nfnet_ray.models.catalogue import get_model
from nfnet_ray.models.tables import aligned
from nfnet_ray.models.variants import OVERRIDE_FORM, OVERRIDES, Variant
from nfnet_ray.settings import each_once, parse_assignment
from nfnet_ray.whole_file import whole_file

if TYPE_CHECKING:
    from nfnet_ray.models.signal import BlockSignal

MOST_PIXELS = 128
"""The side of the images unless --size is given: large enough that F0's last stage has 4x4 pixels, small enough for a
CPU. Smaller networks are measured at their training size."""
NAMED_BLOCKS = 30
"""With more blocks, only some are named at the axis."""

QUANTITIES = {
    "variance": "variance",
    "expected variance": "expected_variance",
    "squared mean": "squared_mean",
    "variance of the residual branch": "branch_variance",
}
"""{name in the legend: field of :class:`nfnet_ray.models.signal.BlockSignal`}. The index of each is its level."""
EXPECTED = "expected variance"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m dashboards.signal_propagation",
        description="Measure the activations of a network with random weights block by block, and draw them next to"
        " their expectation.",
        epilog="example:\n  python -m dashboards.signal_propagation nf_resnet50 signal.html",
    )
    parser.add_argument("name", metavar="NAME", help="an NFNet, NF-ResNet or NF-RegNet")
    parser.add_argument("page", type=given_path, metavar="PAGE.html", help="the page to write")
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help=f"side of an image (default: the model's training size, at most {MOST_PIXELS})",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help=f"change a field of the architecture: {', '.join(OVERRIDES)}; may be repeated",
    )
    options = parser.parse_args(arguments)
    return exit_code_of(parser.prog, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    model = get_model(
        options.name, each_once(parse_assignment(text, OVERRIDE_FORM) for text in options.settings)
    )
    if not isinstance(model, Variant):
        raise UserError(f"model {model.name}: the signal of a baseline has no expectation; choose an NFNet")
    from nfnet_ray.models.signal import signal_of_new_network  # imports torch, which takes seconds

    size = options.size or min(MOST_PIXELS, model.train_size)
    measured = signal_of_new_network(model, size)
    with whole_file(options.page, "w", sync=False) as file:
        file.write(signal_page(model.name, size, measured))
    print(signal_table(measured))
    print(f"wrote {options.page}")


def signal_table(measured: Mapping[str, Sequence[BlockSignal]]) -> str:
    """Returns a line for each part of the network, with variance and expectation under each condition."""
    rows = [["part", *(cell for title in measured for cell in (f"{title}: variance", "expected"))]]
    for at_one_depth in zip(*measured.values(), strict=True):
        numbers = (value for signal in at_one_depth for value in (signal.variance, signal.expected_variance))
        rows.append([at_one_depth[0].name, *(f"{number:.4g}" for number in numbers)])
    return aligned(rows)


def signal_page(name: str, image_size: int, measured: Mapping[str, Sequence[BlockSignal]]) -> str:
    """Returns the page, with a chart for each measured condition, all with the same axes."""
    from nfnet_ray.models.signal import NOISE_IMAGES

    charts = [
        Chart(
            id=f"signal-{number}",
            figure=_figure(signals, _shared_range(measured)),
            label=f"Variance of activations over depth, {condition}",
            title=condition[0].upper() + condition[1:],
        )
        for number, (condition, signals) in enumerate(measured.items())
    ]
    looks = _looks()
    return render_page(
        "signal_propagation.html.jinja",
        charts,
        looks=list(looks.values()),
        panels=charts,
        legend=Legend(
            "mean over channels",
            tuple(
                legend_entry(level, quantity, look, with_mark=quantity != EXPECTED)
                for level, (quantity, look) in enumerate(looks.items())
            ),
        ),
        name=name,
        images=NOISE_IMAGES,
        image_size=image_size,
    )


def _looks() -> dict[str, Look]:
    """Returns distinguishable looks for measured quantities; the expectation is drawn in the colour of text."""
    measured = [quantity for quantity in QUANTITIES if quantity != EXPECTED]
    looks = dict(zip(measured, looks_of(levels_of(measured)), strict=True))
    looks[EXPECTED] = Look(INK["light"], INK["dark"], "dash", "circle")
    return {quantity: looks[quantity] for quantity in QUANTITIES}


def _figure(signals: Sequence[BlockSignal], variance_range: tuple[float, float]) -> Figure:
    names = [signal.name for signal in signals]
    step = 1 + len(names) // NAMED_BLOCKS
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines" if quantity == EXPECTED else "lines+markers",
            "name": quantity,
            "x": list(range(len(signals))),
            "y": [getattr(signal, field) for signal in signals],
            "line": {"width": 1.8, "dash": look.dash},
            "marker": {"size": 5, "symbol": look.symbol},
            "customdata": names,
            "hovertemplate": "%{y:.4g}",
            "meta": {"level": level},
        }
        for level, ((quantity, field), look) in enumerate(
            zip(QUANTITIES.items(), _looks().values(), strict=True)
        )
    ]
    return {
        "data": traces,
        "layout": {
            "hovermode": "x unified",
            "xaxis": {
                "title": {"text": "depth"},
                "tickmode": "array",
                "tickvals": list(range(0, len(names), step)),
                "ticktext": names[::step],
                "tickangle": -45,
            },
            "yaxis": {
                "title": {"text": "mean over channels"},
                "type": "log",
                "range": list(variance_range),
                "exponentformat": "power",
            },
        },
    }


def _shared_range(measured: Mapping[str, Sequence[BlockSignal]]) -> tuple[float, float]:
    """Returns a range for a log axis (exponents of 10) that contains everything that is measured and drawn."""
    values = [
        value
        for signals in measured.values()
        for signal in signals
        for field in QUANTITIES.values()
        if (value := getattr(signal, field)) and math.isfinite(value)
    ]
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.06 * max(1.0, high - low)
    return low - margin, high + margin


if __name__ == "__main__":
    sys.exit(main())
