"""The report of a run directory: one self-contained HTML file."""

from bcnet_deploy.report.content import Content
from bcnet_deploy.report.load import gather
from bcnet_deploy.report.page import render, write_report

__all__ = ["Content", "gather", "render", "write_report"]
