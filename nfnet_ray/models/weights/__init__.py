"""Weights from elsewhere: published pickles, timm, safetensors, checkpoints; how they are read and recognised."""
