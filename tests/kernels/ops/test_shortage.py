"""Memory that runs out in a recurrent layer: the error says what the layer was doing."""

import math
import subprocess
import sys

import pytest
import torch

import rnnkit

# Each attempt has a little more room, until what surrounds the layer has enough.
LAYER = """
import resource
import torch
import rnnkit

torch.set_num_threads(1)
layer = rnnkit.LSTM(64, 256, zoneout=0.1, recompute={recompute}, backend="eager")
x = torch.randn(40, 1000, 64)
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for megabytes in range(500, 1500, 100):
    resource.setrlimit(resource.RLIMIT_AS, (before + megabytes * 2**20, -1))
    try:
        layer(x)
    except torch.OutOfMemoryError as error:
        print(error)
        break
    except RuntimeError:
        pass
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_says_its_plan_its_bytes_and_what_to_reduce(recompute):
    script = LAYER.format(recompute=recompute)
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "forward pass of the lstm layer in mode eager: 40,000 steps, of 1,000 sequences" in told
    values = (4 + 1) + (0 if recompute else 4) + 1  # gates, output, what is saved, cells
    assert f"take {40_000 * 256 * values * 4:,} bytes beside the weights" in told
    assert "lower the batch size or the number of steps" in told
    assert ("recompute=True" in told) == (not recompute)
    assert "DefaultCPUAllocator" in told


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
def test_a_gpu_that_is_full_says_it_too(backward):
    layer = rnnkit.LSTM(64, 256, backend="triton").cuda()
    x = torch.randn(500, 64, 64, device="cuda")
    output, _ = layer(x)  # compiles
    fillers = []
    try:
        if backward:
            output, _ = layer(x)
        size = 2**33
        while size >= 2**20:
            try:
                fillers.append(torch.empty(size, dtype=torch.int8, device="cuda"))
            except torch.OutOfMemoryError:
                size //= 2
        with pytest.raises(torch.OutOfMemoryError, match=r"of the lstm layer in mode \w+: 32,000"):
            output.sum().backward() if backward else layer(x)
    finally:
        fillers.clear()
        torch.cuda.empty_cache()
    output, _ = layer(x)  # and it goes on when there is room again
    assert math.isfinite(float(output.sum()))
