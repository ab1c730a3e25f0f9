"""As LitServe's guide shows: setup, decode, predict, encode."""

import os
import sys

import joblib
import litserve
import pandas as pd

NUMBERS = dict.fromkeys(("age", "balance", "campaign", "pdays", "previous"), float)


class Bank(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002 - LitServe's signature
        self.model = joblib.load(os.environ["BENCH_MODEL"])

    def decode_request(self, request):
        return pd.DataFrame(request["rows"]).astype(NUMBERS)

    def predict(self, frame):
        return self.model.predict(frame)

    def encode_response(self, labels):
        return {"predictions": labels.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Bank(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
