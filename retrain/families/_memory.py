"""The batch size that fits: what a network keeps per image is counted on one image, what is free is asked of the system.

    network, image shape -> one forward pass with hooks -> bytes per image -> largest batch <= the wanted one

While it trains, a network keeps every layer's output until the gradients have come back, and needs room for those too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sutdol.errors import TrainingError

SHARE = 0.6
"""Of what is free; the rest is for the optimizer's other half, the system and whoever else trains or serves here."""
PER_OUTPUT = 2.2
"""Bytes needed per byte of layer output: itself, its gradient, and what convolutions borrow."""


def fitting_batch(model: Any, shape: tuple[int, int, int], wanted: int, device: str) -> int:
    """The largest power of two below `wanted` that fits, or `wanted` itself; at least 2, for batch norm.

    Args:
        shape: of one image, (3, h, w).

    Raises:
        TrainingError: not even two images fit; says how much is missing.
    """
    free = free_bytes(device) * SHARE - 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    per_image = PER_OUTPUT * output_bytes(model, shape, device)
    if wanted * per_image <= free:
        return wanted
    batch = 2
    if batch * per_image > free:
        raise TrainingError(
            f"memory: two images need {2 * per_image / 1e9:.1f} GB, {max(free, 0) / 1e9:.1f} GB may be used",
            hint="choose a smaller architecture or image_size, or free some memory",
        )
    while 2 * batch < wanted and 2 * batch * per_image <= free:
        batch *= 2
    return batch


def output_bytes(model: Any, shape: tuple[int, int, int], device: str) -> int:
    """Bytes of all layers' outputs for one image."""
    import torch

    total = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        total += sum(t.numel() * t.element_size() for t in _tensors(output))

    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *shape, device=device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return total


def free_bytes(device: str) -> float:
    """Memory that can still be had: of the GPU, or of the machine and its control group."""
    if device != "cpu":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 4e9  # a laptop that does not say
    free = next(
        float(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvail")
    )
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, float(text) - float(used.read_text()))
    return free


def _tensors(output: Any) -> list[Any]:
    if isinstance(output, list | tuple):
        return [t for part in output for t in _tensors(part)]
    if isinstance(output, dict):
        return [t for part in output.values() for t in _tensors(part)]
    return [output] if hasattr(output, "numel") else []
