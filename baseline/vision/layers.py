"""A network as layers that run one after the other, found by following an image through it.

Network + image size -> layers. A module is split into the modules that it calls if each of them takes exactly what the
one before returned: the same tensor in the same version, so that nothing happens in between. In a timm network, all
that comes before the last such chain (position embeddings, class tokens) is one layer, and timm's own pooling another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from fastai.vision.learner import TimmBody
from torch import Tensor, nn

from baseline.vision.bodies import device_of

__all__ = ["find_layers", "is_size_bound"]


def find_layers(model: nn.Sequential, size: int = 64) -> list[nn.Module]:
    """Split the network into layers that run one after the other, as finely as possible.

    torchvision bodies are sequences. A timm body whose modules form no chain is one layer.

    Args:
        size: an image size in pixels that the network accepts.
    """
    body, head = model[0], model[1]
    if not isinstance(body, TimmBody):
        return [*_flatten(body), *_flatten(head)]
    training = body.training
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device_of(body))
    layers = _split_body(body.eval(), images)
    is_same = _computes_same(body, nn.Sequential(*layers), images)
    body.train().train(training)  # some of timm's layers cache values until they are trained again
    return [*(layers if is_same else [body]), *_flatten(head)]


@torch.no_grad()
def _computes_same(body: nn.Module, chain: nn.Module, images: Tensor) -> bool:
    expected = body(images)
    try:
        return torch.equal(expected, chain(images))
    except Exception:  # modules of any kind, called in another order than their authors intended
        return False


def is_size_bound(layers: Sequence[nn.Module]) -> bool:
    """Whether the layers, from `find_layers`, compute the same as the network only for images of the size given."""
    values = [value for layer in layers if isinstance(layer, WithOptions) for value in layer.options]
    return any(value is not None and not isinstance(value, bool) for value in values)


def _flatten(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for child in module for layer in _flatten(child)]


def _split_body(body: TimmBody, images: Tensor) -> list[nn.Module]:
    """Return the last chain of modules in a timm body, with what comes before and after it as a layer each."""
    model: Any = body.model
    root = Call(model, (images,), {})
    root.trace(model.forward_features)
    parts = [part for call in root.calls for part in call.parts()]
    if not parts or parts[-1].output != root.output:
        return [body]
    first = len(parts) - 1
    while first and parts[first].follows(parts[first - 1].output):
        first -= 1
    while first < len(parts) and parts[first].module in [part.module for part in parts[:first]]:
        first += 1
    if first == len(parts):
        return [body]
    layers = [WithOptions(part) if part.options else part.module for part in parts[first:]]
    if not body.needs_pool:
        pooling = Call(model, (root.result,), {})
        pooling.trace(model.forward_head)
        layers.append(Pooling(model, [call.module for call in pooling.calls]))
    if first or not parts[0].follows(root.input):
        layers.insert(0, Stem(model, parts[first].module, [part.module for part in parts[:first]], layers))
    return layers


def _identify(value: Any) -> tuple[int, int] | None:
    """Return what stays the same as long as a tensor is neither replaced nor changed in place; None if it is none."""
    return (id(value), value._version) if isinstance(value, Tensor) else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, in lists and tuples too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


class Call:
    """A call of a module with a tensor and perhaps other arguments, and the calls that it makes itself."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        self.input = _identify(args[0] if args else None)
        self.calls: list[Call] = []

    @property
    def options(self) -> list[Any]:
        """The arguments after the first."""
        return [*self.args[1:], *self.kwargs.values()]

    def end(self, result: Any) -> None:
        """Note what the call returned; the tensor is held so that no other gets its identity."""
        self.result, self.output = result, _identify(result)

    def trace(self, function: Callable[[Any], Any]) -> None:
        """Call the function with the arguments, and record all calls of submodules."""
        stack = [self]

        def begin(*call: Any) -> None:
            stack.append(Call(*call))
            stack[-2].calls.append(stack[-1])

        def end(*arguments: Any) -> None:
            stack.pop().end(arguments[-1])

        hooks = []
        for module in self.module.modules():
            hooks.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            hooks.append(module.register_forward_hook(end, with_kwargs=True))
        try:
            with torch.enable_grad():
                self.end(function(*self.args))
        finally:
            for hook in hooks:
                hook.remove()

    def follows(self, output: tuple[int, int] | None) -> bool:
        """Whether the call takes that output and, apart from it, nothing that depends on weights."""
        depends = any(tensor.requires_grad for tensor in _tensors(self.options))
        return output is not None and self.input == output and not depends

    def parts(self) -> list[Call]:
        """Return the calls that this call is the sequence of, or the call alone if it is none."""
        children = [] if self.options else self.calls
        values = [self.input, *(call.output for call in children)]
        is_container = isinstance(self.module, nn.Sequential) or any(
            isinstance(child, nn.Sequential | nn.ModuleList) for child in self.module.children()
        )
        is_chain = all(call.follows(value) for call, value in zip(children, values, strict=False))
        if not (children and is_container and is_chain and values[-1] == self.output):
            return [self]
        return [part for call in children for part in call.parts()]


class WithOptions(nn.Module):
    """A module with the arguments after the first that it was called with."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.module, self.args, self.kwargs, self.options = call.module, call.args[1:], call.kwargs, call.options

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs, *self.args, **self.kwargs)


class Pooling(nn.Module):
    """What a timm model does with its features before the logits: pooling, and a norm or more layers in some."""

    def __init__(self, model: nn.Module, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.owner: Any = (model,)  # in a tuple, so that its other parameters are not this layer's
        self.parts = nn.ModuleList(parts)

    def forward(self, features: Tensor) -> Tensor:
        return self.owner[0].forward_head(features)


class Stem(nn.Module):
    """What a timm model computes up to the first call of one of its modules."""

    def __init__(
        self, model: nn.Module, until: nn.Module, parts: Sequence[nn.Module], later: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.owner: Any = (model, until)
        self.parts = nn.ModuleList(parts)
        others = {id(parameter) for module in (*parts, *later) for parameter in module.parameters()}
        self.parameters_left = nn.ParameterList(p for p in model.parameters() if id(p) not in others)

    def forward(self, images: Tensor) -> Tensor:
        model, until = self.owner
        hook = until.register_forward_pre_hook(_stop)
        try:
            return model.forward_features(images)
        except _Reached as reached:
            return reached.args[0]
        finally:
            hook.remove()


class _Reached(Exception):
    """The forward pass has reached the module to stop at; its argument is the module's input."""


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Reached(args[0])
