"""Ray Jobs entry: train the delineation network. The same as ``ecg-agent train delineator``.

python jobs/train_delineator.py --config jobs/configs/train_delineator.yaml steps=500
"""

import sys

from ecg_agent_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", "delineator", *sys.argv[1:]]))
