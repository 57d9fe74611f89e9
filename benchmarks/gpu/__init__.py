"""What a GPU is used for, measured by one command within minutes: ``python -m benchmarks.gpu`` (docs/performance.md).

It needs torch and timm, and neither Ray nor MLflow nor FFCV. On a machine without a GPU it runs with tiny networks,
which tests that it works and measures nothing of interest.
"""
