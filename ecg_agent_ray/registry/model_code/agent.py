"""MLflow runs this file to make the model; its adapter comes from the model's artifacts."""

from mlflow.models import set_model

from ecg_agent_ray.registry.agent_model import AgentModel

set_model(AgentModel())
