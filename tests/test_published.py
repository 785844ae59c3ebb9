"""The published set-up: every value has a source, letters are those of the fact sheet, presets differ as TRL's releases."""

import re
from pathlib import Path

import pytest
from support import DATA, REPOSITORY

from r3_repro.config import SOURCE_LETTERS, Profile, ValueSource, load_profile, value_sources
from r3_repro.tasks.base import BUILT_IN, get_task
from r3_repro.utils.errors import SettingsError

SETTINGS = REPOSITORY / "settings.ini"
SHEET = DATA / "paper" / "facts.md"
PUBLISHED = {"H", "A", "M", "D"}


def of(setting: str, section: str = "paper") -> ValueSource:
    found = [s for s in value_sources(path=SETTINGS) if (s.section, s.setting) == (section, setting)]
    assert len(found) == 1, (section, setting)
    return found[0]


# ── The table ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", BUILT_IN)
def test_every_setting_of_the_profile_is_in_the_table_with_its_value(task: str) -> None:
    p = load_profile("paper", SETTINGS, task=task)
    table = {
        s.setting: s.value for s in value_sources(path=SETTINGS) if s.section in ("paper", f"paper.{task}", f"paper.{p.model}")
    }
    own = {k: v for k, v in get_task(task).options.items() if k not in Profile.model_fields}
    assert set(table) == {*Profile.model_fields, *own} - {"name", "options"}
    sections = {
        k: v for k, v in table.items() if k not in ("task", "servers") and not v.startswith("(")
    }  # values of the file as `--set` takes them
    assert load_profile("paper", SETTINGS, **sections | {"task": task}) == p


def test_every_value_of_every_section_of_the_set_up_is_in_the_table() -> None:
    section, lines = "", set()
    for line in SETTINGS.read_text("utf-8").splitlines():
        section = line[1 : line.index("]")] if line.startswith("[") else section
        if section.startswith("paper") and "=" in line.split("#")[0] and not line.startswith("based_on"):
            lines.add((section, line.split("=")[0].strip()))
    table = value_sources(path=SETTINGS)
    assert lines <= {(s.section, s.setting) for s in table} and len(lines) > 80
    assert {s.letter for s in table} == set(SOURCE_LETTERS)


def test_a_value_without_a_source_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "settings.ini"
    for line in ("max_steps = 5", "max_steps = 5  # because", "max_steps = 5  # X: why"):
        file.write_text(f"[other]\nmax_steps = 3\n[paper.owner/name]\n{line}\n", "utf-8")
        with pytest.raises(SettingsError, match=r"\[paper.owner/name\] max_steps = 5.*end it with its source"):
            value_sources(path=file)
    file.write_text("[other]\nmax_steps = 3\n[papers]\nmax_steps = 3\n[paper-x]\nmax_steps = 5  # ours\n", "utf-8")
    assert value_sources(path=file)[0] == ValueSource("paper-x", "max_steps", "5", "ours", "")


# ── The fact sheet ─────────────────────────────────────────────────────────────────────────────────────────────────

# setting -> (row of the sheet's table on training, which of its letters, a part of its value)
ROWS: dict[str, tuple[str, str, str]] = {
    "batch_size": ("effective batch / steps", "H", "256 (completions: D)"),
    "max_steps": ("effective batch / steps", "H", "up to 1,750"),
    "num_generations": ("generations per failure (group size)", "A", "8 to 14"),
    "temperature": ("sampling temperature", "A", "about 0.9"),
    "learning_rate": ("learning rate, schedule, warm-up", "H", "5e-7"),
    "lr_scheduler_type": ("learning rate, schedule, warm-up", "H", "cosine"),
    "warmup_ratio": ("learning rate, schedule, warm-up", "M", "0.03 (taken as a ratio)"),
    "beta": ("KL coefficient", "H", "0.001"),
    "lora_r": ("algorithm", "A", "all weights updated directly"),
    "processes": ("hardware", "H", "4 to 8 H100"),
}
UNKNOWN = ("max_answer_tokens", "max_reflection_tokens", "epsilon", "optim", "modes")


@pytest.fixture
def sheet() -> str:
    if not SHEET.is_file():
        pytest.skip(f"no {SHEET}: the letters are not compared with the fact sheet")
    return SHEET.read_text("utf-8")


def test_letters_and_values_are_those_of_the_fact_sheet(sheet: str) -> None:
    for setting, (item, letter, value) in ROWS.items():
        row = next(line for line in sheet.splitlines() if line.startswith(f"| {item} |"))
        _, _, said, letters, _ = (cell.strip() for cell in row.split("|"))
        assert value in said and letter in re.findall(r"\b[HAMD]\b", letters), row
        assert of(setting).letter == letter, setting
    assert re.search(r"lengths, clip, optimiser, seeds, evaluation decoding.* \| not found anywhere", sheet)
    assert all(of(setting).letter in ("ours", "TRL") for setting in UNKNOWN)
    assert "**the original question is put in again as a prompt** (A;" in sheet and of("retry_turn").letter == "A"
    assert "**without asking for a chain of thought** (A:" in sheet
    assert of("chain_of_thought", "paper.countdown").letter == "A"


def test_numbers_of_the_data_are_those_of_the_fact_sheet(sheet: str) -> None:
    for task, name in (("countdown", "Countdown"), ("function_calling", "APIGen")):
        items = re.search(rf"^## Table \d: {name}[^\n]*, ([\d,]+) test items", sheet, re.M)
        assert items and int(items[1].replace(",", "")) == load_profile("paper", SETTINGS, task=task).test_size
    assert "12,000 test items, 48,000 train." in sheet and int(of("train_size", "paper.function_calling").value) == 48_000
    assert "function calling under 25,000 on average" in sheet and "Countdown about 15,000." in sheet
    assert "about 450k used items" in sheet and int(of("train_size", "paper.countdown").value) == 450_000 - 15_000
    assert "up to 64 responses a query" in sheet and of("attempts_per_problem").value == "64"


def test_nothing_else_claims_to_be_published() -> None:
    "A new setting with such a letter needs a row above, or a place in this list."
    text = "task model source retry_turn retries mixture engine attempts_per_problem mining_mode failure_rule train_size"
    text += " test_size max_failures chain_of_thought loss_type top_k use_vllm arms forgetting_suite sizes low high"
    text += " target_low target_high"
    listed = {*ROWS, *text.split()}
    assert {s.setting for s in value_sources(path=SETTINGS) if s.letter in PUBLISHED} == listed


# ── Presets ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_presets_differ_from_the_profile_as_releases_of_trl_did(task: str, request: pytest.FixtureRequest) -> None:
    one, *others = (load_profile(n, SETTINGS, task=task) for n in ("paper", "paper-per-sequence", "paper-top-k-50"))
    differ = [{k: v for k, v in p.flat().items() if one.flat()[k] != v} for p in others]
    assert differ == [{"loss_type": "grpo"}, {"top_k": 50}] and (one.loss_type, one.top_k) == ("bnpo", 0)
    sheet = request.getfixturevalue("sheet")
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in sheet.splitlines() if line[:1] == "|"
    }
    assert rows["top_k"] == ["no such option", "50", "50", "none"], "0.15.2, 0.16.1, 0.17.0, 0.18.0"
    assert rows["loss averaging"][0].startswith("per sequence") and rows["loss averaging"][1].startswith("over all tokens")
    assert rows["temperature"][:3] == [str(one.temperature)] * 3 and rows["num_generations"] == [str(one.num_generations)] * 4


def test_the_batch_fits_the_group() -> None:
    p = load_profile("paper", SETTINGS)
    assert p.batch_size == 256 and 256 % p.num_generations == 0 and 8 <= p.num_generations <= 14
