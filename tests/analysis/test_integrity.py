"""A folder with parts of two studies is refused, and the message names the odd file."""

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from r3_repro.analysis.integrity import check_unmixed, mixtures
from r3_repro.utils.files import write_json, write_parquet
from r3_repro.utils.hashing import file_hash

SPLITS = {"train": "tr", "test": "te"}


def study(folder: Path) -> dict[str, dict[str, Any]]:
    "Manifests of vanilla and two seeds of r3, by place, with the tables that they are about."
    out: dict[str, dict[str, Any]] = {}

    def add(place: str, stage: str, arm: str, seed: int, **hashes: str) -> None:
        own = {"stage": stage, "arm": arm, "seed": seed, "study_protocol": "p", "hashes": hashes}
        if stage in ("episodes", "controls"):
            write_parquet(
                table := folder / f"{stage}/{place.split('/')[1].split('.')[0]}.parquet",
                pd.DataFrame({"a": [arm, seed]}).astype(str),
            )
            hashes[stage] = file_hash(table)
        out[place] = own

    add("failures/manifest.json", "failures", "r3", 0, model="base", task="t", failures="f", **SPLITS)
    for name, arm, seed, model in (("vanilla", "vanilla", 0, "base"), ("r3-seed0", "r3", 0, "m0"), ("r3-seed1", "r3", 1, "m1")):
        if arm != "vanilla":
            more = {"base_model": "base", "failures": "f", "chat_template": "c"}
            add(f"training/{name}/manifest.json", "train", arm, seed, task="t", model=model, **SPLITS, **more)
        add(
            f"episodes/{name}.manifest.json",
            "episodes",
            arm,
            seed,
            model=model,
            task="t",
            protocol="e",
            chat_template="c",
            **SPLITS,
        )
        seen = out[f"episodes/{name}.manifest.json"]["hashes"]["episodes"]
        more = {"episodes": seen, "protocol": "e"}
        add(f"controls/{name}.manifest.json", "controls", arm, seed, model=model, task="t", **SPLITS, **more)
        add(f"forgetting/{name}.manifest.json", "forgetting", arm, seed, model=model, protocol="b", items="i")
    return out


def stored(folder: Path, manifests: dict[str, dict[str, Any]]) -> list[str]:
    for place, m in manifests.items():
        write_json(folder / place, m)
    return mixtures(folder)


def test_one_study_is_one(tmp_path: Path) -> None:
    assert stored(tmp_path, study(tmp_path)) == []
    check_unmixed(tmp_path)


EVERY_HASH = [
    (place, key)
    for place, keys in {
        "failures/manifest.json": ("model", "task", "train", "test", "failures"),
        "training/r3-seed1/manifest.json": ("base_model", "task", "train", "test", "failures", "chat_template", "model"),
        "episodes/vanilla.manifest.json": ("model", "task", "train", "test", "protocol", "chat_template", "episodes"),
        "episodes/r3-seed1.manifest.json": ("model", "task", "train", "test", "protocol", "chat_template", "episodes"),
        "controls/r3-seed1.manifest.json": ("model", "task", "train", "test", "protocol", "episodes", "controls"),
        "forgetting/vanilla.manifest.json": ("model", "protocol", "items"),
        "forgetting/r3-seed1.manifest.json": ("model", "protocol", "items"),
    }.items()
    for key in keys
]


@pytest.mark.parametrize(("place", "key"), EVERY_HASH)
def test_any_other_hash_is_named(tmp_path: Path, place: str, key: str) -> None:
    manifests = copy.deepcopy(study(tmp_path))
    manifests[place]["hashes"][key] = "another"
    said = stored(tmp_path, manifests)
    table = place.replace(".manifest.json", ".parquet")
    assert any(place in line or table in line for line in said), said
    with pytest.raises(ValueError, match="parts of different studies") as error:
        check_unmixed(tmp_path)
    assert all(line in str(error.value) for line in said)


def test_another_protocol_of_the_study_is_named(tmp_path: Path) -> None:
    manifests = study(tmp_path)
    manifests["forgetting/r3-seed0.manifest.json"]["study_protocol"] = "q"
    assert stored(tmp_path, manifests) == [
        "protocol of the study: 2 different ones; forgetting/r3-seed0.manifest.json differ from failures/manifest.json"
    ]


def test_a_changed_table_is_named(tmp_path: Path) -> None:
    stored(tmp_path, study(tmp_path))
    write_parquet(tmp_path / "controls/r3-seed0.parquet", pd.DataFrame({"a": ["x"]}))
    assert mixtures(tmp_path) == ["controls/r3-seed0.parquet is not the table of its manifest"]


def test_what_is_not_there_is_not_judged(tmp_path: Path) -> None:
    "Half a study, and manifests that record less."
    manifests = {k: v for k, v in study(tmp_path).items() if k.startswith(("episodes", "training"))}
    for m in manifests.values():
        m.pop("study_protocol")
        m["hashes"].pop("chat_template", None)
    assert stored(tmp_path, manifests) == [] and mixtures(tmp_path / "nowhere") == []
    assert json.loads((tmp_path / "episodes/vanilla.manifest.json").read_text("utf-8"))["arm"] == "vanilla"
