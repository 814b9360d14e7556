"""Makes training repeatable: the same seed gives the same weights, bit for bit, on the same machine
with the same versions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = (  # what transformers' enable_full_determinism sets
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "ASCEND_LAUNCH_BLOCKING",
    "HCCL_DETERMINISTIC",
    "FLASH_ATTENTION_DETERMINISTIC",
)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seeds Python, numpy and torch, and allows torch only deterministic kernels. Afterwards the
    settings and all random states are restored."""
    import random

    import numpy as np
    import torch
    from transformers import enable_full_determinism

    cudnn = torch.backends.cudnn
    were = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark
    environment = {name: os.environ.get(name) for name in VARIABLES}
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            enable_full_determinism(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(were, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark = flags
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        random.setstate(states[0])
        np.random.set_state(states[1])
