"""Structured pruning: whole channels go, so that what is left is a smaller network of the same kind.

    net, share -> groups of channels that depend on each other -> the weakest of each layer go -> net, smaller
    weights of a pruned network -> `fit_shapes` gives a freshly built one their shapes -> load_state_dict

torch-pruning finds out which channels hang together (through additions, concatenations, depthwise layers); a group is worth
the sum of its weights' magnitudes, and every layer loses the same share, rounded so that eight channels remain together, which
is what processors like. What must keep its width is named by the family: heads, and layers whose output is cut in equal parts.

Errors: SetupError without torch-pruning; TrainingError when nothing could be taken away.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sutdol.errors import SetupError, TrainingError

if TYPE_CHECKING:
    import torch

ROUND_TO = 8


def prune(net: Any, probe: torch.Tensor, share: float, *, fixed: list[Any]) -> None:
    """Take `share` of the channels away, in place.

    Args:
        probe: (1, 3, s, s) to trace with.
        fixed: modules whose outputs keep their width.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise SetupError("pruning needs torch-pruning", hint="pip install 'sutdol[prune]'") from error
    before = sum(p.numel() for p in net.parameters())
    learns = {name: p.requires_grad for name, p in net.named_parameters()}
    training = net.training
    net.eval()
    for parameter in net.parameters():
        parameter.requires_grad_(True)  # the dependencies are read from autograd's graph
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every scale that is no layer, and does the right thing with it
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            net, probe, importance=importance, pruning_ratio=share, ignored_layers=fixed, round_to=ROUND_TO
        ).step()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(learns[name])
    net.train(training)
    if sum(p.numel() for p in net.parameters()) == before:
        raise TrainingError("pruning: no layer of this network has channels that could go")


def fit_shapes(net: Any, state: dict[str, torch.Tensor]) -> None:
    """Give the layers of `net` the shapes of `state`, a pruned network's; what fits already is left alone."""
    import torch

    for prefix, module in net.named_modules():
        changed = False
        for name, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            wanted = state.get(f"{prefix}.{name}" if prefix else name)
            if wanted is None or wanted.shape == old.shape:
                continue
            changed = True
            empty = torch.empty(wanted.shape, dtype=old.dtype, device=old.device)
            if isinstance(old, torch.nn.Parameter):
                setattr(module, name, torch.nn.Parameter(empty, requires_grad=old.requires_grad))
            else:
                setattr(module, name, empty)
        if changed:
            _describe(module)


def _describe(module: Any) -> None:
    """A layer's own numbers follow the shape of its weights."""
    from torch import nn

    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        module.out_channels = len(module.weight)
        if depthwise:
            module.groups = module.out_channels
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
