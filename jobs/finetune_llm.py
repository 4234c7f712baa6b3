"""Ray Jobs entry: fine-tune an agent's LLM. The same as ``ecg-agent train llm``.

python jobs/finetune_llm.py --config jobs/configs/finetune_llm_laptop.yaml steps=10
"""

import sys

from ecg_agent_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", "llm", *sys.argv[1:]]))
