"""Tables are written whole or not at all."""

from pathlib import Path

import pandas as pd
import pytest

from r3_repro.reporting.tables import save_table


def test_a_table_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "The disk is full in the middle of a file: the old file is whole, and no fragment stays."
    old = save_table(pd.DataFrame({"n": [1]}), tmp_path, "t", "Old.")
    before = {p: p.read_bytes() for p in old}

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as f:
            f.write(data[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_table(pd.DataFrame({"n": [2]}), tmp_path, "t", "New.")
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
