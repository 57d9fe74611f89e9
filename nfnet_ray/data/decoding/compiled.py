"""The compiled libraries that decode: FFCV's ``libffcv`` and ``jpeg_box.c`` of this package, through ctypes.

Source of the signatures and of their meaning: ``ffcv/libffcv.py`` and ``libffcv.cpp`` of FFCV 1.0.2 (functions
``imdecode`` and ``resize_crop``), and ``turbojpeg.h`` of libjpeg-turbo 2.1.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

from nfnet_ray.errors import UserError

logger = logging.getLogger(__name__)

DECODER_VARIABLE = "NFNET_RAY_DECODER"


def libffcv_path() -> Path | None:
    """The compiled library of the installed FFCV. ``find_spec`` locates the package without running it."""
    spec = importlib.util.find_spec("ffcv")
    folders = spec.submodule_search_locations if spec is not None else None
    candidates = (path for folder in folders or () for path in Path(folder).glob("_libffcv*.so"))
    return min(candidates, default=None)


@functools.cache
def libffcv() -> ctypes.CDLL:
    """``libffcv``, with the functions that are called here described to ctypes."""
    path = libffcv_path()
    if path is None:
        raise UserError(
            "libffcv, FFCV's compiled library, is not installed: pip install ffcv==1.0.2 (it builds with"
            f" pkg-config, libopencv-dev and libturbojpeg0-dev), or set {DECODER_VARIABLE}=plain"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be loaded ({error}); install libturbojpeg and OpenCV's libraries"
            " (libturbojpeg0 and libopencv-imgproc, or libopencv-dev),"
            f" or set {DECODER_VARIABLE}=plain"
        ) from error
    library.resize.argtypes = 11 * [ctypes.c_int64]
    library.resize.restype = None
    # turbojpeg.h of libjpeg-turbo 2. These names are found through libffcv's own link to libturbojpeg.
    library.tjInitDecompress.argtypes = []
    library.tjInitDecompress.restype = ctypes.c_void_p
    library.tjDestroy.argtypes = [ctypes.c_void_p]
    library.tjDestroy.restype = ctypes.c_int
    library.tjDecompress2.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, *(5 * [ctypes.c_int])
    ]  # fmt: skip
    library.tjDecompress2.restype = ctypes.c_int
    library.tjGetErrorStr2.argtypes = [ctypes.c_void_p]
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    return library


@functools.cache
def box_function() -> Callable[..., int] | None:
    """``jpeg_box.c``'s function, or None, said once, where it was not built, or from another version of the source.

    ``setup.py`` builds it into the environment, so that every copy of the source that an interpreter runs finds it.
    """
    spec = importlib.util.find_spec("_nfnet_ray_jpeg")
    try:
        if spec is None or spec.origin is None:
            raise OSError("it was not built; run make, or pip install . with a C compiler and libjpeg-dev")
        function = ctypes.CDLL(spec.origin).nfnet_ray_jpeg_box_1
    except (OSError, AttributeError) as error:
        logger.warning("jpeg_box.c: %s; whole rows are decoded instead, with the same pixels", error)
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(6 * [ctypes.c_int]), ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function
