"""One seed for every generator a run uses."""

import os
import random

import numpy as np
import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, numpy and torch (every device).

    Data never depends on these generators: each sample has its own
    (`shared.datasets.samplers.sample_rng`). They serve initial weights and dropout.

    Args:
        seed: give each rank its own (`seed + rank`) when ranks must not repeat each other.
        deterministic: also forbid CUDA kernels whose result depends on timing; slower.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS asks for it
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
