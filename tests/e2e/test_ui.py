"""Results of commands in every web interface, in a real browser."""

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pandas as pd
import pytest
import yaml
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.paths import REPOSITORY
from towline.monitoring.journal import Journal
from towline.monitoring.results import DriftCheckResult, DriftResult

CHROMIUM = shutil.which("chromium")
TOWLINE = Path(sys.executable).with_name("towline")
TIMEOUT_MS = 120_000  # ms: on a busy machine, a page loads slowly

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def page() -> Iterator[Page]:
    """A tab of Debian's browser."""
    with sync_playwright() as playwright:
        flags = ["--disable-gpu", "--disable-quic"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=TIMEOUT_MS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(TIMEOUT_MS)
        yield page
        browser.close()


def expect_texts(page: Page, url: str, *texts: str) -> None:
    """Opens an address and waits until each text is visible; reloads once if one is missing."""
    page.goto(url, wait_until="commit")
    for text in texts:
        element = page.get_by_text(text).filter(visible=True).first
        try:
            expect(element).to_be_visible(timeout=TIMEOUT_MS)
        except AssertionError:
            page.reload(wait_until="commit")
            expect(element).to_be_visible(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A store with a completed run and a run refused for leakage; the servers are stopped at the end.

    Shared by the tests of this file: the last test adds monitoring runs.
    """
    tmp_path = tmp_path_factory.mktemp("ui")
    pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").head(1400).to_csv(tmp_path / "bikes.csv", index=False)
    data = {"source": str(tmp_path / "bikes.csv"), "target": "rentals", "time": "datetime"}
    data |= {"drop": ["casual", "registered"]}
    raw = {"name": "ui-bikes", "data": data, "candidates": ["linear"], "cross_validation": {"folds": 2}}
    (tmp_path / "bikes.yaml").write_text(yaml.safe_dump(raw))
    hidden = ("PREFECT_API_URL", "PREFECT_HOME")  # variables of the session's server
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"TOWLINE_STORE": str(tmp_path / "store"), "TOWLINE_PROJECT": str(REPOSITORY)}
    try:
        command = [TOWLINE, "run", tmp_path / "bikes.yaml"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        refused = subprocess.run([*command, "--set", "data.drop=[]"], env=environment, check=False, capture_output=True)
        assert refused.returncode == 3
        yield environment
    finally:
        subprocess.run([TOWLINE, "ui", "--stop"], env=environment, check=True, capture_output=True)


def test_runs_are_shown_in_prefect_and_mlflow(environment: dict[str, str], page: Page) -> None:
    """`towline ui` returns the same addresses twice; they show the runs, the version and the refused run."""
    shown = subprocess.run([TOWLINE, "ui"], env=environment, check=True, capture_output=True, text=True).stdout
    [door] = re.findall(r"https?://\S+", shown)
    first, again = (
        json.loads(subprocess.run([TOWLINE, "ui", "--json"], env=environment, check=True, capture_output=True).stdout)
        for _ in range(2)
    )
    assert first == again
    prefect = first["runs"].removesuffix("/runs")
    with urlopen(f"{prefect}/api/artifacts/ui-bikes-validation/latest", timeout=10) as response:  # on loopback
        assert "casual + registered = rentals" in json.load(response)["data"]
    expect_texts(page, first["runs"], "ui-bikes")
    expect_texts(page, door, "ui-bikes", "serves since", "Runs in Prefect", "Models in MLflow")
    leads = {link.inner_text(): link.get_attribute("href") for link in page.get_by_role("link").all()}
    assert (leads["Runs in Prefect"], leads["Models in MLflow"]) == (first["runs"], first["models"])
    expect_texts(page, first["models"], "ui-bikes")
    expect_texts(page, leads["version 1 in MLflow"], "Version 1", "champion")
    page.set_viewport_size({"width": 2000, "height": 1000})  # MLflow shows the columns that fit
    expect_texts(page, leads["trainings with their metrics"], "mae_baseline", "verdict")
    expect_texts(page, f"{door}{leads['model card']}", "Performance on the holdout")
    assert "drift" not in first, "no window was checked"
    expect_texts(
        page, first["status"], "ui-bikes", "serves since", "No window was checked yet", "training", "Data refused"
    )


def test_monitoring_runs_are_shown_in_evidently_and_on_the_status_page(environment: dict[str, str], page: Page) -> None:
    """After a monitoring run `towline ui` also starts Evidently; a later run is shown without a restart.

    `--stop` ends all servers.
    """
    store, now = Path(environment["TOWLINE_STORE"]), dt.datetime.now(dt.UTC)
    journal = Journal(store / "monitoring" / "ui-bikes")
    moved = DriftCheckResult(column="temp_c", name="distribution", value=0.7, threshold=0.3, alarm=True)
    for ago, state in ((2, "ok"), (1, "drift")):
        end = now - dt.timedelta(days=ago)
        checks = (moved,) if state == "drift" else (moved.model_copy(update={"value": 0.1, "alarm": False}),)
        drift = DriftResult(state=state, version=1, rows=400, start=end - dt.timedelta(days=1), end=end, checks=checks,
                      budget=4, reason=f"a window of {state}")  # fmt: skip
        journal.add(drift, now)
        result = subprocess.run([TOWLINE, "ui", "--json"], env=environment, check=True, capture_output=True)
        addresses = json.loads(result.stdout)
    with urlopen(f"{addresses['drift']}/api/projects", timeout=10) as response:
        [project] = json.load(response)
    assert project["name"] == "ui-bikes"
    runs = f"{addresses['drift']}/api/projects/{project['id']}/snapshots"
    for _ in range(120):
        with urlopen(runs, timeout=10) as response:
            if len(json.load(response)) == 2:
                break
        time.sleep(1)
    expect_texts(page, addresses["drift"], "ui-bikes")
    assert page.title() == "Drift"
    expect_texts(page, f"{addresses['drift']}/projects/{project['id']}", "Distance from the training rows", "temp_c")
    expect_texts(page, f"{addresses['drift']}/projects/{project['id']}/reports", "version 1", "ok")
    expect_texts(page, f"{addresses['drift']}/projects/{project['id']}/reports", f"version 1 {end:%Y-%m-%d}: drift")
    expect_texts(page, addresses["status"], "a window of drift", "temp_c")
    text = subprocess.run([TOWLINE, "status"], env=environment, check=True, capture_output=True, text=True).stdout
    assert "a window of drift" in text
    assert "Data refused" in text
    stopped = subprocess.run(
        [TOWLINE, "ui", "--stop"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert stopped == "stopped: prefect, mlflow, evidently, status\n"
