"""Which validation images a network classified correctly: one bit for each image.

Two trials see the same images, and mostly err on the same ones. With these bits they are compared image by image, which
tells much smaller differences apart than two accuracies do (McNemar 1947).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CorrectImages:
    """Both arrays are bool (N,), in the order of the validation images in the data set.

    Attributes:
        correct: whether the label had the largest logit, as the metric counts it; False where it was not measured.
        measured: whether the image was evaluated. A damaged one may have been left out.
    """

    correct: NDArray[np.bool_]
    measured: NDArray[np.bool_]

    def to_text(self) -> str:
        """``N:BITS``, and ``N:BITS:BITS`` with those of ``measured`` if an image was left out.

        The bits are packed, the first image's highest in the first byte, and written in base64: 8,339 characters for
        the 50,000 images of ImageNet.
        """
        parts = [self.correct] if self.measured.all() else [self.correct, self.measured]
        packed = (base64.b64encode(np.packbits(part).tobytes()).decode() for part in parts)
        return ":".join([str(len(self.correct)), *packed])

    @staticmethod
    def from_text(text: str) -> CorrectImages:
        """What :meth:`to_text` wrote. Raises ValueError for anything else."""
        number, *packed = text.split(":")
        images = int(number)
        if len(packed) not in (1, 2):
            raise ValueError(f"{len(packed)} groups of bits; there are one or two")
        correct, measured = (_unpacked(part, images) for part in (packed[0], packed[-1]))
        if len(packed) == 1:
            measured = np.ones(images, bool)
        return CorrectImages(correct, measured)


def _unpacked(text: str, images: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-images // 8):
        raise ValueError(f"{len(packed)} bytes of bits; {images} images have {-(-images // 8)}")
    return np.unpackbits(packed, count=images).astype(bool)
