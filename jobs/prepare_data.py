"""Ray Jobs entry: a public data set for training. The same as ``ecg-agent data prepare``.

python jobs/prepare_data.py --config jobs/configs/prepare_ptbxl.yaml root=/data/ptb-xl
python jobs/prepare_data.py dataset=ptbxl root=/data/ptb-xl output=/data/mat manifest_dir=/data/man
"""

from __future__ import annotations

import argparse
import json
import sys

from ecg_agent_ray.errors import EcgAgentError


def main(arguments: list[str] | None = None) -> int:
    from ecg_agent_ray._cli.output import stderr_progress
    from ecg_agent_ray.pipelines.prepare_config import PrepareConfig, run
    from ecg_agent_ray.training.config import load_config

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="YAML with the options of PrepareConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    try:
        config = load_config(PrepareConfig, options.config, options.overrides)
        with stderr_progress("prepare") as progress:
            prepared = run(config, progress=progress)
    except EcgAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(prepared.to_dict()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
