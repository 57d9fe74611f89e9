"""The compiled part of the package (pyproject.toml says the rest): the decoder of a box of a JPEG.

Plain C without Python's interface, which ``nfnet_ray/data/decoding/decode.py`` calls through ctypes. Where it cannot
be built, libffcv decodes the same pixels, more slowly.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "_nfnet_ray_jpeg",
            ["nfnet_ray/data/decoding/jpeg_box.c"],
            extra_compile_args=["-O2"],
            libraries=["jpeg"],
            optional=True,
        )
    ]
)
