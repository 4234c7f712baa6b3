"""Write ``python_env.yaml``: the package with its requirements at the tested versions.

python mlflow_projects/pin_environment.py          (in a checkout; a test keeps the file in step)
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "mlflow_projects" / "python_env.yaml"
BUILD = ("pip", "setuptools", "wheel")
HEAD = """\
# Made by mlflow_projects/pin_environment.py from pyproject.toml and constraints.txt: do not edit.
# The wheel of ecg-agent-ray comes from where pip looks (PIP_FIND_LINKS=dist, or an own index).
"""


def environment() -> dict[str, object]:
    """The python_env as MLflow reads it. Raises KeyError for a requirement that is not pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        line.split("==", 1)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    versions = {_key(name): version.split(";")[0].strip() for name, version in pins.items()}
    requirements = []
    for requirement in project["dependencies"]:
        found = re.match(r"([A-Za-z0-9._-]+)(\[[^\]]*\])?", requirement)
        assert found is not None, requirement
        requirements.append(f"{found[1]}{found[2] or ''}=={versions[_key(found[1])]}")
    return {
        "python": "3.11",
        "build_dependencies": [f"{name}=={versions[name]}" for name in BUILD if name in versions],
        "dependencies": [f"{project['name']}=={project['version']}", *requirements],
    }


def text() -> str:
    return HEAD + yaml.safe_dump(environment(), sort_keys=False)


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET}\n")
