"""One run: its directory, and one function for each step, for command, ``run`` and Python alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.references import lazy

if TYPE_CHECKING:
    from bcnet_deploy.run.bench import BenchStepResult as BenchStepResult
    from bcnet_deploy.run.directory import RunConfig as RunConfig
    from bcnet_deploy.run.directory import RunDir as RunDir
    from bcnet_deploy.run.export import ExportStepResult as ExportStepResult
    from bcnet_deploy.run.pipeline import PipelineResult as PipelineResult
    from bcnet_deploy.run.pipeline import Run as Run
    from bcnet_deploy.run.pipeline import run_all as run_all
    from bcnet_deploy.run.profile import ProfileResult as ProfileResult
    from bcnet_deploy.run.report import ReportResult as ReportResult
    from bcnet_deploy.run.retrain import RetrainStepResult as RetrainStepResult
    from bcnet_deploy.run.search import SearchStepResult as SearchStepResult
    from bcnet_deploy.run.settings import BenchStepSettings as BenchStepSettings
    from bcnet_deploy.run.settings import ExportSettings as ExportSettings
    from bcnet_deploy.run.settings import PipelineSettings as PipelineSettings
    from bcnet_deploy.run.settings import ProfileSettings as ProfileSettings
    from bcnet_deploy.run.settings import RetrainSettings as RetrainSettings
    from bcnet_deploy.run.settings import SearchSettings as SearchSettings
    from bcnet_deploy.run.settings import TrainSettings as TrainSettings
    from bcnet_deploy.run.train import TrainResult as TrainResult

_PLACES = {
    "Run": "pipeline", "PipelineResult": "pipeline", "run_all": "pipeline",
    "RunDir": "directory", "RunConfig": "directory",
    "PipelineSettings": "settings", "ProfileSettings": "settings", "TrainSettings": "settings",
    "SearchSettings": "settings", "RetrainSettings": "settings", "ExportSettings": "settings",
    "BenchStepSettings": "settings",
    "ProfileResult": "profile", "TrainResult": "train", "SearchStepResult": "search",
    "RetrainStepResult": "retrain", "ExportStepResult": "export", "BenchStepResult": "bench",
    "ReportResult": "report",
}  # fmt: skip
__all__ = list(_PLACES)
__getattr__, __dir__ = lazy(__name__, _PLACES)
