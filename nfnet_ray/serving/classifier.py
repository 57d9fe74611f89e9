"""From the bytes of an image file to a class, as the validation of the network's run saw its images.

MLflow's ``pyfunc`` loads a published model through this module, so it needs nfnet_ray, but no MLflow, Ray or data set.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nfnet_ray.data.augmentation.crop import central_square_boxes, squash_and_crop, whole_boxes
from nfnet_ray.data.decoding.decode import decode_jpeg, resize_crop
from nfnet_ray.data.decoding.jpeg import DecodeError, jpeg_header
from nfnet_ray.data.decoding.pillow_image import (
    MOST_PIXELS,
    UnreadableImageError,
    open_image,
    orientation_of_jpeg,
    turned_upright,
)
from nfnet_ray.data.normalise import normalise
from nfnet_ray.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from nfnet_ray.data.files.dataset import Dataset
    from nfnet_ray.recipe import ResolvedData

IMAGE_COLUMN = "image"
DESCRIPTION_FILE = "classifier.json"
NETWORK_FILE = "model.pth"
"""As MLflow's pytorch flavour calls it (mlflow/pytorch/__init__.py)."""
_IMAGES_AT_ONCE = 64
_JPEG = b"\xff\xd8"  # how its files begin


@dataclass(frozen=True)
class Description:
    """The data that a classifier needs besides its network.

    Attributes:
        class_names: in the order of the network's outputs.
        eval_size: side of the square that the network sees, in pixels.
        eval_crop: as in the Recipe.
        max_side: images are first shrunk so that no side is longer, in pixels, as the data set's were.
        apply_orientation: whether images are turned as their orientation tags say, as the data set's were.
    """

    class_names: Sequence[str]
    eval_size: int
    eval_crop: str
    max_side: int = MOST_PIXELS
    apply_orientation: bool = False

    @staticmethod
    def of(dataset: Dataset, data: ResolvedData) -> Description:
        """That of a network whose validation saw a data set as a Recipe has it."""
        # Data sets that are no conversion's, as those of tests, have no such settings.
        written = dataset.validation.manifest.settings
        return Description(
            dataset.class_names,
            data.eval_size,
            data.eval_crop,
            written.get("max_side", MOST_PIXELS),
            written.get("apply_orientation", False),
        )

    def write(self, folder: Path) -> None:
        """Writes it into the folder of a model."""
        (folder / DESCRIPTION_FILE).write_text(json.dumps(asdict(self), indent=1))


class Classifier:
    """Classifies image files. ``predict`` is what MLflow calls."""

    def __init__(self, network: nn.Module, description: Description) -> None:
        self._network, self._description = network.eval(), description

    @torch.no_grad()
    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row for each image: its ``class``, the ``index`` of that class, and its ``probability``.

        Args:
            model_input: the bytes of image files that Pillow reads, in the column ``image``; texts are taken for
                base64.
            params: none are known.

        Raises:
            UserError: an image cannot be read, with its number from 1 on.
        """
        import pandas as pd

        del params
        logits = [
            self._network(normalise(torch.from_numpy(pixels))).float()
            for pixels in self._batches(model_input[IMAGE_COLUMN].tolist())
        ]
        probabilities = torch.cat(logits).softmax(dim=1) if logits else torch.zeros(0, 1)
        best = probabilities.max(dim=1)
        return pd.DataFrame(
            {
                "class": [self._description.class_names[index] for index in best.indices.tolist()],
                "index": best.indices.tolist(),
                "probability": best.values.tolist(),
            }
        )

    def _batches(self, files: Sequence[bytes | str]) -> Iterator[NDArray[np.uint8]]:
        """The images of one batch after the other: a caller may give more of them than fit into memory as pixels."""
        for first in range(0, len(files), _IMAGES_AT_ONCE):
            batch = files[first : first + _IMAGES_AT_ONCE]
            yield np.stack([self._pixels(file, number) for number, file in enumerate(batch, start=first + 1)])

    def _pixels(self, file: bytes | str, number: int) -> NDArray[np.uint8]:
        """The image as the validation sees it, (size, size, 3)."""
        try:
            content = base64.b64decode(file) if isinstance(file, str) else bytes(file)
            image = _decoded(content, self._description)
        except (UnreadableImageError, binascii.Error) as error:
            raise UserError(f"image {number}: {error}") from error
        size = self._description.eval_size
        out = np.empty((size, size, 3), np.uint8)
        if image.shape == out.shape:  # taken as it is, as the loader does
            return image
        if self._description.eval_crop == "squash":
            squash_and_crop(image, out)
        else:
            heights, widths = (np.array([side]) for side in image.shape[:2])
            is_whole = self._description.eval_crop == "whole"
            boxes = whole_boxes(heights, widths) if is_whole else central_square_boxes(heights, widths, size)
            top, left, box_height, box_width = map(int, boxes[0])
            resize_crop(image, top, left, box_height, box_width, out)
        return out


def _decoded(content: bytes, description: Description) -> NDArray[np.uint8]:
    """The pixels of an image file, (height, width, 3), as data_prep would write them."""
    orientation = None
    if content.startswith(_JPEG):
        orientation = orientation_of_jpeg(content)
        if orientation == 1 or not description.apply_orientation:
            # As the loader decodes them: Pillow's pixels differ a little, which shows in the accuracy.
            with suppress(DecodeError):
                header = jpeg_header(content)
                if max(header.height, header.width) <= description.max_side:
                    pixels = np.empty((header.height, header.width, 3), np.uint8)
                    decode_jpeg(np.frombuffer(content, np.uint8), pixels)
                    return pixels
    opened = open_image(content, description.max_side)
    image = opened.image
    orientation = orientation or opened.orientation
    if description.apply_orientation and orientation != 1:
        image = turned_upright(image, orientation)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _load_pyfunc(folder: str, model_config: Mapping[str, Any] | None = None) -> Classifier:
    """Loads a model. MLflow calls it with the folder of the model's files, which the user trusts."""
    del model_config  # on which device the pytorch flavour would put it
    network = torch.load(Path(folder) / NETWORK_FILE, map_location="cpu", weights_only=False)
    return Classifier(network, Description(**json.loads((Path(folder) / DESCRIPTION_FILE).read_text())))
