"""Ray Jobs entry: a public data set for training. The same as ``ecg-agent data prepare``.

python jobs/prepare_data.py ptbxl --root /data/ptb-xl --output /data/mat --manifest-dir /data/man
"""

import sys

from ecg_agent_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["data", "prepare", *sys.argv[1:]]))
