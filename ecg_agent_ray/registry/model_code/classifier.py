"""MLflow runs this file to make the model; its weights come from the model's artifacts."""

from mlflow.models import set_model

from ecg_agent_ray.registry.classifier_model import ClassifierModel

set_model(ClassifierModel())
