"""The validation images in two parts: the best setting is chosen on one and quoted on the other."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from nfnet_ray.analysis.inference.paired import Bits

_SALT = b"holdout"  # so that the split has nothing to do with any other draw by an image's place


@functools.lru_cache(maxsize=4)
def held_out(images: int, share: float) -> Bits:
    """Which of ``images`` validation images are kept for the quoted accuracy, bool (images,).

    An image is held out if the hash of its place in the data set is among the lowest ``share``, a fraction. So the
    split is the same for all trials, studies and machines, and more images do not move those that are there.
    """
    places = (hashlib.blake2b(_SALT + place.to_bytes(8), digest_size=8) for place in range(images))
    hashes = np.frombuffer(b"".join(one.digest() for one in places), dtype=">u8")
    chosen = np.asarray(hashes < share * 2.0**64)
    chosen.setflags(write=False)
    return chosen
