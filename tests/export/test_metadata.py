"""Metadata survive the way into a file and back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcnet_deploy.errors import ExportError
from bcnet_deploy.export.metadata import ModelMetadata, attach, read, sha256

text = st.text(max_size=8)


@given(
    widths=st.dictionaries(text, st.integers(1, 10**6), max_size=4),
    names=st.lists(text, max_size=4),
    mean=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_round_trip(widths: dict[str, int], names: list[str], mean: list[float]) -> None:
    given_metadata = ModelMetadata(widths=widths, class_names=tuple(names), preprocessing={"mean": mean})
    model = onnx.ModelProto()
    model.metadata_props.add(key="other tool", value="kept")
    attach(model, given_metadata)
    attach(model, given_metadata)  # a second time replaces the first
    assert read(onnx.ModelProto.FromString(model.SerializeToString())) == given_metadata
    assert sum(entry.key == "other tool" for entry in model.metadata_props) == 1
    assert len({entry.key for entry in model.metadata_props}) == len(model.metadata_props)


def test_a_file_of_another_tool_has_the_defaults() -> None:
    assert read(onnx.ModelProto()) == ModelMetadata()


def test_damaged_and_newer_metadata_are_refused() -> None:
    with pytest.raises(ExportError, match=r"'bcnet.widths'.*not valid JSON"):
        read({"bcnet.widths": "{"})
    with pytest.raises(ExportError, match="format 99"):
        read({"bcnet.format": "99"})
    with pytest.raises(ExportError, match="'extra' cannot be kept"):
        attach(onnx.ModelProto(), ModelMetadata(extra={"x": float("nan")}))


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(ExportError, match="cannot read"):
        sha256(tmp_path / "none")
