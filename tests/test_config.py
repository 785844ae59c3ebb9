"""Settings and places: whose settings.ini, where runs go, and what a wheel without a clone finds."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import REPOSITORY

from r3_repro import config
from r3_repro.config import (
    load_profile,
    model_folder,
    model_path,
    settings_files,
)
from r3_repro.data import dataset_identity
from r3_repro.profiles import ProcessSettings, Profile, TrainingSettings
from r3_repro.runs.identity import identity_diff
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


@pytest.mark.parametrize("name", ["settings.ini", "nbs/03_train.ipynb", "assets/lm_eval", "assets/tiny-a.recipe.json"])
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
        file.write_text("[mine]\nbased_on = smoke\n", "utf-8")
    assert [f.path for f in settings_files()] == [shipped]
    (own_folder / "settings.ini").write_text("[mine]\nbased_on = smoke\n", "utf-8")
    assert [f.path for f in settings_files()] == [own_folder / "settings.ini", shipped]
    monkeypatch.setenv("R3_SETTINGS", str(named))
    assert [f.path for f in settings_files()] == [named, shipped]
    assert [f.path for f in settings_files(other)] == [other, shipped]
    monkeypatch.setenv("R3_SETTINGS", str(tmp_path / "none.ini"))
    with pytest.raises(SettingsError, match=r"no settings file at .*none\.ini"):
        load_profile("smoke")


def own_profile(folder: Path, text: str, name: str, **overrides: object) -> Profile:
    (folder / "settings.ini").write_text(text, "utf-8")
    return load_profile(name, **overrides)


def test_a_few_lines_are_a_profile(own_folder: Path, installed: Path) -> None:
    p = own_profile(own_folder, "[mine]\nbased_on = tiny\nmax_steps = 7\nsave_steps = 7\n", "mine", task="function_calling")
    shipped = load_profile("tiny", task="function_calling")
    assert p.max_answer_tokens == shipped.max_answer_tokens == 40, "what the shipped profile says for the task is inherited"
    assert {k: v for k, v in p.flat().items() if shipped.flat()[k] != v} == {"max_steps": 7, "save_steps": 7}


def test_a_profile_of_ones_own_replaces_the_shipped_one_with_its_sections(own_folder: Path) -> None:
    text = (REPOSITORY / "settings.ini").read_text("utf-8")
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
            r"has no profile \[tinny\], only mine, paper, paper-per-sequence, paper-.*, tiny-study, smoke; did you mean \[tiny\]",
        ),
        ("[mine]\nbased_on = mine\n", "circle: mine -> mine"),
        ("[mine]\nbased_on = a\n[a]\nbased_on = mine\n", "circle: mine -> a -> mine"),
        ("[mine]\nbased_on = tiny\n[miene.countdown]\nlow = 2\n", r"\[miene.countdown\]: there is no profile \[miene\]"),
        ("[mine]\nbased_on = tiny\n[mine.countdwn]\nlow = 2\n", "'countdwn' is neither a task"),
        ("[mine]\nbased_on = tiny\n[mine.a/b]\nbased_on = paper\n", r"\[mine.a/b\] based_on: cannot be set there"),
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
    assert model_path(load_profile("smoke")) == str(installed / "assets" / "tiny-a")
    with pytest.raises(SettingsError, match=r"did you mean .*assets/tiny-a"):
        model_path(load_profile("smoke", model="assets/tiny-bse2"))


def test_the_rule_for_what_may_be_a_folder_or_a_hub_name(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "settings.ini").touch()
    below = own_folder / "below"
    for folder in (own_folder / "models" / "one", below):
        folder.mkdir(parents=True)
    assert model_folder("models/one") == own_folder / "models" / "one", "what is there, even if the hub had one of this name"
    with pytest.raises(SettingsError, match=r"models/one lacks config.json, tokenizer_config.json"):
        model_path(load_profile("smoke", model="models/one"))
    assert model_path(load_profile("smoke", model="owner/one")) == "owner/one"
    for absent in ("./owner/one", "../one", "/no/one", "~/no-such-folder/one"):
        with pytest.raises(SettingsError, match=r"no such folder|in it does not"):
            model_path(load_profile("smoke", model=absent))
    monkeypatch.chdir(below)
    assert model_folder("models/one") is None
    with pytest.raises(SettingsError, match=r"begin in the current folder, .*below; did you mean .*here/models/one\?"):
        model_path(load_profile("smoke", model="models/one"))


# ── Relative paths ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.mark.parametrize("base", ["", "~/"])
@pytest.mark.parametrize("home", ["clone", "variable", "settings"])
def test_one_base_for_relative_paths(
    own_folder: Path, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, home: str
) -> None:
    "The folder where the user stands, or the user's own with ~, wherever the home is."
    here = user_home if base else own_folder
    (here / "data").mkdir(parents=True)
    (here / "data" / "own.jsonl").touch()
    shutil.copytree(REPOSITORY / "r3_repro/assets/tiny-a", here / "models" / "own")
    (here / "other.ini").write_text(
        f"[mine]\nbased_on = smoke\nmodel = {base}models/own\nsource = {base}data/own.jsonl\n"
        f"[mine.{base}models/own]\nmax_steps = 2\n",
        "utf-8",
    )
    if home == "variable":
        monkeypatch.setenv("R3_HOME", str(tmp_path))
    if home == "settings":
        (tmp_path / "settings.ini").touch()
    monkeypatch.setenv("R3_SETTINGS", f"{base}other.ini")
    monkeypatch.setenv("R3_ROOT", f"{base}tree")
    run = open_run("mine")
    assert run.root == here / "tree" and open_run("mine", root=f"{base}given").root == here / "given"
    assert model_path(run.profile) == str(here / "models" / "own") and run.profile.max_steps == 2
    assert run.profile.data_options["source"] == str(here / "data" / "own.jsonl")
    monkeypatch.setenv("R3_HOME", f"{base}data")
    assert find_home() == here / "data"
    again = load_profile("mine", model=run.profile.model)  # what a stage is started with
    assert again == run.profile


def test_the_same_file_is_the_same_source_by_any_path(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "And what was stored when the name still counted is not refused."
    (own_folder / "own.jsonl").write_text("{}", "utf-8")
    names = ["own.jsonl", "./own.jsonl", f"../{own_folder.name}/own.jsonl", str(own_folder / "own.jsonl")]
    who = [dataset_identity(open_run("smoke", source=name)) for name in names]
    assert who[1:] == who[:-1] and who[0]["source"]
    stored = {"settings": who[0]["settings"] | {"source": "own.jsonl"}, "source": who[0]["source"]}
    assert identity_diff(stored, who[3]) == []
    (own_folder / "own.jsonl").write_text("{} ", "utf-8")
    assert identity_diff(stored, dataset_identity(open_run("smoke", source="own.jsonl"))) == ["the source of the problems"]
    assert dataset_identity(open_run("smoke"))["settings"]["source"] == "generate"


@pytest.mark.parametrize("written", [".", "./", "../here", "here/..", "~"])
def test_a_run_has_a_folder_of_its_own_whatever_its_model_is_called(own_folder: Path, user_home: Path, written: str) -> None:
    "`model = .` stored its runs beside the problems."
    (own_folder / "here").mkdir()
    run = open_run("smoke", model=written)
    assert run.model_dir.parent == run.task_dir and run.model_dir.name in ("here", "user")


@pytest.mark.parametrize("written", ["/", "dataset", "models/dataset"])
def test_a_model_may_not_be_called_like_other_folders(own_folder: Path, written: str) -> None:
    shutil.copytree(REPOSITORY / "r3_repro/assets/tiny-a", own_folder / "dataset")
    with pytest.raises(SettingsError, match="the folder's name"):
        model_path(load_profile("smoke", model=written))


# ── Values ─────────────────────────────────────────────────────────────────────────────────────────────────────────

FIELDS = {k: f.annotation for k, f in Profile.model_fields.items() if k not in ("name", "options")}
NUMBERS = [k for k, kind in FIELDS.items() if kind in (int, float)]
SHARES = [k for k, kind in FIELDS.items() if kind is float]
SEEDS = [k for k in FIELDS if k.endswith("seed")]
NEEDED = [k for k, kind in FIELDS.items() if kind is str and Profile.model_fields[k].default != ""]
REFUSED = [
    *((k, v) for k in SHARES for v in ("nan", "inf", "-inf", "1e999")),
    *((k, v) for k in SHARES for v in (float("nan"), float("inf"))),
    *((k, v) for k in NUMBERS for v in (True, False, "-1", "1e", "ten", [1])),
    *((k, v) for k in NUMBERS if k not in SHARES for v in ("1.5", str(2**32), "1e30")),
    *((k, v) for k in SEEDS for v in (-1, "-5", 2**32, "5000000000")),
    *((k, v) for k in NEEDED for v in (" ", "  ")),
    *((k, v) for k in NEEDED if k not in ("task", "model") for v in (3, True)),
    *((k, v) for k, kind in FIELDS.items() if kind is str and k not in ("task", "model") for v in ("a\0b", "\udcff")),
    *((k, v) for k in ("arms", "modes") for v in (" ", (), "r3 r3", True)),
    *((k, v) for k in ("low", "high", "target_low") for v in ("nan", "1.5", True, "x")),
    *(("sizes", v) for v in (" ", (), "3 x", True)),
    *(("temperature", v) for v in (0, "0.0", 1e-9, 2.5)),
    *(("servers", v) for v in ("http://", "a:80", "http://a:99999", "http://a http://a", "ftp://a")),
    *(("vllm_server_base_url", v) for v in ("http://", "http://a/v1", "a:80")),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{k}={v!r}" for k, v in REFUSED])
def test_what_cannot_be_is_refused_with_section_key_and_value(own_folder: Path, key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"settings\.ini \[smoke\].* {key}( = | is | ')") as e:
        load_profile("smoke", **{key: value, **({"engine": "server"} if key == "servers" else {})})
    assert key in ("servers", "sizes") or not isinstance(value, str) or repr(value) in str(e.value) or not value.strip()


def test_the_settings_that_are_checked_are_all(own_folder: Path) -> None:
    assert len(NUMBERS) > 40 and len(SHARES) > 20 and set(SEEDS) == {"data_seed", "eval_seed"} and "retry_turn" in NEEDED


@pytest.mark.parametrize("key", sorted(FIELDS.keys() & load_profile("tiny", REPOSITORY / "settings.ini").flat().keys()))
def test_an_empty_value_is_refused_unless_it_means_something(own_folder: Path, key: str) -> None:
    may_be_empty = {"controls", "servers", "revision", "vllm_server_base_url"} | {
        k for k, f in Profile.model_fields.items() if f.default in ("", ())
    }
    text = f"[mine]\nbased_on = tiny\n{key} =\n"
    if key in may_be_empty:
        own_profile(own_folder, text, "mine")
        return
    with pytest.raises(SettingsError, match=rf"settings.ini \[mine\].*{key}"):
        own_profile(own_folder, text, "mine")


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("Try again.", "Try again."),
        ("Try again.  # in the words of [1]", "Try again."),
        ('"Problem # 3: try again"', "Problem # 3: try again"),
        ('"Problem # 3"  # quoted', "Problem # 3"),
        ("Problem#3; again", "Problem#3; again"),
        ("One line\n  and another  # told", "One line\nand another"),
        ("Problem # 3: try again", None),
        ("Problem # 3", None),
        ("One line\n  # Two\n  three", None),
        ("One line\n  ; two\n  three", None),
        ("# 3: try again", None),
        ('""', None),
    ],
)
def test_a_number_sign_never_cuts_a_text_silently(own_folder: Path, written: str, means: str | None) -> None:
    text = f"[mine]\nbased_on = tiny\nretry_turn = {written}\nmax_steps = 3 # a comment\n"
    if means is None:
        with pytest.raises(SettingsError, match=r"settings.ini .*retry_turn"):
            own_profile(own_folder, text, "mine")
    else:
        p = own_profile(own_folder, text, "mine")
        assert p.retry_turn == means and p.max_steps == 3


@pytest.mark.parametrize("name", ["a/b", "/abs", "..", "a\\b", ""])
def test_a_profile_is_a_folder_name(own_folder: Path, name: str) -> None:
    with pytest.raises(SettingsError):
        own_profile(own_folder, f"[{name}]\nbased_on = tiny\n", name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"arm": True}, "arm = True is not text but bool: .*-r arm True"),
        ({"task": 3}, "task = 3 is not text"),
        ({"profile": None}, "profile = None is not text"),
        ({"model": 1.5}, "model = 1.5 is not text"),
        ({"model": "a\0b"}, "cannot be printed"),
        ({"task": "\udcff"}, "cannot be printed"),
        ({"root": False}, "root = False is not text"),
        *(({"seed": v}, "seed = .* is not a whole number from 0 to 4294967295") for v in (-1, 2**32, 1.0, "1", True, None)),
    ],
)
def test_what_papermill_makes_of_a_parameter_is_checked(given: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_run(**given)


def test_a_run_that_is_derived_is_checked_too() -> None:
    run = open_run("smoke", seed=2**32 - 1)
    with pytest.raises(SettingsError, match="seed = 4294967296"):
        replace(run, seed=run.seed + 1)


# ── Identity ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_how_processes_run_is_no_part_of_what_was_trained() -> None:
    "Runs that were stored before these settings existed, or with others, go on."
    ours = set(ProcessSettings.model_fields)
    assert ours == {"ddp_timeout", "layer_kernels"} and not ours & set(TrainingSettings.model_fields)
