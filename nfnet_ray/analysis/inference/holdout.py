"""Splits the validation images in two parts: the best setting is chosen on one and quoted on the other."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from nfnet_ray.analysis.inference.paired import Bits

_SALT = b"holdout"  # makes the split independent of other draws that use an image's place


@functools.lru_cache(maxsize=4)
def held_out(images: int, share: float) -> Bits:
    """Returns which of ``images`` validation images are held out for the quoted accuracy, bool (images,).

    An image is held out if the hash of its place in the data set is among the lowest ``share``, a fraction. The split
    is therefore the same for all trials, studies and machines, and additional images do not change the part of existing
    ones.
    """
    places = (hashlib.blake2b(_SALT + place.to_bytes(8), digest_size=8) for place in range(images))
    hashes = np.frombuffer(b"".join(one.digest() for one in places), dtype=">u8")
    chosen = np.asarray(hashes < share * 2.0**64)
    chosen.setflags(write=False)
    return chosen
