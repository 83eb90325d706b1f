"""CPU speedups change no result: outputs, gradients of every parameter, and the model afterwards are the same."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch._inductor.config
from torch import nn

from baseline.vision.cpu_speedups import (
    fast_depthwise,
    find_conv_bn_pairs,
    optimize_for_cpu,
    retain_freed_memory,
)
from baseline.vision.network import build_network
from baseline.vision.pointwise import bfloat16_pointwise


def outputs_and_gradients(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    outputs = model(images)
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "arch", ["tf_efficientnet_lite0", "resnet18", "mobilenet_v2", "squeezenet1_1", "convnext_atto"]
)
def test_folded_networks_have_the_same_outputs_and_gradients(arch: str) -> None:
    torch.manual_seed(0)
    model, _ = build_network(arch, 3, None)
    for module in model.modules():  # folding a freshly initialised BatchNorm would change nothing
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    model.eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = outputs_and_gradients(model, images)
    with optimize_for_cpu(model, images):
        actual = outputs_and_gradients(model, images)
    assert len(expected) == len(actual)
    for one, two in zip(expected, actual, strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-8 * float(one.abs().max()) + 1e-12)
    assert not any("forward" in vars(module) for module in model.modules())


def test_every_batch_norm_of_a_body_is_folded() -> None:
    model, _ = build_network("tf_efficientnet_lite0", 3, None)
    assert len(find_conv_bn_pairs(model.eval(), torch.zeros(1, 3, 64, 64))[0]) == 49


def test_batch_norm_in_training_mode_is_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    copy = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    copy.load_state_dict(model.state_dict())
    images = torch.randn(8, 3, 9, 9)
    with optimize_for_cpu(model, images):
        assert torch.equal(model(images), copy(images))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), copy.buffers(), strict=True))
    assert model[1].running_mean.abs().sum() > 0


def test_weight_changes_take_effect() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    images = torch.randn(2, 3, 9, 9)
    with torch.no_grad(), optimize_for_cpu(model, images):
        for parameter in (model[0].weight, model[1].bias, model[1].weight):
            before = model(images)
            parameter.data += 1  # like fastai's optimizers, which bypass torch's version counter
            assert not torch.allclose(model(images), before)
    with torch.no_grad():
        expected = model(images)
        with optimize_for_cpu(model, images):
            assert torch.allclose(model(images), expected, atol=1e-5)


class SharedOutput(nn.Module):
    """A convolution whose output is used by more than the BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.convolution(images)
        return output + self.norm(output)


def test_convolution_with_shared_output_is_not_folded() -> None:
    model = SharedOutput().eval()
    images = torch.randn(2, 3, 5, 5)
    expected = model(images)
    with optimize_for_cpu(model, images):
        assert torch.equal(model(images), expected)


def test_memory_is_usable_afterwards() -> None:
    with retain_freed_memory():
        tensors = [torch.zeros(2**24) for _ in range(4)]
        del tensors
    assert torch.zeros(2**24).sum() == 0


@pytest.mark.parametrize(("channels", "side", "kernel"), [(8, 2, 5), (6, 4, 5), (7, 2, 3), (5, 1, 3), (4, 9, 3)])
def test_fast_depthwise_gradients_equal_those_of_torch(channels: int, side: int, kernel: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    images = torch.randn(3, channels, side, side, requires_grad=True)
    results = []
    for context in (nullcontext(), fast_depthwise(layer)):
        with context:
            output = layer(images)
            results.append((output, *torch.autograd.grad(output.sin().sum(), (images, layer.weight))))
    for expected, actual in zip(*results, strict=True):
        assert torch.allclose(expected, actual, atol=1e-5)
    assert "forward" not in vars(layer)


def test_fast_depthwise_is_used_where_the_kernel_covers_the_map() -> None:
    layer = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    with fast_depthwise(layer):
        assert "Depthwise" in str(layer(torch.zeros(1, 4, 4, 4)).grad_fn)
        assert "Depthwise" not in str(layer(torch.zeros(1, 4, 8, 8)).grad_fn)


@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_convolutions_in_bfloat16_are_close_to_those_of_torch(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(48, 96, 1, bias=bias)
    model = nn.Sequential(layer, nn.ReLU6(inplace=True))  # in place, as in the blocks of EfficientNets
    images = torch.randn(5, 48, 7, 6, requires_grad=True)
    results = []
    for context in (nullcontext(), bfloat16_pointwise(model)):
        with context:
            output = model(images)
            gradients = torch.autograd.grad(output.square().sum(), (images, *layer.parameters()))
            results.append((output.detach(), *gradients))
    assert "forward" not in vars(layer)
    for expected, actual in zip(*results, strict=True):
        assert actual.dtype == torch.float32 and actual.shape == expected.shape
        difference = float((expected - actual).abs().max() / expected.abs().max())
        assert 0 < difference < 0.02, "eight bits of significand"


def test_bfloat16_is_used_in_steps_and_in_pointwise_convolutions_only() -> None:
    model, _ = build_network("tf_efficientnet_lite0", 3, None)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images)
        with bfloat16_pointwise(model):
            assert torch.equal(model(images), expected), "passes without gradients stay in float32"
    for layer in (
        nn.Conv2d(48, 48, 1, stride=2),
        nn.Conv2d(48, 48, 1, groups=2),
        nn.Conv2d(48, 48, 3),
        nn.Conv2d(48, 48, 1, padding=1),
        nn.Conv2d(48, 24, 1),
        nn.Conv2d(48, 48, 1).requires_grad_(False),
    ):
        with bfloat16_pointwise(layer):
            assert "Pointwise" not in str(layer(torch.randn(1, 48, 4, 4, requires_grad=True)).grad_fn)
    with bfloat16_pointwise(model), optimize_for_cpu(model, images):
        names = {str(module(torch.randn(1, 192, 2, 2)).grad_fn) for module in wide_layers(model)}
    assert names and all("Pointwise" in name for name in names), "also where BatchNorm is folded"


def wide_layers(model: nn.Module) -> list[nn.Conv2d]:
    """The pointwise convolutions of 192 channels."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return [layer for layer in layers if layer.kernel_size == (1, 1) and layer.in_channels == 192]
