"""A replication report: made from a published folder, checked field by field, shown as text only."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS
from support import REPOSITORY
from typer.testing import CliRunner

from r3_repro.analysis.report import (
    REPORT_BYTES,
    StudyReport,
    check_report,
    leaderboard,
    load_reports,
    make_report,
    missing_for_verdict,
    read_report,
    report_words,
    reports_table,
    save_report,
    text_faults,
)
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_json, write_parquet
from r3_repro.utils.hashing import file_hash
from r3_repro.workflow.cli import app

COMMITTED = REPOSITORY / "results/reports"


def study(home: Path, arms: tuple[str, ...] = ("r3", "permuted_reward"), seeds: int = 2, model: str = "toy-1k") -> Path:
    folder = home / f"toy/countdown/{model}"
    for arm, seed in [("vanilla", 0), *((a, s) for a in arms for s in range(seeds))]:
        table = folder / f"episodes/{'vanilla' if arm == 'vanilla' else f'{arm}-seed{seed}'}.parquet"
        write_parquet(table, synthetic_episodes(arm, seed, problems=30))
        profile = {"name": "toy", "task": "countdown", "model": f"/data/{model}", "controls": ["bare"], "source": "generate"}
        manifest = {"stage": "episodes", "arm": arm, "seed": seed, "git_commit": "a" * 40, "git_dirty": False, "profile": profile}
        manifest |= {"written": "2026-01-02T03:04:05+00:00", "versions": {"python": "3.11.7"}, "hardware": {"gpus": ["H100"] * 8}}
        write_json(table.with_suffix(".manifest.json"), manifest | {"hashes": {"episodes": file_hash(table)}})
    return folder.parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyReport]:
    folder = study(tmp_path_factory.mktemp("study"))
    return folder, make_report(folder, "toy", "Somebody")


def saved(report: StudyReport, folder: Path, change: Any = None) -> Path:
    "The file of a report, with something changed in its JSON."
    data = copy.deepcopy(report.model_dump(mode="json"))
    if change:
        change(data)
    write_json(folder / f"{report.name}.json", data)
    return folder / f"{report.name}.json"


# ── The committed ones ─────────────────────────────────────────────────────────────────────────────────────────────


def test_committed_reports_are_correct_and_beside_the_paper() -> None:
    reports = load_reports(COMMITTED)
    assert "tiny-study" in {r.name for r in reports}
    assert [line for f in COMMITTED.glob("*.json") for line in check_report(f)[0]] == []
    tiny = next(r for r in reports if r.name == "tiny-study")
    assert missing_for_verdict(tiny) == [] and "no evidence about large models" in tiny.limits
    for p in tiny.parts:  # the files that are committed
        for name, said in p.files.items():
            assert file_hash(REPOSITORY / "results/studies/tiny-study" / name) == said
    board = leaderboard(reports, "countdown").set_index("model")
    assert board.loc["Qwen-2.5-1.5B Instruct", "trained two tries %"] == "45.0 (H)"
    assert board.loc["Qwen-2.5-1.5B Instruct", "gain of r3 (points)"] == "+34.8"
    assert board.loc["tiny-a", "like the paper's"].startswith("no: its own model")


def test_the_committed_table_is_that_of_the_study() -> None:
    tiny = next(r for r in load_reports(COMMITTED) if r.name == "tiny-study")
    table = (REPOSITORY / "results/studies/tiny-study/tables/table2_countdown.md").read_text("utf-8").replace("\\", "")
    shown = leaderboard([tiny], "countdown").set_index("model")
    for model in ("tiny-a", "tiny-b"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {model} "))
        assert all(shown.loc[model, c] in row for c in ("vanilla 1st try %", "vanilla two tries %", "trained two tries %"))
    verdicts = (REPOSITORY / "results/studies/tiny-study/tables/verdicts.csv").read_text("utf-8")
    assert all(v.what in verdicts for v in tiny.verdicts) and len(tiny.verdicts) == 22


# ── Making ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_report_says_who_what_and_how(made: tuple[Path, StudyReport], tmp_path: Path) -> None:
    folder, r = made
    (part,) = r.parts
    assert (r.by, r.written, r.commits, r.clean, r.profile) == ("Somebody", "2026-01-02", ("a" * 40,), True, "toy")
    assert part.seeds == {"r3": (0, 1), "permuted_reward": (0, 1)} and (part.problems, part.parameters) == (30, 1000)
    assert r.settings["model"] == "toy-1k" and "/data" not in json.dumps(r.model_dump(mode="json"))
    assert reports_table([r]).hardware[0] == "8 x H100" and {v.claim for v in r.verdicts} >= {"C1", "C2"}
    assert check_report(save_report(r, tmp_path), folder)[0] == []
    alone = make_report(folder / "countdown/toy-1k", "toy", "Somebody")
    assert alone.parts == r.parts and len(alone.verdicts) == len(r.verdicts)


def test_a_folder_that_is_no_study_or_a_text_that_must_not_be_there_is_refused(
    made: tuple[Path, StudyReport], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="has no episodes"):
        make_report(tmp_path, "toy", "Somebody")
    with pytest.raises(SettingsError, match="by: has an e-mail address"):
        make_report(made[0], "toy", "me <me@example.org>")
    with pytest.raises(SettingsError, match="name: "):
        make_report(made[0], "../toy", "Somebody")
    assert make_report(made[0], "toy", "Me", contact="me@example.org").contact == "me@example.org"


def test_a_changed_table_or_folder_is_found(made: tuple[Path, StudyReport], tmp_path: Path) -> None:
    folder, r = made

    def better(d: dict[str, Any]) -> None:
        d["parts"][0]["rows"][0]["two"] = [0.9, 0.8, 0.95]

    faults, _ = check_report(saved(r, tmp_path, better), folder)
    assert [f.split(":")[0] for f in faults] == [f"parts.0.rows.0.two.{i}" for i in range(3)]
    other = study(tmp_path / "other", seeds=3)
    faults, _ = check_report(saved(r, tmp_path), other)
    assert any(f.startswith("parts.0.seeds.r3: ") for f in faults) and any(".files." in f for f in faults)


# ── Checking ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "other", "name: is 'other' in a file toy.json"),
        ("by", "", "by: "),
        ("by", "x" * 301, "by: "),
        ("commits", ["abc"], "commits.0: "),
        ("clean", "yes", "clean: "),
        ("colour", "red", "colour: "),
        ("written", "yesterday", "written: "),
        ("parts", [], "parts: "),
        ("remarks", "see /data/me/runs", "remarks: has a path or an address of a machine"),
        ("remarks", "me@example.org", "remarks: has an e-mail address"),
        ("remarks", "red \x1b[31m", "remarks: has characters that are not shown"),
        ("limits", "none", "limits: "),
        ("settings", {"a": float("nan")}, "toy.json: is no JSON"),
        ("format", "2", "format: "),
    ],
)
def test_every_fault_names_its_field_and_a_remedy(
    made: tuple[Path, StudyReport], tmp_path: Path, field: str, value: Any, said: str
) -> None:
    (first, *_) = faults = check_report(saved(made[1], tmp_path, lambda d: d.update({field: value})))[0]
    assert len(faults) == 1 and first.startswith(said), faults
    assert any(sign in first.removeprefix(said.split(":")[0] + ":") for sign in (":", ";")), "what to do"


def test_parts_must_agree_with_themselves(made: tuple[Path, StudyReport], tmp_path: Path) -> None:
    def fault(change: Any) -> str:
        (line,) = check_report(saved(made[1], tmp_path, lambda d: change(d["parts"][0])))[0]
        return line

    assert "do not have the number of its seeds" in fault(lambda p: p["seeds"].update(r3=[0]))
    assert "lack the arm vanilla" in fault(lambda p: p.update(rows=[r for r in p["rows"] if r["arm"] != "vanilla"]))
    assert "lack the episodes of r3-seed1" in fault(lambda p: p["files"].pop("countdown/toy-1k/episodes/r3-seed1.parquet"))
    assert "does not hold its estimate" in fault(lambda p: p["rows"][0].update(two=[0.1, 0.2, 0.3]))


def test_a_file_that_is_too_large_or_no_json_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    for text in ("{" * 100_000, "[" * 100_000, '{"a": 1', "\xff", "null", "[]"):
        (tmp_path / "x.json").write_text(text, "latin-1")
        report, faults = read_report(tmp_path / "x.json")
        assert report is None and faults
    (tmp_path / "x.json").write_text(" " * (REPORT_BYTES + 1), "utf-8")
    assert "bytes" in read_report(tmp_path / "x.json")[1][0]
    with pytest.raises(SettingsError, match="no report at"):
        read_report(tmp_path / "none.json")


def test_what_is_missing_for_a_verdict(tmp_path: Path) -> None:
    r = make_report(study(tmp_path, arms=("r3",), seeds=1), "toy", "Somebody")
    words = "\n".join(missing_for_verdict(r))
    assert "r3 has 1 seed, 3 are wanted" in words and "a control arm" in words and "hash of the protocol" in words
    assert "(empty, other): run with --controls" in words
    dirty = r.model_copy(update={"clean": False})
    assert "a known commit without changes" in missing_for_verdict(dirty)[0]


def test_the_command_makes_checks_and_ends_with_1_for_a_wrong_file(made: tuple[Path, StudyReport], tmp_path: Path) -> None:
    line = ["report", "make", str(made[0]), "--name", "toy", "--by", "Somebody", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and (tmp_path / "toy.json").is_file(), done.output
    done = CliRunner().invoke(app, ["report", "check", str(tmp_path / "toy.json")])
    assert done.exit_code == 0 and "correct" in done.stdout and "missing for a verdict: " in done.stdout
    saved(made[1], tmp_path, lambda d: d.update(by=""))
    done = CliRunner().invoke(app, ["report", "check", str(tmp_path / "toy.json")])
    assert done.exit_code == 1 and "wrong" in done.stdout


# ── Text ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.strip()], ids=range(len(ATTACKS) - 2))
def test_texts_are_refused_or_stay_text(made: tuple[Path, StudyReport], tmp_path: Path, attack: str) -> None:
    odd = made[1].model_copy(update={"remarks": attack[:4000]})
    if not text_faults({"remarks": attack}):
        words = report_words([odd])
        assert "<script" not in words.replace("\\<", "") and "<img" not in words.replace("\\<", "")


def test_paths_addresses_and_ordinary_words_are_told_apart() -> None:
    for text in ("n/a", "3/4", "and/or", "https://huggingface.co/Qwen/x", "Qwen/Qwen2.5@v1.0", "a (b)/c", "tokens/s", "[1, 2]/n"):
        assert text_faults({"remarks": text}) == [], text
    for text in (
        "/srv/me/x",
        "in /opt/me/.cache",
        "C:\\Users\\me",
        "~/x",
        "file:///data/x/y",
        "http://gpu01:8000",
        "http://172.20.1.1/x",
    ):
        assert text_faults({"remarks": text}), text
