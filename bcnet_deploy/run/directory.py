"""The run directory: each step leaves its result here for the next one.

Everything that reads or writes the directory asks here: where files are, what the run is about, what earlier
steps left, and what of that is out of date. PyTorch is loaded where a model is needed, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Interval, Len

from bcnet_deploy import files
from bcnet_deploy.devices import DeviceProfile, check_name, is_shipped, load_device, read_profile
from bcnet_deploy.errors import (
    BCNetError,
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    MissingStepError,
    RunDirError,
    TableError,
)
from bcnet_deploy.models.ref import ModelRef, build_module, space_of
from bcnet_deploy.run.widths import by_name_of, difference, ordered
from bcnet_deploy.validation import Checked, plain

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.data import DataSplits
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.run.widths import Widths
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.tasks import Task

_log = logging.getLogger("bcnet_deploy")

FORMAT = 2
NETWORKS = ("full", "uniform", "found")
"""The networks that a run compares."""
DIGITS = "digits"
"""The embedded data."""


@dataclass
class RunConfig(Checked):
    """What the run directory is about; written by whichever step begins the run.

    Attributes:
        device: name of the device profile whose budget is meant where none is named.
        data: reference of the data; None where nobody has named any yet.
        seed: of everything random.
        steps: by step, the settings that were given to it. They are kept, so that a step needs them once.
    """

    error: ClassVar[type[BCNetError]] = RunDirError
    noun: ClassVar[str] = "the run"

    model: ModelRef
    device: Annotated[str, Len(1, 1000)] = "cpu"
    data: Annotated[str, Len(1, 4096)] | None = None
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Given:
    """What was given as an object from Python instead of by name; it lives as long as the process."""

    model: nn.Module | None = None
    data: DataSplits | None = None


class RunDir:
    """One run directory.

    Args:
        path: the folder; made by the first step.
        given: objects from Python that stand for the names in the run file.
    """

    def __init__(self, path: str | Path = "bcnet-run", given: Given | None = None) -> None:
        self.path = Path(path)
        self.given = given or Given()
        self._space: tuple[ModelRef, WidthSpace] | None = None
        self._captured: tuple[ModelRef, WidthSpace] | None = None
        self.writing = False
        """Whether this process holds the directory's lock through this object."""

    # -- paths ---------------------------------------------------------------------------------

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def config_path(self) -> Path:
        return self.path / "run.yaml"

    def latency_table(self, device: str) -> Path:
        return self.path / "latency" / f"{check_name('the name of a device', device, RunDirError)}.json"

    def device_profile(self, device: str) -> Path:
        """The run's copy of a device profile of the user's own."""
        return self.path / "devices" / f"{check_name('the name of a device', device, RunDirError)}.yaml"

    @property
    def data_file(self) -> Path:
        """Tells the data of the run's steps: its fingerprint, and the channel means and deviations of it that
        all of them use. How those are measured depends on whether the images fit into memory.

        It lies beside the steps' stamps, and goes with them.
        """
        return self.path / "steps" / "data.json"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def weights(self) -> Path:
        """The trained supernet's weights."""
        return self.train / "supernet.safetensors"

    @property
    def supernet_file(self) -> Path:
        """Describes the trained supernet; written last: it is there only when training has finished."""
        return self.train / "supernet.json"

    @property
    def records(self) -> Path:
        """The supernet's loss records."""
        return self.train / "records.jsonl"

    @property
    def search(self) -> Path:
        return self.path / "search"

    @property
    def widths_file(self) -> Path:
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

    def require(self, path: Path, what: str, command: str) -> Path:
        """``path`` if it exists. Raises :class:`MissingStepError` naming the command that makes it."""
        if not path.exists():
            raise MissingStepError(f"no {what} in {self.path} ({path} is missing); run '{command}' first")
        return path

    # -- the run file --------------------------------------------------------------------------

    def exists(self) -> bool:
        return self.config_path.exists()

    def load(self) -> RunConfig:
        """The run file. A file of the former format 1 is taken over: it lacked the steps' settings alone.

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
        given = data.get("format") if isinstance(data, dict) else None
        if given not in (1, FORMAT):
            raise RunDirError(
                f"{self.config_path} has format {given!r}, this version reads 1 and {FORMAT}; "
                "use the version that wrote it, or another --run-dir"
            )
        values = {key: value for key, value in data.items() if key != "format"}
        if given == 1:
            values.pop("extra", None)
            values.setdefault("data", DIGITS)  # what that format meant where it named none
        try:
            model = ModelRef.from_dict(values.pop("model", None), "model")
        except ConfigError as error:
            raise RunDirError(f"{self.config_path}: {error}") from None
        return RunConfig.from_dict({**values, "model": model}, str(self.config_path))

    def save(self, config: RunConfig) -> None:
        """Write the run file atomically. Raises :class:`RunDirError`."""
        # As text before it is written: a setting that is an object from Python has none.
        files.write_yaml(
            self.config_path,
            {
                "format": FORMAT, "model": config.model.to_dict(), "device": config.device,
                "data": config.data,
                "seed": config.seed, "steps": plain(config.steps),
            },
        )  # fmt: skip

    def keep(self, **changes: Any) -> RunConfig:
        """Change the run file where it says otherwise; the run as it is then."""
        there = self.load()
        wanted = replace(there, **changes)
        if wanted != there:
            self.save(wanted)
        return wanted

    # -- model, data, device -------------------------------------------------------------------

    def build(self, seed: int | None = None) -> tuple[nn.Module, WidthSpace]:
        """The run's model and its space, captured once; see :func:`bcnet_deploy.models.ref.build_module`."""
        ref = self.load().model
        model = build_module(ref, seed, module=self.given.model)
        if self._captured is None or self._captured[0] != ref:
            self._captured = (ref, space_of(ref, model))
        return model, self._captured[1]

    def identity(self) -> dict[str, Any]:
        """What every step depends on: the model with the content of its weights, and the data."""
        config = self.load()
        model = config.model.to_dict()
        weights = config.model.weights
        if weights is not None and files.is_file(weights):
            model["weights"] = files.content_hash(Path(weights))
        return {"model": model, "data": config.data}

    def task(self) -> Task | None:
        """The task that the run's training was given; None where none was."""
        from bcnet_deploy.run.settings import task_of

        return task_of(self.load())

    def space(self) -> WidthSpace:
        """The width space, without PyTorch where it has been captured before.

        Raises:
            MissingStepError: there is no run yet.
            ModelError: the model cannot become a width space.
        """
        ref = self.load().model
        if self._space is None or self._space[0] != ref:
            known = self.kept_space()
            if known is None:
                known = self.build()[1]
                with suppress(RunDirError):  # for speed alone: a directory may be read that nobody may write
                    self.keep_space(known)
            self._space = (ref, known)
        return self._space[1]

    def keep_space(self, space: WidthSpace) -> None:
        """Keep a captured space for steps that then need no PyTorch. Raises :class:`RunDirError`."""
        data = {"model": self.load().model.to_dict(), "space": space.to_dict()}
        files.write_json(self.search / "space.json", data, indent=None)

    def kept_space(self) -> WidthSpace | None:
        """The kept space if it is surely of this model; a damaged or other one counts as none."""
        from bcnet_deploy.space import WidthSpace

        ref, path = self.load().model, self.search / "space.json"
        # A model of the user's own can change under the same name: it is captured anew.
        if ref.may_change or not path.exists():
            return None
        try:
            data = files.read_json(path, RunDirError, "width space")
            with files.malformed(path, RunDirError, files.AGAIN):
                return WidthSpace.from_dict(data["space"]) if data["model"] == ref.to_dict() else None
        except BCNetError:
            return None

    def data(self, *, checked: bool = True) -> DataSplits:
        """The run's data at the model's input size.

        Data that is named is prepared as the model's published weights want it, where the run starts from
        those (``--weights pretrained``): their channel means and deviations, interpolation and crop. Else the
        means and deviations are those of the first time, see :attr:`data_file`; other images or labels than
        then are said (as a log warning).

        Args:
            checked: refuse data of another number of classes than the model's.

        Raises:
            DataError: nobody has named any data; and see :func:`bcnet_deploy.data.load_data`.
        """
        config = self.load()
        count = config.model.num_classes if checked else None
        if self.given.data is not None:
            if count is not None:
                require_classes(self.given.data, count)
            return self._as_kept(self.given.data)
        from bcnet_deploy.data import load_data
        from bcnet_deploy.models.ref import PRETRAINED
        from bcnet_deploy.models.registry import input_config

        size = config.model.input_size
        wanted = input_config(config.model.name) if config.model.weights == PRETRAINED else None
        if wanted is None or len(wanted.mean) != size[0]:
            return self._as_kept(load_data(self.data_reference(), size, num_classes=count))
        loaded = load_data(
            self.data_reference(), size, num_classes=count, interpolation=wanted.interpolation,
            crop=wanted.crop if wanted.input_size == size else None,
        )  # fmt: skip
        splits = self._as_kept(loaded)
        means, deviations = (", ".join(f"{v:.3f}" for v in values) for values in (wanted.mean, wanted.std))
        note = f"images are normalised as for the published weights: mean {means}, deviation {deviations}"
        return replace(splits, mean=wanted.mean, std=wanted.std, notes=(*splits.notes, note))

    def _as_kept(self, splits: DataSplits) -> DataSplits:
        """The data with the means and deviations that the run has kept; they are kept where it has none."""
        if not splits.fingerprint:
            return splits
        now = {
            "data": self.load().data, "input_size": list(splits.input_size),
            "fingerprint": splits.fingerprint, "mean": list(splits.mean), "std": list(splits.std),
        }  # fmt: skip
        kept = self._kept_data(len(splits.mean))
        if all(kept.get(key) == now[key] for key in ("data", "input_size")):
            if kept["fingerprint"] == splits.fingerprint:
                return replace(splits, mean=kept["mean"], std=kept["std"])
            _log.warning(
                "the images or labels of %s are not those that this run's steps had: what is trained, scored "
                "and measured from now on is of the new ones, what finished before is not done again and "
                "stays of the former ones; give --fresh to do a step anew",
                splits.name,
            )
        from bcnet_deploy.run.engine import first_rank

        if first_rank():
            with suppress(RunDirError):  # a directory may be read that nobody may write
                files.write_json(self.data_file, now)
        return splits

    def _kept_data(self, channels: int) -> dict[str, Any]:
        """What :attr:`data_file` says; nothing where it is damaged or not there."""
        try:
            data = files.read_json(self.data_file, RunDirError, "description of the data")
            with files.malformed(self.data_file, RunDirError, files.AGAIN):
                mean, std = (tuple(map(float, data[key])) for key in ("mean", "std"))
                whole = len(mean) == len(std) == channels and min(std) > 0 and "fingerprint" in data
        except BCNetError:
            return {}
        return {**data, "mean": mean, "std": std} if whole else {}

    def data_reference(self) -> str:
        """The run's data by name. Raises :class:`DataError` where nobody has named any."""
        reference = self.load().data
        if reference is None:
            from bcnet_deploy.data.load import no_data

            raise no_data()
        if reference.startswith("object:") and self.given.data is None:
            raise RunDirError(
                f"the run's data, {reference}, was given as an object from Python; go on from Python with "
                "bcnet_deploy.Run(path, data=...)"
            )
        return reference

    def device(self, name: str | Path | None = None) -> DeviceProfile:
        """A device profile; one of the user's own that the run has kept is known by its name too.

        Args:
            name: of a profile, or the path of one; None: the run's device.

        Raises:
            UnknownDeviceError, DeviceError: see :func:`bcnet_deploy.devices.load_device`.
        """
        text = str(self.load().device if name is None else name)
        named = "/" not in text and not text.endswith((".yaml", ".yml"))
        if named and (kept := self.device_profile(text)).exists():
            return read_profile(kept)
        return load_device(text)

    def keep_device(self, profile: DeviceProfile) -> None:
        """Keep a copy of a profile of the user's own: the run then does not depend on where the file is."""
        kept = self.device_profile(profile.name)
        if is_shipped(profile):
            kept.unlink(missing_ok=True)  # the name is the shipped profile's again
        elif profile.path is None or ":" in profile.runtime:  # with the runtime's file wherever it is
            files.write_yaml(kept, profile.to_dict())
        elif profile.path != kept:
            files.write_text(kept, files.read_text(profile.path, DeviceError, "device profile"))

    # -- what the steps left -------------------------------------------------------------------

    def table(self, device: str | None = None) -> LatencyTable:
        """A device's latency table, of the run's resolution.

        Args:
            device: None: the run's.

        Raises:
            MissingStepError: there is none; names the command that makes it.
            TableError: it is damaged, of another device or of another resolution.
        """
        from bcnet_deploy.lut import LatencyTable

        config = self.load()
        device = device or config.device
        path = self.latency_table(device)
        if not path.exists():
            known = sorted(p.stem for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
            there = f"; there are tables of {', '.join(known)}" if known else ""
            raise MissingStepError(
                f"no latency table of device {device!r} in {self.path}{there}; "
                f"run 'bcnet-deploy profile --device {device}' first"
            )
        table = LatencyTable.load(path)
        require_device(path, table.device, device)
        if all(tuple(n.input_size) != tuple(config.model.input_size) for n in table.networks):
            size = "x".join(map(str, config.model.input_size))
            raise TableError(
                f"{path}, the table of device {device!r}, is of {table.network.description}, the run's model "
                f"{config.model.name} is at {size}; run 'bcnet-deploy profile --device {device}' again"
            )
        return table

    def bound_table(self, device: str, space: WidthSpace) -> LatencyTable:
        """:meth:`table` bound to the run's space.

        Raises:
            TableError: it lacks layers of the run's model; names device and file. And as :meth:`table`.
        """
        table = self.table(device)
        try:
            return table.for_space(space)
        except TableError as error:
            raise TableError(
                f"{self.latency_table(device)}, the table of device {device!r}, is not of the run's model "
                f"{self.load().model.name}: {error}"
            ) from error

    # -- widths --------------------------------------------------------------------------------

    def searched(self, which: str) -> dict[str, int] | None:
        """Widths by variable name that the latest search names for ``found`` or ``uniform``.

        None for ``full`` and before any search.

        Raises:
            RunDirError: the file is damaged.
        """
        if which == "full" or not self.widths_file.exists():
            return None
        data = files.read_yaml(self.widths_file, RunDirError, "widths")
        if which == "uniform":
            compared = data.get("compared_with") if isinstance(data, Mapping) else None
            data = compared.get("uniform") if isinstance(compared, Mapping) else None
            if data is None:
                return None
        return by_name_of(data, self.widths_file, RunDirError, "bcnet-deploy search --fresh")

    def widths(self, which: str, space: WidthSpace) -> Widths:
        """(L,): what ``which`` is to be: the full widths, or those of the latest search.

        Raises:
            MissingStepError: there was no search yet, or it names no such network.
            RunDirError: the search's file is damaged, or of another model.
            WidthError: its widths are none of the space.
        """
        if which == "full":
            return space.full
        return ordered(self.require_searched(which), space, str(self.widths_file))

    def require_searched(self, which: str) -> dict[str, int]:
        """:meth:`searched`, where there must be widths. Raises :class:`MissingStepError` and as there."""
        self.require(self.widths_file, "widths found", "bcnet-deploy search")
        by_name = self.searched(which)
        if by_name is None:
            raise MissingStepError(
                f"{self.widths_file} names no {which} network; run 'bcnet-deploy search --fresh' again, or "
                f"train widths of your own with 'bcnet-deploy retrain --network {which} --widths FILE'"
            )
        return by_name

    def trained(self, which: str) -> dict[str, int] | None:
        """Widths by variable name of a retrained network; None where there is none.

        Raises:
            CheckpointError: its description is damaged.
        """
        data = self._subnet_description(which)
        if data is None:
            return None
        again = f"bcnet-deploy retrain --network {which} --fresh"
        return by_name_of(data, self.retrained(which) / "subnet.yaml", CheckpointError, again)

    def given_widths(self, which: str) -> dict[str, int] | None:
        """As :meth:`trained`, where the user gave the widths to the retraining instead of the search."""
        return self.trained(which) if self._subnet_extra(which).get("widths_from") else None

    def preprocessing(self, which: str) -> Mapping[str, Any]:
        """How a retrained network's images were made; empty where nothing says so."""
        return self._subnet_extra(which).get("preprocessing") or {}

    def _subnet_extra(self, which: str) -> Mapping[str, Any]:
        """What a retrained network's description says beside its widths; empty where there is none."""
        data = self._subnet_description(which)
        extra = data.get("extra") if data is not None else None
        return extra if isinstance(extra, Mapping) else {}

    def _subnet_description(self, which: str) -> Mapping[str, Any] | None:
        path = self.retrained(which) / "subnet.yaml"
        if not path.exists():
            return None
        data = files.read_yaml(path, CheckpointError, "sub-network description")
        return data if isinstance(data, Mapping) else {}

    def outdated(self, which: str) -> str:
        """How a retrained network differs from the latest search's, such as ``'stem.0' 12 then, 20 now``.

        Empty where it does not, where one of both is missing, and where the user gave the widths.
        """
        trained, found = self.trained(which), self.searched(which)
        if trained is None or found is None or self.given_widths(which) is not None:
            return ""
        return difference(trained, found)

    def require_current(self, which: str) -> None:
        """Raise :class:`RunDirError` where ``which`` was retrained at a former search's widths."""
        if other := self.outdated(which):
            raise RunDirError(
                f"{self.retrained(which)} was trained at other widths than the search found ({other}); "
                f"run 'bcnet-deploy retrain --network {which} --fresh' to train those, or the same with "
                "--widths FILE for widths of your own"
            )


def require_classes(splits: DataSplits, count: int) -> None:
    """Raise :class:`DataError` where data given as an object has other classes than the model."""
    if splits.num_classes != count:
        raise DataError(
            f"{splits.name} has {splits.num_classes} classes, the model tells {count} apart; "
            "build the model with as many"
        )


def require_device(path: str | Path, made_for: Any, device: str) -> None:
    """Raise :class:`TableError` where the table at ``path`` is of another device than asked for."""
    if made_for != device:
        raise TableError(
            f"{path} is a table of device {made_for!r}, asked for is {device!r}; give a table of {device!r}, "
            f"ask for {made_for!r}, or run 'bcnet-deploy profile --device {device}'"
        )
