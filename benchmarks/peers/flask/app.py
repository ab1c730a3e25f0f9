"""The common example: Flask, joblib and a frame of the JSON rows."""

import os

import joblib
import pandas as pd
from flask import Flask, jsonify, request

app = Flask(__name__)
model = joblib.load(os.environ["BENCH_MODEL"])
# without this a null makes the column object, and the imputer refuses it
NUMBERS = dict.fromkeys(("age", "balance", "campaign", "pdays", "previous"), float)


@app.post("/predict")
def predict():
    frame = pd.DataFrame(request.get_json()["rows"]).astype(NUMBERS)
    return jsonify(predictions=model.predict(frame).tolist())
