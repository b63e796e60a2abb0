"""A network of several inputs as one of a single image, which is what all steps work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bcnet_deploy.errors import DataError, ModelError


class SeveralInputs(nn.Module):
    """A network of several inputs, called with one image whose channels are those of all of them.

    An image as large as the largest takes its channels as they are. A smaller one, whose sides must divide
    the largest's, is drawn larger: each of its values fills a block. A number fills a channel. So cropping
    and flipping the image crops and flips every input, numbers stay what they are, and each channel and
    number has a mean and a deviation of its own.

    Args:
        model: called with the inputs in the order of ``shapes``; by keyword where that is a mapping.
        shapes: of each input without the batch: (C, H, W), or (K,) for numbers. At least one has three sides.

    Attributes:
        input_size: (C, H, W) of the image.

    Raises:
        ModelError: the shapes do not go into one image.
    """

    def __init__(
        self, model: nn.Module, shapes: Mapping[str, Sequence[int]] | Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.model = model
        self.shapes: dict[Any, tuple[int, ...]] = {
            name: tuple(shape) for name, shape in _named(shapes).items()
        }
        if any(len(shape) not in (1, 3) or min(shape) < 1 for shape in self.shapes.values()) or all(
            len(shape) == 1 for shape in self.shapes.values()
        ):
            raise ModelError(
                f"the inputs have the shapes {self.shapes}; needed: (C, H, W), or (K,) for numbers, and at "
                "least one image"
            )
        images = {name: shape for name, shape in self.shapes.items() if len(shape) == 3}
        height, width = (max(shape[side] for shape in images.values()) for side in (1, 2))
        for name, shape in images.items():
            if height % shape[1] or width % shape[2]:
                raise ModelError(
                    f"input {name!r} is {shape[1]}x{shape[2]}, which does not divide {height}x{width}, the "
                    "size of the largest; resize it in the data, or inside the model"
                )
        self.input_size = (sum(shape[0] for shape in self.shapes.values()), height, width)

    def forward(self, x: torch.Tensor) -> Any:
        """(N, C, H, W) -> what the network returns."""
        if tuple(x.shape[1:]) != self.input_size:
            raise ValueError(f"its inputs make {'x'.join(map(str, self.input_size))} together")
        inputs, start = {}, 0
        _, height, width = self.input_size
        for name, shape in self.shapes.items():
            own = x[:, start : start + shape[0]]
            start += shape[0]
            # From the middle of each block: a crop may move the picture by some pixels.
            if len(shape) == 1:
                own = own[:, :, height // 2, width // 2]
            elif shape[1:] != (height, width):
                down, right = height // shape[1], width // shape[2]
                own = own[:, :, down // 2 :: down, right // 2 :: right]
            inputs[name] = own
        if all(isinstance(name, str) for name in inputs):
            return self.model(**inputs)
        return self.model(*inputs.values())

    def pack(self, inputs: Mapping[str, Any] | Sequence[Any]) -> torch.Tensor:
        """Arrays or tensors (N, ...) of all inputs as images (N, C, H, W).

        They are uint8 where all are; else float32, with uint8 divided by 255. What is no picture should be
        brought to 0..1 before: that is what images are taken for.

        Raises:
            DataError: an input is missing, or of another shape or type.
        """
        given = _named(inputs)
        if set(given) != set(self.shapes):
            raise DataError(f"the inputs are {list(given)}; needed: {list(self.shapes)}")
        parts = {name: torch.as_tensor(np.ascontiguousarray(given[name])) for name in self.shapes}
        counts = {len(part) for part in parts.values() if part.ndim}
        for name, part in parts.items():
            whole = part.dtype == torch.uint8
            if tuple(part.shape[1:]) != self.shapes[name] or not (whole or part.is_floating_point()):
                raise DataError(
                    f"input {name!r} is {part.dtype} of the shape {tuple(part.shape)}; needed: uint8 or "
                    f"floats (N, {', '.join(map(str, self.shapes[name]))})"
                )
        if len(counts) != 1:
            raise DataError(f"the inputs hold {sorted(counts)} examples; needed: equally many")
        if any(part.is_floating_point() for part in parts.values()):
            parts = {
                name: part.float() if part.is_floating_point() else part.float() / 255
                for name, part in parts.items()
            }
        _, height, width = self.input_size
        planes = []
        for part in parts.values():
            if part.ndim == 2:
                part = part[:, :, None, None]
            down, right = height // part.shape[2], width // part.shape[3]
            planes.append(part.repeat_interleave(down, 2).repeat_interleave(right, 3))
        return torch.cat(planes, dim=1)


def _named(values: Mapping[str, Any] | Sequence[Any]) -> dict[Any, Any]:
    """By name, or by place where they have none."""
    return dict(values) if isinstance(values, Mapping) else dict(enumerate(values))


__all__ = ["SeveralInputs"]
