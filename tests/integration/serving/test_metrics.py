"""Metrics of several worker processes."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.metrics import parse_samples, sample_value
from tests.support.paths import REPOSITORY

WORKER = """
import os
import sys
from pathlib import Path
from tests.support.serving import ROW, FakeModel, make_contract, run_service
folder = Path(sys.argv[1])
folder.mkdir()
with run_service(FakeModel(make_contract(), folder)) as service:
    for _ in range(int(sys.argv[2])):
        service.client.post("/predict", {"rows": [{**ROW, "size": None}]})
    print(service.client.get("/metrics").text, flush=True)
    os.close(1)
    sys.stdin.read()
"""


def test_metrics_of_workers_are_added_up(tmp_path: Path) -> None:
    """Any worker answers for all: counts are summed, memory is reported by worker; an ended worker's counts remain."""
    shared = tmp_path / "shared"
    shared.mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(shared), "PYTHONPATH": str(REPOSITORY)}
    workers, exposition = [], ""
    try:
        for number, requests in enumerate((3, 4)):
            command = [sys.executable, "-c", WORKER, str(tmp_path / f"worker-{number}"), str(requests)]
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            workers.append(worker)
            assert worker.stdout is not None
            exposition = worker.stdout.read()
    finally:
        for worker in workers:
            worker.communicate()
    scrape = parse_samples(exposition)
    assert sample_value(scrape, "requests_total", route="/predict", status="200") == 7
    assert sample_value(scrape, "request_seconds_count", route="/predict", version="3") == 7
    assert sample_value(scrape, "predictions_bucket", version="3", le="+Inf") == 7
    assert sample_value(scrape, "input_anomalies_total", version="3", column="size", kind="null") == 7
    samples = [sample for family in text_string_to_metric_families(exposition) for sample in family.samples]
    pids = {sample.labels["worker"] for sample in samples if sample.name == "towline_process_resident_memory_bytes"}
    assert pids == {str(worker.pid) for worker in workers}
    assert {sample.value for sample in samples if sample.name == "towline_model_version"} == {3.0}
