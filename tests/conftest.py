"""Options and fixtures of all tests."""

from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--data-dir", default=None, help="folder with the real data files; without it their tests are skipped")


def pytest_configure(config):
    torch.set_num_threads(1)  # two workers share two cores


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "soak" in item.keywords and "soak" not in (config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="long; run by make soak"))


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    folder = request.config.getoption("--data-dir")
    if folder is None:
        pytest.skip("needs the real data files: pass --data-dir")
    return Path(folder)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
