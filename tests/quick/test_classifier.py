"""The classifier that MLflow serves, with a network that knows nothing."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from nfnet_ray.serving import classifier
from nfnet_ray.serving.classifier import Classifier, Description


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_no_more_images_are_decoded_than_the_network_sees_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = seen = waiting_at_most = 0
    decode = classifier._decoded

    def counted(content: bytes) -> np.ndarray:
        nonlocal decoded, waiting_at_most
        decoded += 1
        waiting_at_most = max(waiting_at_most, decoded - seen)
        return decode(content)

    class Brightness(nn.Module):
        """Bright images are of the second class."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(images)
            mean = images.mean(dim=(1, 2, 3))
            return torch.stack([-mean, mean], dim=1)

    monkeypatch.setattr(classifier, "_decoded", counted)
    files = [png(250 if number % 3 else 5) for number in range(3 * classifier._IMAGES_AT_ONCE + 5)]
    table = pd.DataFrame({"image": files}, index=range(1000, 1000 + len(files)))
    predicted = Classifier(Brightness(), Description(["dark", "bright"], 8, "squash")).predict(table)
    assert predicted["class"].tolist() == ["bright" if number % 3 else "dark" for number in range(len(files))]
    assert waiting_at_most == classifier._IMAGES_AT_ONCE


def test_no_images_have_no_classes() -> None:
    predicted = Classifier(nn.Identity(), Description(["a"], 8, "squash")).predict(
        pd.DataFrame({"image": []})
    )
    assert predicted.columns.tolist() == ["class", "index", "probability"]
    assert predicted.empty
