"""Batch normalization with the statistics of all ranks' images, (B, C, ...).

torch's SyncBatchNorm waits for the device three times in every forward pass, because it selects the ranks that have images by a
boolean mask. This one exchanges the same numbers in one message each way and waits for nothing; it runs on CPU ranks too, and has
a second derivative. Every rank has images: `data.batch` is at least ranks x accumulate.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sr_dist.core import ranks


class GlobalBatchNorm(_BatchNorm):
    """Parameters and buffers have the names of nn.BatchNorm2d. All ranks must call it in training."""

    def _check_input_dim(self, input: Tensor) -> None:
        """(B, C) or (B, C, ...)."""

    @torch.compiler.disable  # it exchanges messages
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)  # of one rank alone
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            self._follow(mean, variance * (count / (count - 1).clamp(min=1)))
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(mean)
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - momentum).add_(new.to(running) * momentum)


def synchronize(network: nn.Module) -> nn.Module:
    """The network, whose layers of batch normalization are those of all ranks from now on."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = GlobalBatchNorm  # keeps its tensors, and its place where several modules share it
    return network


class _Normalize(torch.autograd.Function):
    """(x, weight, bias, eps) -> normalized x, and the mean, the variance and the number of values that it was normalized with."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = global_statistics(x)
        ctx.save_for_backward(x, weight, bias, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """With xhat = (x - mean) / sigma and n values: dx = w / sigma (dy - sum(dy) / n - xhat sum(dy xhat) / n), where the
        sums are those of all ranks."""
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # a double backward: mean and variance must be functions of x
            needed = [number for number in range(3) if ctx.needs_input_grad[number]]  # frozen parameters have no gradient
            inputs = [(x, weight, bias)[number] for number in needed]
            gradients = torch.autograd.grad(_composed(x, weight, bias, ctx.eps), inputs, gradient, create_graph=True)
            by_input = dict(zip(needed, gradients, strict=True))
            return by_input.get(0), by_input.get(1), by_input.get(2), None
        # The kernel of fixed statistics gives the first term and both sums of this rank.
        scale = weight if weight is not None else torch.ones_like(mean)
        empty = mean.new_empty(0)  # as torch's own layers do with fixed statistics: CUDA kernels for channels_last refuse None
        own, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, mean, variance, empty, empty, False, ctx.eps, [True, True, True]
        )
        along_xhat, along_one = (ranks.all_reduce_sum(torch.stack([of_weight, of_bias])) / count).unbind()
        per_sigma = torch.rsqrt(variance + ctx.eps)
        slope = scale * per_sigma.square() * along_xhat
        offset = scale * per_sigma * along_one - slope * mean
        dx = (own - (x * _over(slope, x) + _over(offset, x))).to(x.dtype)
        return dx, of_weight if weight is not None else None, of_bias if bias is not None else None, None


def global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, (C,), and the number of values, of all ranks. Variances are combined around the
    common mean, so that a large mean costs no digits (Chan et al. 1979)."""
    variance, mean = torch.var_mean(_precise(x), _all_but_channels(x), correction=0)
    row = torch.cat([mean, variance, mean.new_full((1,), x.numel() // x.shape[1])])
    means, variances, counts = ranks.all_gather_flat(row).view(ranks.size(), -1).split([len(mean), len(mean), 1], 1)
    count = counts.sum()
    share = counts / count
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), count


def _composed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The same from operations that have all derivatives. All ranks must call, and call backward, in the same order."""
    dims = _all_but_channels(x)
    values = _precise(x)
    count = ranks.all_reduce_sum(values.new_full((), x.numel() // x.shape[1]))
    mean = ranks.sum_with_gradient(values.sum(dims)) / count
    centred = values - _over(mean, x)
    variance = ranks.sum_with_gradient(centred.square().sum(dims)) / count
    y = centred * _over(torch.rsqrt(variance + eps), x)
    if weight is not None:
        y = y * _over(weight, x)
    if bias is not None:
        y = y + _over(bias, x)
    return y.to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    """At least fp32."""
    return x if x.dtype == torch.float64 else x.float()


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _over(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) as a factor of x."""
    return channels.view(-1, *[1] * (x.ndim - 2))
