"""Sums and batch norms over two gloo processes, against one process that has all images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from efficientdet.errors import SettingError
from efficientdet.training.synchronize import (
    SynchronizedBatchNorm,
    device_count,
    gathered,
    summed,
    synchronize_batch_norms,
)

# Three images on the first device, one on the second.
SHARES = (slice(0, 3), slice(3, 4))
WORKER = """
import sys
import torch
from torch import distributed, nn
from efficientdet.training.synchronize import gathered, summed, synchronize_batch_norms

folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
given = torch.load(f"{folder}/given.pt")
share = (slice(0, 3), slice(3, 4))[rank]
norm = nn.BatchNorm2d(5, momentum=0.1)
norm.load_state_dict(given["state"])
synchronize_batch_norms(norm)
x = given["x"][share].requires_grad_()
y = norm(x)
(y * given["factor"][share]).sum().backward()
norm.eval()
result = {
    "y": y.detach(), "by_x": x.grad, "by_weight": summed(norm.weight.grad), "by_bias": summed(norm.bias.grad),
    "state": norm.state_dict(), "gathered": gathered({"rank": rank}), "summed": summed(torch.tensor(rank + 1.0)),
    "evaluated": norm(given["x"][share]).detach(),
}
torch.save(result, f"{folder}/{rank}.pt")
distributed.destroy_process_group()  # else gloo's threads may outlive the interpreter, which aborts
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_devices_normalize_as_one(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    # Means far from zero, which a sum of squares in float32 would not bear.
    x = torch.randn(4, 5, 6, 7, generator=generator) + torch.tensor([0.0, 1, -3, 30, 300]).reshape(1, 5, 1, 1)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    factor = torch.randn(4, 5, 6, 7, generator=generator).to(dtype)
    norm = nn.BatchNorm2d(5, momentum=0.1)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.uniform_(-1, 1, generator=generator)
    torch.save({"x": x, "factor": factor, "state": norm.state_dict()}, tmp_path / "given.pt")
    started = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank)]) for rank in (0, 1)]
    assert [process.wait(600) for process in started] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    alone = x.clone().requires_grad_()
    y = norm(alone)
    (y * factor).sum().backward()
    norm.eval()
    assert alone.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    tolerance = {"rtol": 1e-4, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for rank, (result, share) in enumerate(zip(results, SHARES, strict=True)):
        assert result["y"].dtype == dtype
        torch.testing.assert_close(result["y"], y[share].detach(), **tolerance)
        torch.testing.assert_close(result["by_x"], alone.grad[share], **tolerance)
        torch.testing.assert_close(result["by_weight"], norm.weight.grad, **tolerance)
        torch.testing.assert_close(result["by_bias"], norm.bias.grad, **tolerance)
        torch.testing.assert_close(result["evaluated"], norm(x[share]).detach(), **tolerance)
        assert result["state"].keys() == norm.state_dict().keys()
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(result["state"][name], value, rtol=1e-4, atol=1e-4, msg=f"{rank} {name}")
        assert result["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert result["summed"].item() == 3.0
    for name, value in results[0]["state"].items():
        assert torch.equal(value, results[1]["state"][name]), name


def test_one_device_has_nothing_to_wait_for() -> None:
    x = torch.ones(2, 3)
    assert device_count() == 1
    assert summed(x) is x
    assert gathered("a") == ["a"]
    norm, joined = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    synchronize_batch_norms(joined)
    assert type(joined) is SynchronizedBatchNorm
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(norm(images), joined(images))
    assert torch.equal(norm.running_var, joined.running_var)


def test_norms_that_cannot_be_joined_are_refused() -> None:
    class Other(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(3), Other(3))
    with pytest.raises(SettingError, match="1 is a Other, which cannot take the statistics of several devices"):
        synchronize_batch_norms(model)
    synchronize_batch_norms(model.eval())  # frozen ones need none
