"""The network that a table predicts: its width variables, its layers and what belongs to no layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy import files
from bcnet_deploy.errors import TableError, WidthError
from bcnet_deploy.lut.entries import finite, non_negative, require_keys
from bcnet_deploy.lut.layers import Layer, layers_of

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

Int64 = npt.NDArray[np.int64]

_ACCURACY = ("networks", "rounds", "mape", "within_5", "within_10", "kendall", "noise_floor")


@dataclass(frozen=True)
class Variable:
    """A width variable, as far as a table needs it."""

    name: str
    channels: int
    step: int
    choices: tuple[int, ...]


UNVALIDATED_ERROR = 0.1
"""Relative error of measured layers whose sum no held-out network judges, or too few."""


@dataclass(frozen=True)
class Network:
    """One network bound to a table.

    Attributes:
        fingerprint: of its width space.
        overhead_us: time of a run that no layer owns.
        scales: by layer, what its times are multiplied by in this network: what the sums of whole
            networks say of its context (caches, conversions) beyond the entries shared by key.
        relative_error: standard deviation of prediction / measurement - 1 on held-out networks.
        accuracy: figures of the held-out validation, to show.
    """

    fingerprint: str
    model_name: str
    input_size: tuple[int, int, int]
    variables: tuple[Variable, ...]
    layers: tuple[Layer, ...]
    overhead_us: float = 0.0
    scales: tuple[float, ...] = ()
    relative_error: float = 0.0
    accuracy: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_space(cls, space: WidthSpace, *, precision: str, batch: int) -> Network:
        """An uncalibrated network."""
        layers = layers_of(space, precision=precision, batch=batch)
        return cls(
            space.fingerprint,
            space.model_name,
            space.input_size,
            _variables(space),
            layers,
            0.0,
            (1.0,) * len(layers),
        )

    def with_choices_of(self, space: WidthSpace) -> Network:
        """The same with the levels of ``space``."""
        return replace(self, variables=_variables(space))

    @property
    def description(self) -> str:
        return f"{self.model_name} at {'x'.join(map(str, self.input_size))}"

    def check(self, widths: npt.ArrayLike) -> Int64:
        """``widths`` as (N, L). Raises :class:`WidthError` as :meth:`WidthSpace.check` does."""
        array = np.asarray(widths)
        array = array[None] if array.ndim == 1 else array
        count = len(self.variables)
        if array.ndim != 2 or array.shape[1] != count:
            raise WidthError(
                f"a width vector of {self.model_name} has {count} widths; given: shape {np.shape(widths)}"
            )
        if array.dtype.kind not in "iu" and not (
            array.dtype.kind == "f" and np.array_equal(array, array.round())
        ):
            raise WidthError(f"widths are whole numbers of channels; given: {array.dtype}")
        array = array.astype(np.int64, copy=False)
        if len(array) == 0:
            return array
        for column, variable in enumerate(self.variables):
            values = array[:, column]
            step = variable.step
            if (
                values.min() < 1
                or values.max() > variable.channels
                or (step > 1 and (values % step != 0).any())
            ):
                bad = (values < 1) | (values > variable.channels) | (values % step != 0)
                grid = f" in steps of {step}" if step > 1 else ""
                raise WidthError(
                    f"width {values[bad][0]} of variable {column} ({variable.name}) is out of range; "
                    f"allowed: {step}..{variable.channels}{grid}"
                )
        return array

    def to_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "model_name": self.model_name,
            "input_size": list(self.input_size),
            "variables": [[v.name, v.channels, v.step, list(v.choices)] for v in self.variables],
            "layers": [layer.to_dict() for layer in self.layers],
            "overhead_us": round(self.overhead_us, 3),
            "scales": [round(scale, 5) for scale in self.scales],
            "relative_error": round(self.relative_error, 5),
            "accuracy": self.accuracy,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Network:
        """Raises :class:`TableError` naming ``where`` and the key at fault."""
        require_keys(
            data,
            ("fingerprint", "model_name", "input_size", "variables", "layers", "overhead_us", "scales",
             "relative_error", "accuracy"),
            where,
        )  # fmt: skip
        with files.malformed(f"{where}: a layer, variable or the input size", TableError, files.AGAIN):
            layers = tuple(Layer.from_dict(layer) for layer in data["layers"])
            variables = tuple(
                Variable(str(name), int(channels), int(step), tuple(int(choice) for choice in choices))
                for name, channels, step, choices in data["variables"]
            )
            channels, height, width = (int(size) for size in data["input_size"])
        for variable in variables:
            sizes = (variable.channels, variable.step, *variable.choices)
            if not variable.choices or not 1 <= min(sizes) <= max(sizes) <= variable.channels <= 2**24:
                raise TableError(
                    f"{where}: variable {variable.name} has {variable.channels} channels in steps of "
                    f"{variable.step} and choices from {min(variable.choices, default=None)} to "
                    f"{max(variable.choices, default=None)}; allowed: 1 up to the channels, at most {2**24}"
                )
        scales = non_negative(data["scales"], f"{where}.scales")
        if len(scales) != len(layers):
            raise TableError(f"{where}.scales must have one number for each of {len(layers)} layers")
        used = {index for layer in layers for index in layer.variables}
        if used and max(used) >= len(variables):
            raise TableError(f"{where}: a layer depends on variable {max(used)} of {len(variables)}")
        return cls(
            fingerprint=str(data["fingerprint"]),
            model_name=str(data["model_name"]),
            input_size=(channels, height, width),
            variables=variables,
            layers=layers,
            overhead_us=float(finite(data["overhead_us"], f"{where}.overhead_us")[0]),
            scales=tuple(float(scale) for scale in scales),
            relative_error=float(non_negative(data["relative_error"], f"{where}.relative_error")[0]),
            accuracy=_accuracy(data["accuracy"], f"{where}.accuracy"),
        )


def _accuracy(data: Any, where: str) -> dict[str, Any]:
    """The figures of a validation, or an empty mapping."""
    if data == {}:
        return {}
    require_keys(data, _ACCURACY, where)
    for name, value in data.items():
        finite(value, f"{where}.{name}")
    return dict(data)


def layer_dims(layer: Layer, widths: Int64) -> Int64:
    """(N, L) widths -> (N, D) channel counts of a layer."""
    if not layer.dims:
        return np.ones((len(widths), 1), dtype=np.int64)
    return np.stack([extent(widths) for extent in layer.dims], axis=1)


def _variables(space: WidthSpace) -> tuple[Variable, ...]:
    return tuple(Variable(v.name, v.channels, v.step, tuple(v.choices)) for v in space.variables)


def dims_text(layer: Layer, dims: Sequence[int] | Int64) -> str:
    """``in=16, out=96`` of a layer's channel counts."""
    names = ("in", "out") if len(dims) == 2 else tuple(f"channels{i or ''}" for i in range(len(dims)))
    return ", ".join(f"{name}={int(value)}" for name, value in zip(names, dims, strict=True))
