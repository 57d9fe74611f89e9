"""nfnet_ray: a platform for studying normaliser-free image networks at scale."""

__version__ = "0.1.0"
