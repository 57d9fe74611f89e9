"""One bit for each validation image: what is written is read, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet_ray.correct_images import CorrectImages


@given(st.lists(st.sampled_from([(True, True), (False, True), (False, False)]), min_size=1, max_size=70))
def test_bits_come_back_from_their_text(images: list[tuple[bool, bool]]) -> None:
    correct, measured = (np.array(column) for column in zip(*images, strict=True))
    read = CorrectImages.from_text(CorrectImages(correct, measured).to_text())
    np.testing.assert_array_equal(read.correct, correct)
    np.testing.assert_array_equal(read.measured, measured)


def test_the_text_is_short() -> None:
    all_of_imagenet = CorrectImages(np.zeros(50_000, bool), np.ones(50_000, bool))
    assert len(all_of_imagenet.to_text()) < 50_000 / 8 * 4 / 3 + 10


@pytest.mark.parametrize("text", ["", "3", "3:", "3:oA", "3:oA==:oA==:oA==", "9:oA==", "-1:oA==", "x:oA=="])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        CorrectImages.from_text(text)
