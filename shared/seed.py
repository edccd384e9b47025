"""One seed for every generator a run uses."""

import os
import random
from typing import Any

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


def generators() -> dict[str, Any]:
    """The state of every random generator of this process, as tensors and plain values."""
    legacy = np.random.get_state(legacy=False)
    keys = torch.from_numpy(legacy['state']['key'].astype(np.int64))
    position, has_gauss, cached = legacy['state']['pos'], legacy['has_gauss'], legacy['gauss']
    state = {
        'python': random.getstate(),
        'numpy': (legacy['bit_generator'], keys, position, has_gauss, cached),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_generators(state: dict[str, Any]) -> None:
    """Puts every generator where `generators` found it."""
    random.setstate(state['python'])
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
