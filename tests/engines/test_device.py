"""What is told to a CPU before anything is computed on it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.pretended_gpu import pretended_gpu

from medpair.data.files import DataError
from medpair.engines.device import require_device

# The smallest normal number of single precision is 1.2e-38
TINY = 1e-39

# A process of its own: once PyTorch's other threads have begun they count as they did
TWO_THREADS = """
import numpy as np, torch
from medpair.engines.device import require_device
torch.set_num_threads(2)
require_device("cpu")
values = torch.full((2_000_000,), 1e-39)
assert not (values + values).any(), "some thread counts in denormal numbers"
assert (torch.full((2_000_000,), 2e-38) * 1.0 == 2e-38).all()
np.finfo(np.float32), np.finfo(np.float64)
"""


def test_a_cpu_counts_what_is_no_normal_number_as_zero() -> None:
    torch.set_flush_denormal(False)  # another test may have asked for it
    assert (torch.full((8,), TINY) * 1.0).abs().max() > 0
    require_device("cpu")
    assert (torch.full((8,), TINY) * 1.0).abs().max() == 0
    assert (torch.full((8,), 2e-38) * 0.75).abs().max() == pytest.approx(1.5e-38)
    assert np.finfo(np.float32).tiny > 0


def test_so_do_the_threads_that_begin_later_and_nothing_is_warned_of() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", TWO_THREADS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"device: expected a device of this .*found cuda:9"):
        require_device("cuda:9")


def test_sampling_on_a_gpu_asks_for_algorithms_that_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with pretended_gpu():
        require_device("cuda")
        assert not torch.backends.cudnn.deterministic, "a training may take the fastest"
        require_device("cuda", sampling_amp=False)
        assert torch.backends.cudnn.deterministic
