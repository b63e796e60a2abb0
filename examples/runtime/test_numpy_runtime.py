"""The tests that every runtime must pass: ``pytest examples/runtime``."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.runtime.base import Runtime
from bcnet_deploy.testing.runtimes import RuntimeConformance

PROFILE = Path(__file__).with_name("numpy-cpu.yaml")


class TestNumpyRuntime(RuntimeConformance):
    @pytest.fixture
    def device(self) -> DeviceProfile:
        return load_device(PROFILE)

    @pytest.fixture
    def runtime(self, device: DeviceProfile) -> Runtime:
        return device.run_by()
