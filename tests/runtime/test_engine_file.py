"""Engines on disk: sidecar and plan must belong together, with or without TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime.engine_file import (
    EngineInfo,
    check_plan,
    read_engine,
    read_head,
    read_info,
    sidecar_path,
)


def plan(bits: int = 1, version: tuple[int, ...] = (1, 7, 1, 116), size: int = 200) -> bytes:
    """A plan of the observed form: head, then anything."""
    head = b"vtrt\0\0\0\0" + struct.pack("<QQ", 2, size) + bytes(version) + b"vtrt" + struct.pack("<Q", bits)
    return head.ljust(size, b"\x5a")


def info(data: bytes, **changes: Any) -> EngineInfo:
    base = EngineInfo(
        flavour="tensorrt_rtx", version="1.7.1.116", capability="7.5", precision="fp16", batch=(1, 1, 1),
        input_name="input", input_size=(3, 8, 8), onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), nodes=("/a/Conv",),
        network={"widths": {"stem": 3}},
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def write(path: Path, data: bytes, described: EngineInfo) -> None:
    path.write_bytes(data)
    sidecar_path(path).write_text(json.dumps(described.to_dict()))


def test_round_trip(tmp_path: Path) -> None:
    data = plan()
    write(tmp_path / "n.engine", data, info(data))
    assert read_engine(tmp_path / "n.engine") == (data, info(data))
    described = json.loads(sidecar_path(tmp_path / "n.engine").read_text())
    assert described["capability"] == "7.5"
    assert described["format"] == 1


@pytest.mark.parametrize(
    ("bits", "capabilities"),
    [
        (1, ("7.5",)),
        (2, ("8.0",)),
        (4, ("8.6",)),
        (8, ("8.9",)),
        (16, ("12.0",)),
        (28, ("8.6", "8.9", "12.0")),
    ],
)
def test_the_head_of_a_plan(bits: int, capabilities: tuple[str, ...]) -> None:
    head = read_head(plan(bits))
    assert head is not None
    assert (head.version, head.capabilities, head.size) == ("1.7.1.116", capabilities, 200)


@pytest.mark.parametrize("data", [b"", b"vtrt", b"x" * 200])
def test_what_is_no_plan_has_no_head(data: bytes) -> None:
    assert read_head(data) is None


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (plan()[:150], {"size_bytes": 200}, "150 bytes, 200"),
        (plan()[:150], {}, "truncated"),
        (plan(version=(1, 6, 0, 1)), {}, r"1\.6\.0\.1, its sidecar says 1\.7"),
        (plan(bits=4), {}, r"compute capability 8\.6, its sidecar says 7\.5"),
        (b"x" * 200, {}, "no TensorRT-RTX plan"),
    ],
)
def test_plans_that_do_not_fit_are_refused(data: bytes, changes: dict, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_plan(data, info(data, **changes), "n.engine")


def test_of_the_other_flavour_only_what_is_known_is_checked() -> None:
    data = b"opaque"
    assert check_plan(data, info(data, flavour="tensorrt"), "n.engine") == ["size", "hash"]


def test_another_engine_under_the_same_sidecar(tmp_path: Path) -> None:
    write(tmp_path / "n.engine", plan(), info(plan()))
    (tmp_path / "n.engine").write_bytes(plan()[:-1] + b"!")
    with pytest.raises(EngineError, match="not the one its sidecar describes"):
        read_engine(tmp_path / "n.engine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("capability"), "'capability'"),
        (lambda data: data.update(odd=1), "'odd'"),
        (lambda data: data.update(format=2), "format 2"),
    ],
)
def test_damaged_sidecars_name_the_key(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path / "n.engine", plan(), info(plan()))
    path = sidecar_path(tmp_path / "n.engine")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(EngineError, match=message):
        read_info(tmp_path / "n.engine")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no engine sidecar at .*n\.engine\.json"):
        read_engine(tmp_path / "n.engine")
    write(tmp_path / "n.engine", plan(), info(plan()))
    (tmp_path / "n.engine").unlink()
    with pytest.raises(EngineError, match="cannot read engine"):
        read_engine(tmp_path / "n.engine")
