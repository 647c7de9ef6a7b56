"""The bfloat16 way back of depthwise convolutions against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from efficientdet.network import layers
from efficientdet.network.depthwise import DepthwiseBfloat16
from efficientdet.network.layers import Conv2d


@pytest.mark.parametrize("size", [(12, 14), (13, 11), (5, 6)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 1, 2), (5, 2, 2), (5, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_gradients(size: tuple[int, int], kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, *size).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 1, kernel, kernel).bfloat16().requires_grad_()
    out: Tensor = DepthwiseBfloat16.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    exact = [tensor.detach().float().requires_grad_() for tensor in (x, weight)]
    expected = functional.conv2d(exact[0], exact[1], None, stride, padding, 1, 16)
    slope = torch.randn_like(expected).bfloat16()
    found = torch.autograd.grad(out, (x, weight), slope)
    wanted = torch.autograd.grad(expected, exact, slope.float())
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=2e-2)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.bfloat16 and mine.shape == theirs.shape
        torch.testing.assert_close(mine.float(), theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_it_is_taken_in_bfloat16_training_alone(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    class Watched(DepthwiseBfloat16):
        @staticmethod
        def forward(ctx, x, weight, stride, pad):  # type: ignore[no-untyped-def]
            taken.append(x.dtype)
            return DepthwiseBfloat16.forward(ctx, x, weight, stride, pad)

    monkeypatch.setattr(layers, "DepthwiseBfloat16", Watched)
    conv, easy = Conv2d(8, 8, 5, 2, groups=8, padding=padding), Conv2d(8, 8, 3, groups=8)
    x = torch.randn(1, 8, 9, 10)
    exact = conv(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        conv(x)
    assert taken == []
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
        easy(x)
    assert taken == [torch.bfloat16] and out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=2e-2, atol=2e-2)
    out.sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
