"""The MLflow flavor of a model: MLflow runs this file when it loads the model, and nothing is pickled."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd

from baseline.inference.model import load_model


class BaselineModel(mlflow.pyfunc.PythonModel):
    """Predicts image files: a DataFrame with their bytes in the column `image` becomes one with a row per image."""

    def load_context(self, context: Any) -> None:
        """Load the model folder."""
        self.model = load_model(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return `predicted`, `confidence` and `p_CLASS` for each class."""
        return self.model.predict(model_input["image"].tolist()).drop(columns="image")


mlflow.models.set_model(BaselineModel())
