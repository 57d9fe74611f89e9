"""Tables for a terminal: all models, or the parts of one model. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nfnet_ray.models.catalogue import count_multiply_adds, count_parameters, get_model, list_models
from nfnet_ray.models.costs import part_costs
from nfnet_ray.models.own.source import source_of
from nfnet_ray.models.variants import Variant, block_name, block_plan
from nfnet_ray.wording import count


def list_table(num_classes: int) -> str:
    """A table with a line for each model: parameters, and the image size and multiply-adds of training and test."""
    rows = [("model", "parameters", "train px", "MACs", "test px", "MACs")]
    for name in list_models():
        model = get_model(name)
        rows.append(
            (
                name,
                f"{count_parameters(name, num_classes):,}",
                str(model.train_size),
                _giga(count_multiply_adds(name, model.train_size, num_classes)),
                str(model.test_size),
                _giga(count_multiply_adds(name, model.test_size, num_classes)),
            )
        )
    return aligned(rows)


def block_table(variant: Variant, image_size: int, num_classes: int) -> str:
    """A table with a line for each part of a network, from the stem to the classifier.

    `SE` is the number of hidden units of squeeze-excite, `drop rate` is the one of stochastic depth, and `out px` is
    the side of the output in pixels.
    """
    stem = (3, *(conv.out_channels for conv in variant.stem))
    last, pooled = variant.stage_channels[-1], variant.pooled_channels
    details = {
        "stem": ["", " → ".join(map(str, stem))],
        "final_conv": ["", f"{last} → {pooled}"],
        "classifier": ["", f"{pooled} → {num_classes}"],
    }
    for index, (block, (stage, _)) in enumerate(
        zip(block_plan(variant), variant.stages_and_inputs, strict=True)
    ):
        details[block_name(index)] = [
            str(stage + 1),
            f"{block.in_channels} → {block.out_channels}",
            str(block.bottleneck_channels),
            str(block.groups),
            str(block.stride),
            f"{block.beta:.5f}",
            f"{block.stochastic_depth:.5f}",
            str(block.se_channels or ""),
        ]
    headings = ["stage", "channels", "bottleneck", "groups", "stride", "beta", "drop rate", "SE"]
    rows = [["part", *headings, "out px", "parameters", "MACs"]]
    for part in part_costs(variant, image_size, num_classes):
        detail = details[part.name] + [""] * (len(headings) - len(details[part.name]))
        costs = [str(part.output_size), f"{part.parameters:,}", f"{part.multiply_adds / 1e6:,.1f} M"]
        rows.append([part.name, *detail, *costs])
    return aligned(rows)


def summary(name: str, overrides: Mapping[str, Any], image_size: int, num_classes: int) -> str:
    """A text with the cost of a whole model and its published values."""
    model = get_model(name, overrides)
    meanings: dict[int, list[str]] = {image_size: []}
    for size, meaning in ((model.train_size, "training"), (model.test_size, "test")):
        meanings.setdefault(size, []).append(meaning)
    multiply_adds = ", ".join(
        f"{_giga(count_multiply_adds(name, size, num_classes, overrides))} at {size} px"
        + (f" ({' and '.join(meaning)})" if meaning else "")
        for size, meaning in meanings.items()
    )
    lines = [
        f"{name}: {count_parameters(name, num_classes, overrides):,} parameters for {count(num_classes, 'class')}",
        f"multiply-adds: {multiply_adds}",
        f"dropout {model.dropout:g}, stochastic depth {model.stochastic_depth:g}",
    ]
    if isinstance(model, Variant):
        lines[-1] += f", alpha {model.alpha:g}, activation {model.activation}"
    return "\n".join(lines)


def own_summary(name: str, overrides: Mapping[str, Any], image_size: int | None, num_classes: int) -> str:
    """A text with the file and the cost of a user's own network. Raises UserError if it fails on such images."""
    parameters = count_parameters(name, num_classes, overrides)
    lines = [
        source_of(name).sentence(),
        f"{name}: {parameters:,} parameters for {count(num_classes, 'class')}",
    ]
    if image_size is not None:
        multiply_adds = count_multiply_adds(name, image_size, num_classes, overrides)
        lines.append(f"multiply-adds: {_giga(multiply_adds)} at {image_size} px")
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of columns: the first one left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _giga(multiply_adds: int) -> str:
    return f"{multiply_adds / 1e9:.3f} G"
