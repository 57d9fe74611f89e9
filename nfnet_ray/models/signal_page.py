"""A page that shows a new network's signal propagation: measured and expected variance, block by block."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from nfnet_ray.models.nfnet import NFBlock, NFNet
from nfnet_ray.models.signal import BlockSignal, measure_signal
from nfnet_ray.models.tables import aligned
from nfnet_ray.models.variants import Variant

IMAGES = 8
SEED = 0

_INK, _MUTED, _GRID = "#22282f", "#5b6570", "#e3e6ea"
_BLUE, _ORANGE, _GREEN = "#1f5fa8", "#c2571a", "#2f7d4f"
_PANEL_HEIGHT_PIXELS = 380


def write_signal_page(variant: Variant, image_size: int, path: Path) -> str:
    """Measure a new network on noise, once with its initial skip gains and once with all of them 1; draw both.

    There are `IMAGES` images of unit normal numbers, (3, image_size, image_size) each. Seeds are fixed, and
    torch's own generator is left alone. The page stands for itself: it loads nothing. Gives the numbers as a
    table.

    Raises OSError where the page cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = NFNet(variant, num_classes=1)
        images_NCHW = torch.randn(IMAGES, 3, image_size, image_size)
    measured = {"initial skip gains, 0": measure_signal(model, images_NCHW)}
    for block in model.blocks:
        assert isinstance(block, NFBlock)
        nn.init.ones_(block.skip_gain)
    measured["skip gains of 1"] = measure_signal(model, images_NCHW)
    path.write_text(_page(variant, image_size, measured), encoding="utf-8")
    return _table(measured)


def _table(measured: Mapping[str, Sequence[BlockSignal]]) -> str:
    rows = [["part", *(cell for title in measured for cell in (f"{title}: variance", "expected"))]]
    for at_one_depth in zip(*measured.values(), strict=True):
        numbers = (
            number for signal in at_one_depth for number in (signal.variance, signal.expected_variance)
        )
        rows.append([at_one_depth[0].name, *(f"{number:.4g}" for number in numbers)])
    return aligned(rows)


def _page(variant: Variant, image_size: int, measured: Mapping[str, Sequence[BlockSignal]]) -> str:
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(measured),
        cols=1,
        shared_xaxes=True,
        shared_yaxes="all",
        vertical_spacing=0.09,
        subplot_titles=[title[0].upper() + title[1:] for title in measured],
    )
    for row, signals in enumerate(measured.values(), start=1):
        for name, values, style in (
            ("variance", [s.variance for s in signals], {"color": _BLUE, "width": 2.2}),
            ("expected variance", [s.expected_variance for s in signals], {"color": _INK, "dash": "dash"}),
            ("squared mean", [s.squared_mean for s in signals], {"color": _ORANGE, "width": 1.5}),
            ("variance of the residual branch", [s.branch_variance for s in signals], {"color": _GREEN}),
        ):
            trace = graph_objects.Scatter(
                x=list(range(len(signals))),
                y=values,
                name=name,
                mode="lines" if name == "expected variance" else "lines+markers",
                line=style,
                marker={"size": 5},
                legendgroup=name,
                showlegend=row == 1,
                customdata=[signal.name for signal in signals],
                hovertemplate="%{customdata}: %{y:.4g}",
            )
            figure.add_trace(trace, row=row, col=1)
    names = [signal.name for signal in next(iter(measured.values()))]
    step = 1 + len(names) // 30  # of more than 30 parts only some are named at the axis
    figure.update_xaxes(
        tickvals=list(range(0, len(names), step)),
        ticktext=names[::step],
        tickangle=-45,
        gridcolor=_GRID,
        zeroline=False,
    )
    figure.update_yaxes(type="log", exponentformat="power", gridcolor=_GRID, title="mean over channels")
    figure.update_layout(
        height=_PANEL_HEIGHT_PIXELS * len(measured) + 100,
        margin={"l": 70, "r": 20, "t": 70, "b": 80},
        legend={"orientation": "h", "y": 1.06, "x": 0, "yanchor": "bottom"},
        hovermode="x unified",
        plot_bgcolor="white",
        font={"color": _INK, "size": 13},
    )
    title = f"Signal propagation in a new {variant.name}"
    text = (
        f"{IMAGES} images of {image_size}×{image_size} unit normal numbers, one seed. Solid: measured; dashed: "
        "what the design expects, which takes for granted that convolutions and pooling keep the variance. "
        "Neighbours in noise have nothing in common, so an average pooling leaves a quarter of it or less, of "
        "photographs half and more; NF-ResNets have no average pooling. See docs/methods/signal_propagation.md."
    )
    plot = figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {_INK}; max-width: 1100px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.4em; margin-bottom: 0.2em }}
p {{ color: {_MUTED}; max-width: 75ch }}
</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{html.escape(text)}</p>
{plot}
</body>
</html>
"""
