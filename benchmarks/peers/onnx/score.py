"""The pipeline's trees as ONNX, run by onnxruntime: score.py MODEL DESIGN.npy ANSWERS.npz.

The preprocessing is scikit-learn's: skl2onnx leaves out the imputer's indicator, and the graph then fails. Prints µs a
row, predicted alone and among 10,000.
"""

import json
import sys
import time

import joblib
import numpy as np
import onnxruntime
from skl2onnx import to_onnx

model, design, out = sys.argv[1:]
estimator = joblib.load(model)
rows = np.load(design).astype(np.float32)  # what its trees take
options = {"zipmap": False} if hasattr(estimator, "classes_") else None
graph = to_onnx(estimator, rows[:1], options={id(estimator): options} if options else None)
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = settings.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
answers = session.run(None, {name: rows})
single = []
for position in range(2000):
    begin = time.perf_counter()
    session.run(None, {name: rows[position : position + 1]})
    single.append(time.perf_counter() - begin)
begin = time.perf_counter()
session.run(None, {name: rows[:10_000]})
many = time.perf_counter() - begin
np.savez(out, last=np.asarray(answers[-1], dtype=np.float64))
print(json.dumps({"single": 1e6 * float(np.median(single)), "many": 1e6 * many / 10_000}))
