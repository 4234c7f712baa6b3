"""Fine-tune an ECG classifier with Ray Train; prints one JSON line with run id and folder.

python jobs/finetune_classifier.py --config jobs/configs/finetune_classifier_laptop.yaml epochs=5

Joins the cluster at RAY_ADDRESS (a Ray Job has it), else starts one on this machine for the job.
"""

import argparse
import json
import logging
import sys

from ecg_agent_ray.errors import EcgAgentError
from ecg_agent_ray.plugins.local_cluster import local_ray
from ecg_agent_ray.training.classifier import finetune_classifier
from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig
from ecg_agent_ray.training.config import load_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="YAML file, see jobs/configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    try:
        config = load_config(ClassifierFinetuneConfig, arguments.config, arguments.overrides)
        # one CPU beside the workers for Ray Train's controller
        workers = config.distributed
        cpus = int(workers.num_workers * workers.cpus_per_worker) + 1
        with local_ray(num_cpus=cpus, log_to_driver=True):
            result = finetune_classifier(config)
    except EcgAgentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result.to_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
