"""The sections of gpu_check.py. They import torch, transformers, safetensors, numpy and pyarrow, and nothing else outside raysweep."""
