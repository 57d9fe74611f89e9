"""Records, layer by layer, how large gradients are relative to their parameters, and how many units AGC clips.

The ratio of a unit is ‖g‖ / max(‖w‖, eps), which AGC compares with the clip factor. Ratios are counted in bins whose
edges, :data:`EDGES`, are a quarter of an octave apart. The clip factors of the paper's grid (0.01, 0.02, 0.04, …) are
among the edges, so the share of units that each of them would clip is counted and not interpolated.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# With four bins per octave a bin is 19% wide, so that a quantile is known to within 10%.
BINS_PER_OCTAVE = 4
LOWEST_OCTAVE, HIGHEST_OCTAVE = -12, 14
"""The bins cover ratios from 0.01 * 2**-12 = 2.4e-6 to 0.01 * 2**14 = 164. In the first epoch of nfnet_pico on digits
the ratios of the stem are between 1e-3 and 0.3. Those of a residual branch are smaller than the bins' range while its
skip gain is almost 0. Those of a bias of 0 sometimes exceed the range, since its gradient is divided by eps."""
REFERENCE_RATIO = 0.01
"""The clip factor that the paper recommends for a batch of 4096."""

EDGES: NDArray[np.float64] = REFERENCE_RATIO * np.exp2(
    np.arange(LOWEST_OCTAVE * BINS_PER_OCTAVE, HIGHEST_OCTAVE * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE
)
BINS = len(EDGES) + 1
"""Bin b counts the ratios above EDGES[b - 1], up to and including EDGES[b]. The last bin also counts NaN."""
OCTAVES: NDArray[np.float64] = EDGES[::BINS_PER_OCTAVE]
"""0.01 times each power of two within the range of the bins."""

GAINS_AND_BIASES = "gains and biases"
"""The part to which all gains and biases belong. Each vector or scalar is one unit. Unlike weights, they start at 0, so
their ratios are large at first."""

QUANTILES = (0.05, 0.5, 0.95, 1.0)

# In the text, a quantile is one byte, the index of a quarter of an octave, and a share is two bytes.
_NONE, _BEYOND = 0, 255
_ALL = 65535


@dataclass(frozen=True)
class LayerClipping:
    """One layer's weight, or the gains and biases of a part of the network.

    Attributes:
        name: the name of the layer; empty for gains and biases.
        part: the part of the network to which the layer belongs, such as ``stem`` or ``stage 1``.
        units: the number of units.
        clipped: the share of the units that AGC clipped, as a mean over the steps.
        quantiles: the ratios' quantiles at :data:`QUANTILES`, over units and steps, to within 10%. 0 means that the
            quantile is below the range of the bins, and infinity that it is above the range or NaN.
    """

    name: str
    part: str
    units: int
    clipped: float
    quantiles: tuple[float, ...]

    @property
    def counted_in(self) -> str:
        """The part in whose shares this layer is counted. All gains and biases are a separate part."""
        return self.part if self.name else GAINS_AND_BIASES


@dataclass(frozen=True)
class Clipping:
    """The ratios of the steps since the previous record.

    Attributes:
        steps: the number of counted steps.
        layers: the layers, in the order of the network.
        shares_above: {part: for each of :data:`OCTAVES`, the share of the part's units and steps with a larger ratio}.
            The gains and biases of the whole network are the part :data:`GAINS_AND_BIASES`.
        first_step_above: for each of :data:`OCTAVES`, the first counted step of the run, from 1, at which the ratio of
            any unit was larger; 0 if there was none yet. Before this step, a run with this clip factor or a larger one
            has the same weights as a run without clipping.
    """

    steps: int
    layers: tuple[LayerClipping, ...]
    shares_above: dict[str, NDArray[np.float64]]
    first_step_above: tuple[int, ...]

    def clipped(self, part: str) -> float:
        """The share of a part's units that were clipped. ``part`` may be :data:`GAINS_AND_BIASES`."""
        layers = [layer for layer in self.layers if layer.counted_in == part]
        return sum(layer.clipped * layer.units for layer in layers) / max(1, self.units(part))

    def units(self, part: str) -> int:
        """The number of units of a part, counted as in :meth:`clipped`."""
        return sum(layer.units for layer in self.layers if layer.counted_in == part)

    def quantile(self, part: str, share: float) -> float:
        """The ratio below which ``share`` of a part's units and steps are, interpolated between :data:`OCTAVES`."""
        below = 1 - self.shares_above[part]
        return float(np.exp(np.interp(share, below, np.log(OCTAVES))))

    def metrics(self) -> dict[str, float]:
        """``agc/PART/clipped_fraction`` and ``agc/PART/ratio_median`` of each part, for a chart over the epochs."""
        found = {}
        for part in self.shares_above:
            name = f"agc/{part.replace(' ', '_')}"
            found[f"{name}/clipped_fraction"] = self.clipped(part)
            found[f"{name}/ratio_median"] = self.quantile(part, 0.5)
        return found

    def to_text(self) -> str:
        """The record as one line of base64: about 1,000 characters for nfnet_pico, 1,500 for NFNet-F0."""
        header = {
            "octaves": [LOWEST_OCTAVE, HIGHEST_OCTAVE],
            "steps": self.steps,
            "layers": [[layer.name, layer.part, layer.units] for layer in self.layers],
            "parts": list(self.shares_above),
            "first_step_above": list(self.first_step_above),
        }
        shares = _share_codes(np.array([layer.clipped for layer in self.layers]))
        above = _share_codes(np.array(list(self.shares_above.values())))
        quantiles = _ratio_codes(np.array([layer.quantiles for layer in self.layers]))
        # Numbers of one kind are stored next to each other, which compresses better.
        content = b"".join(
            [
                json.dumps(header, separators=(",", ":")).encode() + b"\n",
                shares.T.tobytes(),
                np.diff(above, axis=1, append=0).astype("<u2").tobytes(),
                quantiles.T.tobytes(),
            ]
        )
        return base64.b64encode(zlib.compress(content, 9)).decode()

    @staticmethod
    def from_text(text: str) -> Clipping:
        """The record that :meth:`to_text` has written, up to rounding. Raises ValueError for any other text."""
        try:
            header_line, content = zlib.decompress(base64.b64decode(text, validate=True)).split(b"\n", 1)
            header = json.loads(header_line)
            if header.get("octaves", [-12, 14]) != [LOWEST_OCTAVE, HIGHEST_OCTAVE]:
                raise ValueError(f"a record of the octaves {header['octaves']}, by another version")
            names, parts = header["layers"], header["parts"]
            shares_end = 2 * len(names)
            above_end = shares_end + 2 * len(parts) * len(OCTAVES)
            shares = _shares(np.frombuffer(content[:shares_end], "<u2"))
            steps = np.frombuffer(content[shares_end:above_end], "<u2").reshape(len(parts), -1)
            above = _shares(-steps[:, ::-1].cumsum(axis=1, dtype="<u2")[:, ::-1])
            quantiles = _ratios(np.frombuffer(content[above_end:], np.uint8)).reshape(len(QUANTILES), -1).T
            return Clipping(
                steps=header["steps"],
                layers=tuple(
                    LayerClipping(name, part, units, float(clipped), tuple(map(float, of_layer)))
                    for (name, part, units), clipped, of_layer in zip(names, shares, quantiles, strict=True)
                ),
                shares_above=dict(zip(parts, above, strict=True)),
                first_step_above=tuple(header["first_step_above"]),
            )
        except (zlib.error, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a record of clipping ({error})") from error


def clipping_from_counts(
    layers: Sequence[tuple[str, str, int]],
    counts: NDArray[np.int64],
    clipped: NDArray[np.int64],
    steps: int,
    first_step_above: Sequence[int],
) -> Clipping:
    """Makes a record from counts.

    Args:
        layers: (name, part, units) of each layer, as in :class:`LayerClipping`.
        counts: (layers, :data:`BINS`), units and steps in each bin.
        clipped: (layers,), units and steps that were clipped.
        steps: the number of counted steps.
        first_step_above: for each of :data:`OCTAVES`, as in :class:`Clipping`.
    """
    of_layers = tuple(
        LayerClipping(name, part, units, many / max(1, units * steps), _quantiles(row))
        for (name, part, units), many, row in zip(layers, clipped.tolist(), counts, strict=True)
    )
    of_parts: dict[str, NDArray[np.int64]] = {}
    for layer, row in zip(of_layers, counts, strict=True):
        of_parts[layer.counted_in] = of_parts.get(layer.counted_in, np.zeros(BINS, np.int64)) + row
    if GAINS_AND_BIASES in of_parts:  # this part comes last, wherever its first layer is in the network
        of_parts[GAINS_AND_BIASES] = of_parts.pop(GAINS_AND_BIASES)
    return Clipping(
        steps=steps,
        layers=of_layers,
        shares_above={part: _shares_above(row) for part, row in of_parts.items()},
        first_step_above=tuple(first_step_above),
    )


def _shares_above(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    above = counts[::-1].cumsum()[::-1][1:]  # for each edge, the counts of all bins above it
    shares: NDArray[np.float64] = above[::BINS_PER_OCTAVE] / max(1, int(counts.sum()))
    return shares


def _quantiles(counts: NDArray[np.int64]) -> tuple[float, ...]:
    """The ratios at :data:`QUANTILES`, interpolated within a bin on the logarithm of the ratio."""
    total, up_to = int(counts.sum()), counts.cumsum()
    found = []
    for share in QUANTILES:
        number = int(np.searchsorted(up_to, max(1.0, share * total)))
        if total == 0 or number == 0:
            found.append(0.0)
        elif number == BINS - 1:
            found.append(np.inf)
        else:
            within = (share * total - up_to[number - 1]) / counts[number]
            found.append(float(EDGES[number - 1] * 2 ** (max(0.0, within) / BINS_PER_OCTAVE)))
    return tuple(found)


def _share_codes(shares: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Encodes shares as 16-bit numbers. Only 0 and 1 get their codes, so "nothing" and "almost nothing" stay apart."""
    codes = np.clip(np.rint(shares * _ALL), 1, _ALL - 1)
    return np.where(shares == 0, 0, np.where(shares == 1, _ALL, codes)).astype("<u2")


def _shares(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = codes / _ALL
    return shares


def _ratio_codes(ratios: NDArray[np.float64]) -> NDArray[np.uint8]:
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = 1 + np.rint(BINS_PER_OCTAVE * np.log2(ratios / EDGES[0]))
    finite = np.clip(np.nan_to_num(codes, posinf=_BEYOND - 1, neginf=1), 1, _BEYOND - 1)
    return np.where(ratios == 0, _NONE, np.where(np.isfinite(ratios), finite, _BEYOND)).astype(np.uint8)


def _ratios(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    ratios = EDGES[0] * np.exp2((codes.astype(float) - 1) / BINS_PER_OCTAVE)
    found: NDArray[np.float64] = np.where(codes == _NONE, 0.0, np.where(codes == _BEYOND, np.inf, ratios))
    return found
