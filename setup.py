"""Carry jobs/, serve_configs/, mlflow_projects/ and kube/ in the wheel, where shipped.py looks."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TREES = ("jobs", "serve_configs", "mlflow_projects", "kube")


class BuildWithTrees(build_py):
    """build_py, then the top-level trees below ``ecg_agent_ray/_shipped``."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # an editable install reads the trees of its checkout
        root = Path(__file__).resolve().parent
        for tree in TREES:
            if (root / tree).is_dir():
                target = Path(self.build_lib) / "ecg_agent_ray" / "_shipped" / tree
                shutil.copytree(
                    root / tree,
                    target,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
                )


setup(cmdclass={"build_py": BuildWithTrees})
