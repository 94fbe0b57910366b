"""Times of the parts of a network in PyTorch, for `benchmarks.micro.parts`.

Reads a list of parts as JSON from standard input, prints the seconds of each as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

_REPEATS = 7
# A measurement is several calls, so that the clock does not matter.
_LONG_S = 0.02

Call = Callable[[], Any]


def call_of(part: dict[str, Any]) -> Call:
    """One computation of a part; what only leads to it is done before."""
    x = torch.randn(part["x"])
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous()
    if part["kernel"] is None:
        return _activation(part, x)
    kernel = torch.randn(part["kernel"])
    if x.ndim == 4:
        kernel = kernel.permute(3, 2, 0, 1).contiguous()
        return _convolution(part, x, kernel)
    if x.ndim == 3:
        g = torch.randn(*x.shape[:2], kernel.shape[2])
        return {
            "forward": lambda: x @ kernel,
            "input gradient": lambda: g @ kernel.mT,
            "kernel gradient": lambda: x.mT @ g,
        }[part["pass"]]
    kernel, g = kernel.T.contiguous(), torch.randn(len(x), kernel.shape[1])
    bias = torch.zeros(len(kernel))
    return {
        "forward": lambda: torch.nn.functional.linear(x, kernel, bias),
        "input gradient": lambda: g @ kernel,
        "kernel gradient": lambda: g.T @ x,
    }[part["pass"]]


def _convolution(part: dict[str, Any], x: torch.Tensor, kernel: torch.Tensor) -> Call:
    stride, pad = [part["stride"]] * 2, [part["pad"]] * 2
    if part["pass"] == "forward":
        return lambda: torch.conv2d(x, kernel, None, stride, pad)
    g = torch.randn_like(torch.conv2d(x, kernel, None, stride, pad))
    wanted = [part["pass"] == "input gradient", part["pass"] == "kernel gradient", False]
    one = [1, 1]
    return lambda: torch.ops.aten.convolution_backward(
        g, x, kernel, None, stride, pad, one, False, [0, 0], 1, wanted
    )


def _activation(part: dict[str, Any], x: torch.Tensor) -> Call:
    """Forward and gradient."""
    x.requires_grad_()
    run = {
        "relu": torch.relu,
        "max pooling": lambda x: torch.nn.functional.max_pool2d(x, 2),
        "group norm": lambda x: torch.nn.functional.group_norm(x, 8),
    }[part["pass"]]
    g = torch.ones_like(run(x))
    return lambda: torch.autograd.grad(run(x), x, g)


def seconds(run: Call) -> float:
    """Best time of a call."""
    run()
    began = time.perf_counter()
    run()
    count = max(1, int(_LONG_S / max(time.perf_counter() - began, 1e-7)))
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.perf_counter()
        for _ in range(count):
            run()
        best = min(best, (time.perf_counter() - began) / count)
    return best


def main() -> None:
    """Command line."""
    # A gradient is asked for where it is measured; elsewhere the graph would be part of the time.
    parts = json.load(sys.stdin)
    found = []
    for part in parts:
        with torch.set_grad_enabled(part["kernel"] is None):
            found.append(seconds(call_of(part)))
    print(json.dumps({"version": torch.__version__, "seconds": found}))


if __name__ == "__main__":
    main()
