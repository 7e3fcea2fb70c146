"""What every test shares: one thread, and noise from a generator with a known seed."""

import pytest
import torch

torch.set_num_threads(1)  # small tensors on a busy machine run ten times faster so


@pytest.fixture
def generator():
    """A fresh generator with a known seed."""
    return torch.Generator().manual_seed(20_240_607)
