"""Momentum that keeps Python numbers: in the state of a parameter, and in its group. None of them is exact in fp32."""

import torch


class CountedMomentum(torch.optim.Optimizer):
    def __init__(self, parameters, learning_rate):
        super().__init__(parameters, {"lr": learning_rate, "total": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["total"] += 1 / 3
            group["updates"] = group.get("updates", 0) + 1  # not there before the first step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter, group):
        state = self.state[parameter]
        if not state:
            state |= {"momentum": torch.zeros_like(parameter), "count": 0, "share": 0.1, "even": True, "mean": torch.zeros(())}
        state["count"] += 1
        state["even"] = not state["even"]
        state["share"] += 1 / (3 * state["count"] + group["updates"])
        state["mean"] += state["share"] / 7
        state["momentum"].mul_(0.9).add_(parameter.grad, alpha=state["share"] if state["even"] else 1.0)
        parameter.add_(state["momentum"], alpha=-group["lr"] / (group["total"] + float(state["mean"])))


def build(parameters, settings, fused):
    return CountedMomentum(parameters, settings.learning_rate)


def states_per_weight(settings):
    return 1
