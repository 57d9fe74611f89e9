"""Which training images ``data.train_share`` takes: a fixed part, where studies on the whole data set cost too much.

The images of each class are put in the order of the hashes of their stored bytes, and as many of the first ones are
taken as the share says. So the part depends on the images alone. It is the same for every trial, seed, epoch and number
of workers, has each class's share to within one image, and is a part of the part that a larger share takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfnet_ray.data.batching import images_of_share
from nfnet_ray.data.files.manifest import Manifest

_HEX_DIGITS = (
    16  # of a hash: the first 64 bits; equal ones among a million images have a probability of 10^-8
)


def images_drawn(manifest: Manifest, train_share: float) -> NDArray[np.int64]:
    """The places in the data set of the images that a share takes, int64, ascending.

    There are :func:`nfnet_ray.data.batching.images_of_share` of them. A share of 1 takes all.
    """
    images = len(manifest)
    taken = images_of_share(images, train_share)
    if taken == images:
        return np.arange(images, dtype=np.int64)
    digits = "".join(stored[:_HEX_DIGITS] for stored in manifest.hashes.to_pylist())
    hashes = np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64)
    by_class = np.lexsort((hashes, manifest.labels))
    sizes = np.bincount(manifest.labels)
    # The quantile of each image in its class, (0.5, 1.5, ...) / size: the lowest ones over all classes are taken.
    rank_in_class = np.arange(images) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    quantiles = np.empty(images)
    quantiles[by_class] = (rank_in_class + 0.5) / np.repeat(sizes, sizes)
    return np.sort(np.lexsort((hashes, quantiles))[:taken]).astype(np.int64)
