"""Ray Jobs entry: a tool over a folder of recordings. The same as ``ecg-agent extract``.

python jobs/extract_tool_outputs.py --config jobs/configs/extract_measurements.yaml ecg_dir=/data
python jobs/extract_tool_outputs.py tool=classification ecg_dir=/data output_dir=out leads=II
"""

from __future__ import annotations

import argparse
import json
import sys

from ecg_agent_ray.errors import EcgAgentError


def main(arguments: list[str] | None = None) -> int:
    from ecg_agent_ray._cli.output import stderr_progress
    from ecg_agent_ray.pipelines.extract import extract
    from ecg_agent_ray.pipelines.extract_config import ExtractConfig
    from ecg_agent_ray.training.config import load_config

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="YAML with the options of ExtractConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    try:
        config = load_config(ExtractConfig, options.config, options.overrides)
        with stderr_progress(config.tool) as progress:
            summary = extract(config, progress=progress)
    except EcgAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(summary))
    return 1 if config.strict and summary["n_errors"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
