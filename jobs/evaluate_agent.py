"""Evaluate an agent on a dialogue set: ``python jobs/evaluate_agent.py --config FILE key=value…``.

python jobs/evaluate_agent.py dialogues=test.jsonl model=builtin: output=out history=with_gt
python jobs/evaluate_agent.py predictions=out/predictions.jsonl output=rescored
"""

from __future__ import annotations

import argparse
import json
import sys

from ecg_agent_ray.errors import EcgAgentError


def main(arguments: list[str] | None = None) -> int:
    from ecg_agent_ray.evaluation.config import EvaluationConfig, run
    from ecg_agent_ray.training.config import load_config

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="YAML with the options of EvaluationConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    try:
        metrics = run(load_config(EvaluationConfig, options.config, options.overrides))
    except EcgAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
