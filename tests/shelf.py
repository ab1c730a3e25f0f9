"""A store with two versions of one model, made once and copied for each test that spoils it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.unit.release.conftest import make_run, table
from towline.config import Settings
from towline.manifest import read_manifest
from towline.registry.ledger import JudgedVersion, Ledger

MODEL = "house-value"
PASS = {"verdict": "pass"}


@dataclass(frozen=True)
class Shelf:
    """The store, and what an operator does to it."""

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
        (found,) = (self.settings.store / "releases" / MODEL).glob(f"v{version}-*")
        return found

    def promote(self, version: int) -> None:
        champion = self.ledger.champion(MODEL)
        self.ledger.promote_again(MODEL, version, champion.version if champion else None, "ann", "better")

    def rollback(self) -> None:
        self.ledger.rollback(MODEL, "ann", "worse")

    def copy(self, folder: Path) -> "Shelf":
        shutil.copytree(self.settings.store, folder)
        return Shelf(settings(folder))


def settings(store: Path) -> Settings:
    return Settings(project=store, store=store, tracking_uri="", ledger_url=f"sqlite:///{store}/ledger.db")


def make_shelf(folder: Path) -> Shelf:
    """Versions 1 and 2, whose answers to any row are a thousand apart; version 1 is champion."""
    shelf = Shelf(settings(folder / "store"))
    for version in (1, 2):
        frame = table(200).drop(columns="sold")
        frame["value"] += 1000 * version
        run = make_run(folder / f"run{version}", frame, "linear", target="value", time="at")
        package = run.package(version)
        shutil.copytree(run.settings.store / package.path, shelf.settings.store / package.path)
        assert shelf.ledger.register(MODEL, "ann", "trained", {}, run.work.run_key(run.config)).version == version
        evidence = PASS | {"release": read_manifest(shelf.release(version)).digest}
        champion = None if version == 1 else version - 1
        shelf.ledger.promote(
            MODEL,
            JudgedVersion(version, run.work.run_key(run.config), package.path, evidence),
            champion,
            "ann",
            "better",
        )
    shelf.rollback()
    return shelf
