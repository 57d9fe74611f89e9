"""The version of this library, for its package, its journals and its data sets."""

__version__ = "0.1.0"
