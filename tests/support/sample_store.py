"""A store with two versions of one model, trained once for a session and copied for each test that changes it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.releases import make_house_table, train_run
from towline.config import Settings
from towline.manifest import read_manifest
from towline.registry.ledger import JudgedVersion, Ledger

MODEL = "house-value"
PASS = {"verdict": "pass"}


@dataclass(frozen=True)
class SampleStore:
    """A store with versions 1 and 2 of a model, and functions for an operator's actions."""

    settings: Settings

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_url)

    @property
    def ledger_file(self) -> Path:
        return self.settings.store / "ledger.db"

    @property
    def state_file(self) -> Path:
        return self.settings.store / "serving" / f"{MODEL}.json"

    def release(self, version: int) -> Path:
        (folder,) = (self.settings.store / "releases" / MODEL).glob(f"v{version}-*")
        return folder

    def probe_rows(self) -> list[dict[str, Any]]:
        """The probe rows of version 1's release."""
        rows: list[dict[str, Any]] = json.loads((self.release(1) / "probe.json").read_bytes())["rows"]
        return rows

    def promote(self, version: int) -> None:
        champion = self.ledger.champion(MODEL)
        self.ledger.promote_again(MODEL, version, champion.version if champion else None, "ann", "better")

    def rollback(self) -> None:
        self.ledger.rollback(MODEL, "ann", "worse")

    def copy(self, folder: Path) -> "SampleStore":
        shutil.copytree(self.settings.store, folder)
        return SampleStore(store_settings(folder))


def store_settings(store: Path) -> Settings:
    return Settings(project=store, store=store, tracking_uri="", ledger_url=f"sqlite:///{store}/ledger.db")


def make_sample_store(folder: Path) -> SampleStore:
    """Trains and promotes versions 1 and 2, whose predictions differ by 1,000 for each row; version 1 is champion."""
    sample_store = SampleStore(store_settings(folder / "store"))
    for version in (1, 2):
        frame = make_house_table(200).drop(columns="sold")
        frame["value"] += 1000 * version
        run = train_run(folder / f"run{version}", frame, "linear", target="value", time="at")
        package = run.package(version)
        shutil.copytree(run.settings.store / package.path, sample_store.settings.store / package.path)
        assert (
            sample_store.ledger.register(MODEL, "ann", "trained", {}, run.work.run_key(run.config)).version == version
        )
        evidence = PASS | {"release": read_manifest(sample_store.release(version)).digest}
        champion = None if version == 1 else version - 1
        sample_store.ledger.promote(
            MODEL,
            JudgedVersion(version, run.work.run_key(run.config), package.path, evidence),
            champion,
            "ann",
            "better",
        )
    sample_store.rollback()
    return sample_store
