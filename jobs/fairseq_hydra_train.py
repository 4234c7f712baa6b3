"""Ray Jobs entry: fairseq-signals' own trainer, where it is installed.

python jobs/fairseq_hydra_train.py --print source_tree=/src/fairseq-signals data=/data/manifest/cmsc
python jobs/fairseq_hydra_train.py --config my.yaml runtime_env='{conda: fairseq}'
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from ecg_agent_ray.errors import EcgAgentError


def main(arguments: list[str] | None = None) -> int:
    from ecg_agent_ray.training.config import load_config
    from ecg_agent_ray.training.pretrain_fairseq import (
        FairseqTrainConfig,
        fairseq_command,
        run_fairseq,
    )

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="YAML with the options of FairseqTrainConfig")
    parser.add_argument("--print", action="store_true", help="show the command and end")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    try:
        config = load_config(FairseqTrainConfig, options.config, options.overrides)
        if options.print:
            print(shlex.join(fairseq_command(config)))
        else:
            print(json.dumps(run_fairseq(config)))
    except EcgAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
