"""The whole river: stages one after another, each leaving a manifest, from people's votes to an audited policy."""

from karat.pipeline.arenas import report_run
from karat.pipeline.reporting import write_report
from karat.pipeline.runs import run_config, run_demo

__all__ = ["report_run", "run_config", "run_demo", "write_report"]
