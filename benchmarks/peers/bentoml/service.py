"""As BentoML's guide to scikit-learn models shows, with a frame as input."""

import os

import bentoml
import joblib
import pandas as pd

NUMBERS = dict.fromkeys(("age", "balance", "campaign", "pdays", "previous"), float)


@bentoml.service(workers=1)
class Bank:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"])

    @bentoml.api
    def predict(self, rows: pd.DataFrame) -> list[str]:
        return self.model.predict(rows.astype(NUMBERS)).tolist()
