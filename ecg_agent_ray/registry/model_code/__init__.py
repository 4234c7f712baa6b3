"""Scripts that MLflow copies into a logged model (models from code)."""
