"""The run directory: each step of the flow leaves its result here for the next one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, MissingStepError, RunDirError

FORMAT = 1
SUPERNET_FORMAT = 1
SUPERNET = "supernet.json"
"""Describes the trained supernet; written last, so that it is there only when training has finished."""
NETWORKS = ("full", "uniform", "found")
"""The networks that a run compares."""

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace


@dataclass(frozen=True)
class ModelRef:
    """Everything needed to build a model and its width space again."""

    name: str
    num_classes: int = 1000
    input_size: tuple[int, int, int] = (3, 224, 224)
    levels: int = 20
    min_level: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "input_size": list(self.input_size)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelRef:
        """Raises :class:`RunDirError` naming an unknown or missing key."""
        known = set(cls.__dataclass_fields__)
        if not isinstance(data, dict) or "name" not in data or set(data) - known:
            raise RunDirError(
                f"a model reference has the keys {sorted(known)} ('name' required); given: {data!r}"
            )
        return cls(**{**data, "input_size": tuple(data.get("input_size", (3, 224, 224)))})


@dataclass
class RunConfig:
    """What the run directory is about; written once, read by every step."""

    model: ModelRef
    device: str = "cpu"
    data: str = "digits"
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class RunDir:
    """Paths and the run file of one run directory."""

    def __init__(self, path: str | Path = "bcnet-run") -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def config_path(self) -> Path:
        return self.path / "run.yaml"

    def latency_table(self, device: str) -> Path:
        return self.path / "latency" / f"{device}.json"

    def device_profile(self, device: str) -> Path:
        """The run's copy of a device profile of the user's own."""
        return self.path / "devices" / f"{device}.yaml"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def search(self) -> Path:
        return self.path / "search"

    @property
    def widths(self) -> Path:
        return self.search / "widths.yaml"

    def retrained(self, which: str) -> Path:
        return self.path / "retrain" / which

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def bench(self) -> Path:
        return self.path / "bench" / "bench.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def exists(self) -> bool:
        return self.config_path.exists()

    def load(self) -> RunConfig:
        """The run file.

        Raises:
            MissingStepError: there is none yet.
            RunDirError: it is damaged or of another version.
        """
        if not self.exists():
            raise MissingStepError(
                f"{self.path} holds no run yet; start one with 'bcnet-deploy profile --model MODEL' "
                "or 'bcnet-deploy run', or name another with --run-dir"
            )
        data = files.read_yaml(self.config_path, RunDirError, "run file")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            given = data.get("format") if isinstance(data, dict) else None
            raise RunDirError(
                f"{self.config_path} has format {given!r}, this version reads {FORMAT}; "
                "use the version that wrote it, or another --run-dir"
            )
        known = {"format", "model", "device", "data", "seed", "extra"}
        if set(data) - known or "model" not in data:
            raise RunDirError(f"{self.config_path} has the keys {sorted(data)}, allowed are {sorted(known)}")
        return RunConfig(
            model=ModelRef.from_dict(data["model"]),
            device=data.get("device", "cpu"),
            data=data.get("data", "digits"),
            seed=int(data.get("seed", 0)),
            extra=data.get("extra") or {},
        )

    def save(self, config: RunConfig) -> None:
        """Write the run file atomically. Raises :class:`RunDirError`."""
        files.write_yaml(
            self.config_path,
            {
                "format": FORMAT,
                "model": config.model.to_dict(),
                "device": config.device,
                "data": config.data,
                "seed": config.seed,
                "extra": config.extra,
            },
        )

    def supernet(self) -> dict[str, Any]:
        """The description of the trained supernet.

        Raises:
            MissingStepError: nothing was trained here, or training has not finished.
            CheckpointError: the description is damaged or of another version.
        """
        path = self.train / SUPERNET
        if not path.exists():
            begun = (self.train / "checkpoint.safetensors").exists()
            state = "training has not finished" if begun else "no supernet has been trained"
            raise MissingStepError(f"{state} in {self.path}; run 'bcnet-deploy train'")
        info = files.read_json(path, CheckpointError, "supernet description")
        if not isinstance(info, dict) or info.get("format") != SUPERNET_FORMAT or "space" not in info:
            raise CheckpointError(f"{path} is not of format {SUPERNET_FORMAT}; train again")
        return info

    def require_levels(self, model: ModelRef) -> None:
        """Refuse a supernet that was trained with other levels than the run's: its weights rank other widths.

        Raises:
            CheckpointError: the levels, or the smallest one, differ; and as :meth:`supernet`.
        """
        info = self.supernet()
        for key in ("levels", "min_level"):
            trained, asked = info.get(key), getattr(model, key)
            if trained is not None and trained != asked:
                raise CheckpointError(
                    f"the supernet in {self.train} was trained with {key} {trained}, {self.config_path} says "
                    f"{key} {asked}; train again with 'bcnet-deploy train --fresh --run-dir {self.path}', or "
                    f"restore '{key}: {trained}' in {self.config_path.name}"
                )

    def require_supernet_of(self, space: WidthSpace) -> None:
        """Raise :class:`CheckpointError` where the trained supernet is of another model than ``space``."""
        info = self.supernet()
        if info["space"] == space.fingerprint:
            return
        size = "x".join(map(str, info.get("input_size", ())))
        trained = f"{info['model']} at {size}" if "model" in info else "another model"
        here = f"{space.model_name} at {'x'.join(map(str, space.input_size))}"
        if trained == here:
            here += " with other layers or channels"
        raise CheckpointError(
            f"the supernet in {self.train} is of {trained} (space {info['space']}), the run's model is now "
            f"{here} (space {space.fingerprint}); train again with 'bcnet-deploy train --fresh --run-dir "
            f"{self.path}', or name the run directory it belongs to with --run-dir"
        )

    def require(self, path: Path, what: str, command: str) -> Path:
        """``path`` if it exists. Raises :class:`MissingStepError` naming the command that makes it."""
        if not path.exists():
            raise MissingStepError(f"no {what} in {self.path} ({path} is missing); run '{command}' first")
        return path
