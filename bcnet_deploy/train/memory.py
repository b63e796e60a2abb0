"""What to say when memory runs out."""

from __future__ import annotations

import torch

from bcnet_deploy.train.config import TrainConfig

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")


def memory_advice(error: BaseException, config: TrainConfig, device: torch.device) -> str | None:
    """What to change after an out-of-memory ``error``; None if it is another error."""
    text = str(error).lower()
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(s in text for s in _SIGNS):
        return None
    part = max(1, config.batch_size // config.accumulation)
    half = max(1, part // 2)
    return (
        f"out of memory on {device} with {part} images at once (batch_size {config.batch_size}, accumulation "
        f"{config.accumulation}); set accumulation: {-(-config.batch_size // half)} for the same batch in "
        f"parts of {half}, or lower batch_size"
    )
