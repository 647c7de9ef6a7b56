"""What the processes of a run compute together: sums, lists, and batch norms over the images of all devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from efficientdet.errors import SettingError


def device_count() -> int:
    """Number of processes that train together; 1 where none have joined."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """Sum of a tensor over all devices, equal on each of them and without gradient; itself where there is one device.

    Args:
        x: any shape, the same on all devices.
    """
    if device_count() == 1:
        return x
    total = x.detach().clone()
    distributed.all_reduce(total)
    return total


def gathered(value: Any) -> list[Any]:
    """A picklable value of each device, in the order of their ranks."""
    values: list[Any] = [value] * device_count()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def synchronize_batch_norms(model: nn.Module) -> None:
    """Let batch norms in training mode take the statistics of all devices' images, as one device would.

    Args:
        model: changed in place; its parameters, buffers and their names stay.

    Raises:
        SettingError: it has batch norms of another class, whose statistics would differ between the devices.
    """
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm
        elif isinstance(module, nn.BatchNorm2d) and module.training:
            raise SettingError(
                f"{name} is a {type(module).__name__}, which cannot take the statistics of several devices; train on "
                "one device, or with batch_norm frozen"
            )


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all devices.

    torch's SyncBatchNorm refuses tensors on a CPU; this one is used on every device, so that what is tested is what
    runs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same; B may differ between devices."""
        if not self.training or device_count() == 1:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        out, mean, variance = _NormalizeTogether.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        normalized: Tensor = out
        return normalized


class _NormalizeTogether(torch.autograd.Function):
    """Normalization by the mean and variance over all devices, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """The normalized (B, C, h, w), and (C,) mean and unbiased variance over all devices."""
        # Given averages (which momentum 0 leaves alone) it takes their float32 for bfloat16 images too.
        unused = torch.zeros_like(weight), torch.ones_like(weight)
        own_mean, own_variance = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        # In float64, since the mean of squares minus the square of the mean would lose digits.
        mean, variance = own_mean.double(), own_variance.double()
        own_count = float(x.numel() // x.shape[1])
        parts = summed(torch.cat([mean.new_tensor([own_count]), own_count * mean, own_count * (variance + mean**2)]))
        count, (mean, squares) = parts[0], (parts[1:] / parts[0]).chunk(2)
        variance = (squares - mean**2).clamp(min=0.0)
        mean_here, variance_here = mean.to(own_mean.dtype), variance.to(own_mean.dtype)
        out = functional.batch_norm(x, mean_here, variance_here, weight, bias, False, 0.0, epsilon)
        unbiased = (variance * count / (count - 1).clamp(min=1)).to(own_mean.dtype)
        ctx.save_for_backward(x, weight, mean_here, variance_here, count)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean_here, unbiased)
        return out, mean_here, unbiased

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """By the chain rule through mean and variance, which depend on the images of all devices."""
        x, weight, mean, variance, count = ctx.saved_tensors
        # As if mean and variance were constants:
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.epsilon, [True, True, True]
        )
        means = (summed(torch.cat([by_weight, by_bias]).double()) / count).to(mean.dtype)
        through_variance, through_mean = means.chunk(2)
        inverse = (variance + ctx.epsilon).rsqrt()
        scale = weight * inverse

        def by_channel(values: Tensor) -> Tensor:
            return values.reshape(1, -1, 1, 1)

        normalized = (x - by_channel(mean)) * by_channel(inverse * scale * through_variance)
        by_x = by_x - normalized - by_channel(scale * through_mean)
        return by_x.to(x.dtype), by_weight, by_bias, None
