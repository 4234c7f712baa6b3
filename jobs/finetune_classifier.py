"""Ray Jobs entry: fine-tune an ECG classifier. The same as ``ecg-agent train classifier``.

python jobs/finetune_classifier.py --config jobs/configs/finetune_classifier_laptop.yaml epochs=5
"""

import sys

from ecg_agent_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", "classifier", *sys.argv[1:]]))
