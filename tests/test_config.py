"""Settings and places: whose settings.ini, where runs go, and what a wheel without a clone finds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPOSITORY

from r3_repro import config
from r3_repro.config import (
    ADDED,
    ProcessSettings,
    Profile,
    TrainingSettings,
    load_profile,
    model_folder,
    model_path,
    settings_files,
    with_first_names,
)
from r3_repro.runs.layout import open_run
from r3_repro.utils import files
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import clone_folder, find_home, resource


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    "Every test stands in an empty folder, and no variable says where to look."
    for name in ("R3_HOME", "R3_SETTINGS", "R3_ROOT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "The package as a wheel installs it: beside no nbs/ and no settings.ini, with its resources in assets/."
    package = tmp_path / "site-packages" / "r3_repro"
    shutil.copytree(REPOSITORY / "r3_repro" / "assets", package / "assets")
    shutil.copyfile(REPOSITORY / "settings.ini", package / "assets" / "settings.ini")
    (package / "assets" / "nbs").mkdir()
    shutil.copyfile(REPOSITORY / "nbs" / "03_train.ipynb", package / "assets" / "nbs" / "03_train.ipynb")
    monkeypatch.setattr(files, "PACKAGE", package)
    monkeypatch.setattr(config, "PACKAGE", package)
    return package


# ── Home and resources ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_clone_is_the_home_of_whoever_has_no_other() -> None:
    assert find_home() == clone_folder() == REPOSITORY


def test_the_nearest_settings_file_upwards_makes_the_home(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "settings.ini").touch()
    below = own_folder / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_home() == own_folder and open_run("smoke").root == own_folder / "runs"
    (below / "settings.ini").touch()
    assert find_home() == below


def test_the_variable_comes_first(own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "settings.ini").touch()
    monkeypatch.setenv("R3_HOME", str(tmp_path))
    assert find_home() == tmp_path and open_run("smoke").root == tmp_path / "runs"


def test_without_a_clone_the_current_folder_is_the_home(installed: Path, own_folder: Path) -> None:
    assert clone_folder() is None and find_home() == own_folder
    run = open_run("smoke")
    assert run.root == own_folder / "runs" and run.profile == load_profile("smoke", REPOSITORY / "settings.ini")
    assert list(own_folder.iterdir()) == [], "looking leaves nothing behind"


@pytest.mark.parametrize("name", ["settings.ini", "nbs/03_train.ipynb", "assets/lm_eval", "assets/tiny-base2.recipe.json"])
def test_a_resource_is_found_with_and_without_a_clone(name: str, request: pytest.FixtureRequest) -> None:
    in_clone = resource(name)
    assert in_clone.is_relative_to(REPOSITORY) and in_clone.exists()
    package = request.getfixturevalue("installed")
    assert resource(name).is_relative_to(package / "assets") and resource(name).is_dir() == in_clone.is_dir()


def test_what_does_not_ship_is_refused_by_name(installed: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ships no 'nbs/09_none.ipynb' .*check the name, or install"):
        resource("nbs/09_none.ipynb")


def test_the_clone_is_not_any_folder_above_the_package(installed: Path) -> None:
    "An environment inside of a clone holds an installed package, not the clone's."
    (installed.parent.parent / "nbs").mkdir()
    (installed.parent.parent / "settings.ini").touch()
    assert clone_folder() is None
    (installed.parent / "nbs").mkdir()
    (installed.parent / "settings.ini").touch()
    assert clone_folder() == installed.parent


# ── Whose settings ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_order_of_settings_files(own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "An argument, `R3_SETTINGS`, the home's file, the shipped one; each is followed by the shipped one."
    shipped, named, other = REPOSITORY / "settings.ini", tmp_path / "named.ini", tmp_path / "other.ini"
    for file in (named, other):
        file.write_text("[mine]\nbased_on = smoke\n")
    assert [f.path for f in settings_files()] == [shipped]
    (own_folder / "settings.ini").write_text("[mine]\nbased_on = smoke\n")
    assert [f.path for f in settings_files()] == [own_folder / "settings.ini", shipped]
    monkeypatch.setenv("R3_SETTINGS", str(named))
    assert [f.path for f in settings_files()] == [named, shipped]
    assert [f.path for f in settings_files(other)] == [other, shipped]
    monkeypatch.setenv("R3_SETTINGS", str(tmp_path / "none.ini"))
    with pytest.raises(SettingsError, match=r"no settings file at .*none\.ini"):
        load_profile("smoke")


def own_profile(folder: Path, text: str, name: str, **overrides: object) -> Profile:
    (folder / "settings.ini").write_text(text)
    return load_profile(name, **overrides)


def test_a_few_lines_are_a_profile(own_folder: Path, installed: Path) -> None:
    p = own_profile(own_folder, "[mine]\nbased_on = tiny\nmax_steps = 7\nsave_steps = 7\n", "mine", task="function_calling")
    shipped = load_profile("tiny", task="function_calling")
    assert p.max_answer_tokens == shipped.max_answer_tokens == 40, "what the shipped profile says for the task is inherited"
    assert {k: v for k, v in p.flat().items() if shipped.flat()[k] != v} == {"max_steps": 7, "save_steps": 7}


def test_a_profile_of_ones_own_replaces_the_shipped_one_with_its_sections(own_folder: Path) -> None:
    text = (REPOSITORY / "settings.ini").read_text()
    start, end = text.index("[tiny.countdown]"), text.index("[tiny.function_calling]")
    p = own_profile(own_folder, text[:start] + text[end:], "tiny")
    assert p.options["sizes"] != load_profile("tiny", REPOSITORY / "settings.ini").options["sizes"] == (3,)


def test_a_profile_of_ones_own_can_extend_the_shipped_one(own_folder: Path) -> None:
    p = own_profile(own_folder, "[tiny]\nbased_on = tiny\ntest_size = 5\n", "tiny")
    assert p.test_size == 5 and p.flat() == load_profile("tiny", REPOSITORY / "settings.ini", test_size=5).flat()


def test_a_model_of_ones_own_gets_a_section_under_a_shipped_profile(own_folder: Path) -> None:
    text = "[paper.owner/name]\nprocesses = 2\n[paper.countdown]\nprocesses = 8\n"
    assert own_profile(own_folder, text, "paper", model="owner/name").processes == 2
    assert own_profile(own_folder, text, "paper", model="Qwen/Qwen2.5-3B-Instruct").processes == 8, "yours come last"
    assert own_profile(own_folder, text, "paper", task="function_calling", model="owner/other").processes == 4


def test_shipped_profiles_do_not_depend_on_ones_own(own_folder: Path) -> None:
    shipped = load_profile("tiny")
    text = "[paper]\nbased_on = paper\nmax_grad_norm = 9\n[x]\nbased_on = paper\n"
    assert own_profile(own_folder, text, "tiny") == shipped and shipped.max_grad_norm != 9
    assert own_profile(own_folder, text, "x").max_grad_norm == own_profile(own_folder, text, "paper").max_grad_norm == 9


def test_a_settings_file_of_another_program_does_no_harm(own_folder: Path) -> None:
    "The name is a common one, so that a folder above may hold a stranger's."
    shipped = load_profile("smoke")
    assert own_profile(own_folder, "[DEFAULT]\nlib_name = other\nversion = 1\n", "smoke") == shipped
    assert own_profile(own_folder, "[database]\nuser = me\n", "smoke") == shipped


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[mine]\nbased_on = tinny\n",
            r"has no profile \[tinny\], only mine, paper, paper-per-sequence, paper-top-k-50, tiny, smoke; did you mean \[tiny\]",
        ),
        ("[mine]\nbased_on = mine\n", "circle: mine -> mine"),
        ("[mine]\nbased_on = a\n[a]\nbased_on = mine\n", "circle: mine -> a -> mine"),
        ("[mine]\nbased_on = tiny\n[miene.countdown]\nlow = 2\n", r"\[miene.countdown\]: there is no profile \[miene\]"),
        ("[mine]\nbased_on = tiny\n[mine.countdwn]\nlow = 2\n", "'countdwn' is neither a task"),
        ("[mine]\nbased_on = tiny\n[mine.a/b]\nbased_on = paper\n", r"\[mine.a/b\] based_on: cannot be set there"),
        ("[mine]\nbased_on = tiny\nkl = 0.1\n", r"settings.ini \[mine\] kl = '0.1': is called 'beta' now: rename it"),
        ("[mine]\nbased_on = tiny\nseed = 1\n", r"settings.ini \[mine\] seed = '1': unknown key"),
        ("[mine]\nmax_steps = 3\n", r"settings.ini \[mine\] task: is missing: add it, or base the profile on one that has it"),
        ("max_steps = 3\n", "is not a valid INI file"),
    ],
)
def test_a_mistake_names_file_section_and_remedy(own_folder: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        own_profile(own_folder, text, "mine")


def test_a_file_with_a_byte_order_mark_and_other_letters_is_read(own_folder: Path) -> None:
    request = "Versuch es nochmal, Größe – 请再试"
    (own_folder / "settings.ini").write_bytes(f"\ufeff[mine]\nbased_on = tiny\nretry_turn = {request}\n".encode())
    assert load_profile("mine").retry_turn == request


# ── Models ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tiny_base_is_found_without_a_clone(installed: Path) -> None:
    assert model_path(load_profile("smoke")) == str(installed / "assets" / "tiny-base2")
    with pytest.raises(SettingsError, match=r"did you mean .*assets/tiny-base2"):
        model_path(load_profile("smoke", model="assets/tiny-bse2"))


def test_a_model_is_looked_for_here_then_in_the_home(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "settings.ini").touch()
    below = own_folder / "below"
    for folder in (own_folder / "models" / "one", below):
        folder.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert model_folder("models/one") == own_folder / "models" / "one" and model_folder("models/two") is None
    (below / "models" / "one").mkdir(parents=True)
    assert model_folder("models/one") == Path("models/one")
    with pytest.raises(SettingsError, match=r"models/one lacks config.json, tokenizer_config.json"):
        model_path(load_profile("smoke", model="models/one"))


def test_how_processes_run_is_no_part_of_what_was_trained() -> None:
    "Runs that were stored before these settings existed, or with others, go on."
    ours = set(ProcessSettings.model_fields)
    assert ours == {"ddp_timeout", "layer_kernels"} and not ours & set(TrainingSettings.model_fields)
    p = load_profile("tiny")
    assert all(ADDED[name] == getattr(p, name) for name in ours) and not ours & with_first_names(p.flat()).keys()
