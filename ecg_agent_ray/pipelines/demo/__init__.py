"""The whole way on embedded defaults: measure, fine-tune, gate, promote, serve, talk.

:func:`run_demo` is handed what starts the service, since serving stands above pipelines.
"""

from ecg_agent_ray.pipelines.demo.conversation import SCRIPT, Answer, Conversation
from ecg_agent_ray.pipelines.demo.run import DemoReport, Reporter, run_demo

__all__ = ["SCRIPT", "Answer", "Conversation", "DemoReport", "Reporter", "run_demo"]
