"""``bcnet-deploy export``: a network of the run directory as ONNX file, or as engine of a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bcnet_deploy import files
from bcnet_deploy.cli.choices import ENGINE, NETWORK, PRECISION, devices
from bcnet_deploy.cli.common import (
    chosen,
    console,
    emit,
    json_option,
    quiet_option,
    run_dir_option,
    shown_step,
)
from bcnet_deploy.errors import ExportError, wrong_option
from bcnet_deploy.run.directory import RunDir


@click.command("export")
@click.option(
    "--engine", type=ENGINE,
    help="onnx: an ONNX file; ort: ONNX Runtime's own format too; openvino: OpenVINO's IR too; "
    "trt: a TensorRT engine too. Default: onnx.",
)  # fmt: skip
@click.option(
    "--which", "network", default="found", show_default=True, type=NETWORK, help="Which network of the run."
)
@click.option(
    "--precision", type=PRECISION,
    help="Of the computation; inputs and outputs stay FP32. Default: the device's for an engine, else fp32.",
)  # fmt: skip
@click.option("--dynamic-batch/--fixed-batch", default=None, help="Any batch size instead of 1.")
@click.option("--opset", type=click.IntRange(17, 20), help="ONNX operator set, 17 to 20. Default: 19.")
@click.option("--device", shell_complete=devices, help="Device profile of an engine. Default: the run's.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Folder. Default: export/ of the run directory.",
)  # fmt: skip
@click.option("--keep-fp32", multiple=True, help="A layer that stays in FP32 in an INT8 network. Repeatable.")
@click.option(
    "--max-loss", type=click.FloatRange(0, 1),
    help="Accuracy that INT8 may lose, 0.005 is half a point; the layers that lose most stay in FP32 for it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace existing files.")
@run_dir_option
@json_option
@quiet_option
def command(
    out: Path | None, force: bool, run_dir: RunDir, as_json: bool, quiet: bool, network: str, **options: Any
) -> None:
    """Export to ONNX or an engine, with a parity check.

    Takes the retrained network where there is one, else cuts it from the supernet at the widths found.
    Every file passes the ONNX checker, shape inference and a comparison with PyTorch on held-out
    images before it replaces a former one. TensorRT engines are also built for a GPU that is not here.
    """
    from bcnet_deploy.run.export import export
    from bcnet_deploy.run.settings import keeping, settings_of

    run_dir.load()
    given = {**chosen(options), "network": network}
    settings = settings_of(run_dir, "export", given)
    with wrong_option(options["device"]):
        run_dir.device(settings.device)
    with keeping(run_dir, "export", given), shown_step("export", quiet=quiet or as_json) as progress:
        result = export(run_dir, settings, progress, fresh=force, out=out)

    @files.malformed(f"the export list beside {result.path}", ExportError, "give --force to export it again")
    def show() -> None:
        target = console()
        for path in result.files:
            target.print(f"{'wrote ' if result.ran else 'there '}  {path}", soft_wrap=True, markup=False)
        target.print(f"weights {result.origin}", soft_wrap=True, markup=False)
        parity = result.entry["onnx"].get("parity")
        if parity is not None:
            target.print(f"parity  {parity['summary']}", soft_wrap=True, markup=False)
        quantised = result.entry["onnx"].get("quantised")
        if quantised is not None:
            target.print(f"INT8    held-out {quantised['summary']}", soft_wrap=True, markup=False)
            if (tested := result.entry["int8_test_accuracy"]) is not None:
                target.print(f"INT8    test accuracy {tested:.2%}")
        for key, value in (result.entry["engine"] or {}).items():
            target.print(f"{key}: {value}", soft_wrap=True, markup=False)

    emit(result.to_dict(), as_json=as_json, show=show)
