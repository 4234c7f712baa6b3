"""Ray Jobs entry: pre-train the ECG transformer. The same as ``ecg-agent train pretrain``.

python jobs/pretrain_classifier.py --config jobs/configs/pretrain_laptop.yaml epochs=5
"""

import sys

from ecg_agent_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", "pretrain", *sys.argv[1:]]))
