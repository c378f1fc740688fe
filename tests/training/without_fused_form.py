"""RMSprop with momentum: it has no fused form, and it begins its own state at the first update."""

import torch


def build(parameters, settings, fused):
    return torch.optim.RMSprop(parameters, settings.learning_rate, momentum=settings.momentum)


def states_per_weight(settings):
    return 2
