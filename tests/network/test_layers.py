"""SAME padding, resampling and the small layers, against literal versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from efficientdet.errors import UnknownNameError
from efficientdet.network.layers import (
    Conv2d,
    SeparableConv2d,
    activation,
    batch_norm,
    downsample,
    resize_map,
    same_padding,
    truncated_normal_,
)

PADDINGS = ("same", "symmetric")
sizes = st.integers(1, 70)


@given(st.integers(1, 4000), st.integers(1, 9), st.integers(1, 9))
def test_same_padding_arithmetic(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    outputs = math.ceil(size / stride)
    assert 0 <= before <= after <= before + 1
    padded = size + before + after
    if before + after > 0:  # padded: the last window ends exactly at the border
        assert (outputs - 1) * stride + kernel == padded
    assert (padded - kernel) // stride + 1 == outputs or kernel < stride


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 3, 2, (0, 1)),
        (225, 3, 2, (1, 1)),
        (7, 5, 2, (2, 2)),
        (8, 5, 2, (1, 2)),
        (8, 3, 1, (1, 1)),
        (1, 3, 2, (1, 1)),
    ],  # fmt: skip
)
def test_same_padding_of_tensorflow(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


@given(sizes, sizes, st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.sampled_from(PADDINGS))
def test_convolutions_give_the_size_rounded_up(height: int, width: int, kernel: int, stride: int, padding: str) -> None:
    conv = Conv2d(1, 2, kernel, stride, padding=padding)
    with torch.no_grad():
        found = conv(torch.zeros(1, 1, height, width))
    assert found.shape == (1, 2, -(-height // stride), -(-width // stride))


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
def test_same_convolution_is_the_literal_one(height: int, width: int, kernel: int, stride: int) -> None:
    conv = Conv2d(1, 1, kernel, stride).double()
    rng = np.random.default_rng(height * 10 + width)
    image = rng.standard_normal((height, width))
    weight = conv.weight.detach().numpy()[0, 0]
    top, left = same_padding(height, kernel, stride)[0], same_padding(width, kernel, stride)[0]
    expected = np.zeros((-(-height // stride), -(-width // stride)))
    for row in range(expected.shape[0]):
        for column in range(expected.shape[1]):
            for i in range(kernel):
                for j in range(kernel):
                    y, x = row * stride - top + i, column * stride - left + j
                    if 0 <= y < height and 0 <= x < width:
                        expected[row, column] += weight[i, j] * image[y, x]
    with torch.no_grad():
        found = conv(torch.from_numpy(image)[None, None])[0, 0]
    assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_the_two_paddings_agree_at_stride_one_and_on_odd_sizes_only() -> None:
    same, symmetric = Conv2d(1, 1, 3, 2), Conv2d(1, 1, 3, 2, padding="symmetric")
    symmetric.load_state_dict(same.state_dict())
    odd, even = torch.randn(1, 1, 9, 9), torch.randn(1, 1, 8, 8)
    assert torch.equal(same(odd), symmetric(odd))
    assert not torch.allclose(same(even), symmetric(even))


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = -(-size // 2)
    return size


@given(sizes, sizes, st.integers(0, 4), st.sampled_from(PADDINGS))
def test_maps_reach_every_coarser_level(height: int, width: int, steps: int, padding: str) -> None:
    size = (_halved(height, steps), _halved(width, steps))
    x = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    found = resize_map(x, size, padding)
    assert found.shape[2:] == size
    if padding == "same":  # the windows reach every pixel; symmetric ones miss some at the end of an even map
        assert found[0, 0, -1, -1] == x.max()
    assert found.isfinite().all()


@given(sizes, sizes, st.integers(0, 4), st.sampled_from(PADDINGS))
def test_maps_reach_every_finer_level(height: int, width: int, steps: int, padding: str) -> None:
    x = torch.randn(1, 1, _halved(height, steps), _halved(width, steps))
    found = resize_map(x, (height, width), padding)
    rows = torch.arange(height) * x.shape[2] // height
    columns = torch.arange(width) * x.shape[3] // width
    assert torch.equal(found[0, 0], x[0, 0][rows][:, columns])


def test_one_axis_may_shrink_while_the_other_grows() -> None:
    x = torch.arange(8.0).reshape(1, 1, 4, 2)
    assert resize_map(x, (2, 4), "same")[0, 0].tolist() == [[4.0, 4.0, 5.0, 5.0], [6.0, 6.0, 7.0, 7.0]]


@pytest.mark.parametrize("size", [8, 9])
def test_downsampling_is_the_reference_max_pool(size: int) -> None:
    """Kernel 3, stride 2; SAME pads an even map after its end only, symmetric on both sides."""
    x = torch.randn(1, 2, size, size) - 10  # negative: a padding of zeros would win
    half = -(-size // 2)
    symmetric = functional.max_pool2d(x, 3, 2, 1)
    assert torch.equal(downsample(x, (half, half), "symmetric"), symmetric)
    same = downsample(x, (half, half), "same")[0]
    before = size % 2  # SAME needs two pixels for an odd size, one for an even
    for row in range(half):
        for column in range(half):
            top, left = row * 2 - before, column * 2 - before
            window = x[0, :, max(0, top) : top + 3, max(0, left) : left + 3]
            assert torch.equal(same[:, row, column], window.amax((1, 2)))


def test_resizing_to_the_same_size_changes_nothing() -> None:
    x = torch.randn(1, 2, 3, 5)
    assert torch.equal(resize_map(x, (3, 5), "same"), x)


def test_separable_convolution_has_its_bias_at_the_end_only() -> None:
    layer = SeparableConv2d(4, 6)
    assert layer.depthwise.bias is None and layer.depthwise.groups == 4
    assert layer.pointwise.bias is not None and layer.pointwise.kernel_size == (1, 1)
    assert SeparableConv2d(4, 6, bias=False).pointwise.bias is None
    assert layer(torch.zeros(2, 4, 3, 1)).shape == (2, 6, 3, 1)


def test_batch_norm_has_the_references_constants() -> None:
    layer = batch_norm(3)
    assert (layer.eps, layer.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize("name", ["swish", "relu6"])
def test_activations_work_in_place_where_no_gradient_is_wanted(name: str) -> None:
    """For a gradient torch would have to copy what it overwrites."""
    x = torch.linspace(-8, 8, 33)
    original = x.clone()
    act = activation(name)
    out = act(x.requires_grad_() * 1)
    before = x * 1
    act(before)
    assert torch.equal(before, original)
    with torch.no_grad():
        y = original.clone()
        assert act(y) is y
    torch.testing.assert_close(y, out)


def test_activations() -> None:
    x = torch.tensor([-1.0, 0.0, 3.0, 9.0])
    assert torch.allclose(activation("swish")(x.clone()), x * x.sigmoid())
    assert activation("relu6")(x.clone()).tolist() == [0.0, 0.0, 3.0, 6.0]
    with pytest.raises(UnknownNameError, match="unknown activation 'swich'; did you mean 'swish'"):
        activation("swich")


def test_truncated_normal_has_the_deviation_asked_for() -> None:
    weight = torch.empty(200_000)
    truncated_normal_(weight, 0.1)
    assert weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert weight.abs().max() <= 0.2 / 0.879 and weight.mean().abs() < 2e-3


def test_a_bias_that_came_later_counts_in_bfloat16_too() -> None:
    """As folding gives one to a depthwise convolution that was built without."""
    conv = Conv2d(8, 8, 5, 2, groups=8)
    conv.bias = torch.nn.Parameter(torch.full((8,), 3.0))
    x = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(x).float(), expected, atol=0.05, rtol=0.05)
