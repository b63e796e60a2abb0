"""``bcnet-deploy export``: a network of the run directory as ONNX, ORT or TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bcnet_deploy.cli.choices import ENGINE, NETWORK, PRECISION, devices
from bcnet_deploy.cli.common import console, emit, json_option, progress, quiet_option, run_dir_option
from bcnet_deploy.rundir import RunDir


@click.command("export")
@click.option(
    "--engine",
    default="onnx",
    show_default=True,
    type=ENGINE,
    help="An ONNX file; ONNX Runtime's own format too; or a TensorRT engine too.",
)
@click.option(
    "--which",
    default="found",
    show_default=True,
    type=NETWORK,
    help="Which network of the run.",
)
@click.option(
    "--precision",
    default=None,
    type=PRECISION,
    help="Of the computation; inputs and outputs stay FP32. Default: the device's for trt, else fp32.",
)
@click.option("--dynamic-batch", is_flag=True, help="Any batch size instead of 1.")
@click.option("--opset", default=19, show_default=True, help="ONNX operator set, 17 to 20.")
@click.option(
    "--device",
    default=None,
    shell_complete=devices,
    help="Device profile of a TensorRT engine. Default: the run's.",
)
@click.option(
    "--out",
    default=None,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder. Default: export/ of the run directory.",
)
@click.option("--force", is_flag=True, help="Replace existing files.")
@run_dir_option
@json_option
@quiet_option
def command(
    engine: str, which: str, precision: str | None, dynamic_batch: bool, opset: int, device: str | None,
    out: Path | None, force: bool, run_dir: RunDir, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Export to ONNX or an engine, with a parity check.

    Takes the retrained network where there is one, else cuts it from the supernet at the widths found.
    Every file passes the ONNX checker, shape inference and a comparison with PyTorch on held-out
    images before it replaces a former one. TensorRT engines are also built for a GPU that is not here.
    """
    from bcnet_deploy.export.job import ExportJob, run_export

    job = ExportJob(
        which=which, engine=engine, precision=precision, dynamic_batch=dynamic_batch, opset=opset,  # type: ignore[arg-type]
        device=device, force=force, out=out,
    )  # fmt: skip
    with progress(quiet=quiet or as_json) as display:
        task = display.add_task("export", total=1.0, note="")

        def tell(done: float, note: str) -> None:
            display.update(task, completed=done, note=note)

        result = run_export(run_dir, job, progress=tell)

    def show() -> None:
        target = console()
        target.print(f"wrote   {result.path}", soft_wrap=True)
        target.print(f"weights {result.origin}", soft_wrap=True)
        if result.onnx.parity is not None:
            target.print(f"parity  {result.onnx.parity.summary()}", soft_wrap=True)
        if result.engine is not None:
            from bcnet_deploy.export.engine import describe

            for key, value in list(describe(result.engine).items())[1:]:
                target.print(f"{key}: {value}", soft_wrap=True)

    data: dict[str, Any] = {**result.to_dict(), "path": str(result.path)}
    emit(data, as_json=as_json, show=show)
