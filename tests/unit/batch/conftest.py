"""A small compiled model for the tests of this folder."""

import pytest

from tests.support.batch import train_customer_model
from towline.inference.predictor import Model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_customer_model(tmp_path_factory.mktemp("customers"))
