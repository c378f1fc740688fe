"""Run by test_on_gpu.py on two GPUs: the relative differences between our global batch normalization and torch's."""

from __future__ import annotations

import json
import os

import torch
from torch import nn

from sr_dist.training.batch_norm import synchronize


def step(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = network(x)
    (y * torch.arange(y.numel(), device=y.device).view_as(y).cos()).sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"y": y, "dx": x.grad, **gradients, **dict(network.named_buffers())}


def main() -> None:
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl")
    differences: dict[str, float] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(rank)
        x = torch.randn(3 + 2 * rank, 6, 8, 8, device="cuda").contiguous(memory_format=layout) + 5
        ours, theirs = (
            step(wrap(nn.BatchNorm2d(6)).cuda(), x) for wrap in (synchronize, nn.SyncBatchNorm.convert_sync_batchnorm)
        )
        for name, value in theirs.items():
            scale = float(value.double().abs().max()) or 1.0
            differences[f"{name} {layout}"] = float((ours[name].double() - value.double()).abs().max()) / scale
    if rank == 0:
        print(json.dumps(differences))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
