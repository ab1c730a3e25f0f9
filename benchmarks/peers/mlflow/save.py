"""Saves the model with MLflow, with the signature of its frame: save.py FOLDER."""

import os
import sys

import joblib
import mlflow.sklearn
import pandas as pd
from mlflow.models import infer_signature

NUMBERS = dict.fromkeys(("age", "balance", "campaign", "pdays", "previous"), float)
model = joblib.load(os.environ["BENCH_MODEL"])
rows = pd.read_json(os.environ["BENCH_ROWS"], orient="records").astype(NUMBERS)
mlflow.sklearn.save_model(
    model,
    sys.argv[1],
    signature=infer_signature(rows, model.predict(rows)),
    pip_requirements=["scikit-learn"],
    serialization_format="cloudpickle",
)
