"""Layers that all parts of the network use: SAME padding, separable convolution, batch norm, activation, resizing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from efficientdet.errors import unknown_name
from efficientdet.network.depthwise import DepthwiseBfloat16

# The reference's epsilon and momentum (0.99 in TensorFlow's terms), in backbone, feature network and heads.
BATCH_NORM_EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.01
# Any input finds which norm follows which convolution; this one is the smallest with a place at every level.
PROBE_SIZE = 64


def batch_norm(channels: int, epsilon: float = BATCH_NORM_EPSILON) -> nn.BatchNorm2d:
    """Batch norm with the reference's epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=epsilon, momentum=BATCH_NORM_MOMENTUM)


class Swish(nn.SiLU):
    """x * sigmoid(x), in place unless gradients are computed, for which torch would have to copy x."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) to (...)."""
        return functional.silu(x, inplace=not torch.is_grad_enabled())


class Relu6(nn.ReLU6):
    """x clipped to [0, 6], in place as in `Swish`."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) to (...)."""
        return functional.hardtanh(x, self.min_val, self.max_val, inplace=not torch.is_grad_enabled())


def activation(name: str) -> nn.Module:
    """Build the activation `swish` or `relu6`.

    Raises:
        UnknownNameError: the name is another one.
    """
    if name == "swish":
        return Swish()
    if name == "relu6":
        return Relu6()
    raise unknown_name("activation", name, ["swish", "relu6"])


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after one axis in TensorFlow's SAME: an odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Conv2d(nn.Conv2d):
    """A convolution with ceil(size / stride) rows and columns of output, padded as `same` or `symmetric`.

    At stride 1 the two are equal, and torch pads. At stride 2 TensorFlow's SAME depends on the input's size, so it is
    computed at each call.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
        bias: bool = False, padding: str = "same",
    ) -> None:  # fmt: skip
        own_padding = kernel // 2 if stride == 1 or padding == "symmetric" else 0
        super().__init__(inputs, outputs, kernel, stride, own_padding, groups=groups, bias=bias)
        self.pads_at_call = own_padding == 0 and kernel > 1
        self.is_hard_depthwise = groups == inputs == outputs > 1 and (kernel == 5 or stride == 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, ceil(h / stride), ceil(w / stride))."""
        if self.pads_at_call:
            top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
            left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
            x = functional.pad(x, (left, right, top, bottom))
        if self.is_hard_depthwise and self.bias is None and _is_bfloat16_training(x):
            weight = self.weight.to(torch.bfloat16)
            out: Tensor = DepthwiseBfloat16.apply(x.to(torch.bfloat16), weight, self.stride[0], int(self.padding[0]))  # type: ignore[no-untyped-call]
            return out
        return super().forward(x)


def _is_bfloat16_training(x: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    autocasts = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocasts or x.dtype == torch.bfloat16


class SeparableConv2d(nn.Module):
    """Depthwise 3x3 convolution, then pointwise 1x1 with the bias (paper, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, padding: str = "same") -> None:
        super().__init__()
        self.depthwise = Conv2d(inputs, inputs, 3, groups=inputs, padding=padding)
        self.pointwise = Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


def downsample(x: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    """Max-pool a map to a smaller size, with stride (h - 1) // target + 1 and kernel stride + 1 along each axis."""
    strides = [(have - 1) // want + 1 for have, want in zip(x.shape[2:], size, strict=True)]
    kernels = [stride + 1 if stride > 1 else 1 for stride in strides]
    # With an odd stride (3 rows to 1) symmetric padding would give a row too many; SAME always fits.
    if padding == "symmetric" and all(stride == 1 or stride % 2 == 0 for stride in strides):
        return functional.max_pool2d(x, kernels, strides, [kernel // 2 for kernel in kernels])
    pads = [same_padding(x.shape[2 + axis], kernels[axis], strides[axis]) for axis in (0, 1)]
    if any(any(pad) for pad in pads):
        x = functional.pad(x, (*pads[1], *pads[0]), value=float("-inf"))
    return functional.max_pool2d(x, kernels, strides)


def resize_map(x: Tensor, size: tuple[int, int], padding: str) -> Tensor:
    """Resize a map: max-pooling along axes that shrink, nearest neighbor along axes that grow."""
    height, width = x.shape[2:]
    smaller = (min(height, size[0]), min(width, size[1]))
    if smaller != (height, width):
        x = downsample(x, smaller, padding)
    if smaller == size:
        return x
    factors = (size[0] // smaller[0], size[1] // smaller[1])
    if size == (factors[0] * smaller[0], factors[1] * smaller[1]):
        # The same result, in a form that an exported network can use for other input sizes too.
        return functional.interpolate(x, scale_factor=(float(factors[0]), float(factors[1])), mode="nearest")
    return functional.interpolate(x, size=size, mode="nearest")


def truncated_normal_(weight: Tensor, deviation: float) -> None:
    """Fill a weight with a normal distribution cut at two deviations, rescaled as TensorFlow's variance scaling."""
    with torch.no_grad():
        before_cut = deviation / 0.87962566103423978
        nn.init.trunc_normal_(weight, std=before_cut, a=-2 * before_cut, b=2 * before_cut)


@torch.no_grad()
def conv_norm_pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions with the batch norm that reads their output, in the order in which they run.

    The network is run once, in evaluation mode: this works for any backbone, whatever its modules are called.
    Subclasses of batch norm, such as those with an activation inside, are left alone.

    Args:
        network: takes (B, 3, H, W) images.
    """
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # the tensors too, so that no two live ones share an id
    pairs = []

    def note_output(module: nn.Module, _: object, output: Tensor) -> None:
        made[id(output)] = (output, module)  # type: ignore[assignment]

    def note_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][1], module))

    modules = list(network.modules())
    handles = [module.register_forward_hook(note_output) for module in modules if isinstance(module, nn.Conv2d)]
    handles += [module.register_forward_pre_hook(note_input) for module in modules if type(module) is nn.BatchNorm2d]
    parameter, was_training = next(network.parameters()), network.training
    try:
        network.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=parameter.device, dtype=parameter.dtype))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return pairs  # type: ignore[return-value]
