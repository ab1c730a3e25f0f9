"""The common example: FastAPI, a pydantic model of the row, and a frame of the rows."""

import os

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = joblib.load(os.environ["BENCH_MODEL"])


class Row(BaseModel):
    age: float
    job: str
    marital: str
    education: str
    has_credit_default: str
    balance: float
    housing_loan: str
    personal_loan: str
    contact: str
    campaign: float
    pdays: float | None
    previous: float
    poutcome: str


class Rows(BaseModel):
    rows: list[Row]


class Answer(BaseModel):
    predictions: list[str]


@app.post("/predict")
def predict(given: Rows) -> Answer:
    frame = pd.DataFrame([row.model_dump() for row in given.rows]).astype({"pdays": float})
    return Answer(predictions=model.predict(frame).tolist())
