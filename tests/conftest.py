"""What every test shares: one thread, and noise from a generator with a known seed."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and scikit-learn, and for the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to Ctrl-C
torch.set_num_threads(1)  # small tensors on a busy machine run ten times faster so


@pytest.fixture(autouse=True)
def _the_same_networks_in_any_order():
    """Seed the generator that initial weights come from."""
    torch.manual_seed(0)


@pytest.fixture
def generator():
    """A fresh generator with a known seed."""
    return torch.Generator().manual_seed(20_240_607)
