"""`import r3_repro`: fast, without torch, and with the names that a script needs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, patience

import r3_repro

NAMES = [name for name in r3_repro.__all__ if name != "__version__"]
HEAVY = {"torch", "transformers", "trl", "accelerate", "datasets", "pandas", "numpy", "matplotlib", "pydantic", "scipy", "duckdb"}


def loaded_after(code: str) -> set[str]:
    "Top-level names of the modules that a new interpreter has loaded after this code."
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"],
        capture_output=True, encoding="utf-8", timeout=patience(60), cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_alone_loads_nothing_heavy() -> None:
    assert loaded_after("import r3_repro; dir(r3_repro); r3_repro.__version__") & HEAVY == set()


def test_settings_and_tasks_need_no_torch() -> None:
    used = "import r3_repro as r3; r3.open_run('smoke'); r3.get_task('countdown'); r3.SettingsError"
    assert loaded_after(used) & {"torch", "transformers", "trl", "matplotlib"} == set()


def test_the_search_for_heavy_modules_would_find_them() -> None:
    assert "pydantic" in loaded_after("import r3_repro; r3_repro.Profile")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_what_its_module_defines(name: str) -> None:
    module, _, attribute = r3_repro._DEFINED_IN[name].partition(":")
    found = getattr(r3_repro, name)
    assert found is getattr(importlib.import_module(f"r3_repro.{module}"), attribute)
    assert found.__module__ == f"r3_repro.{module}", "a name points to where it is defined, not to where it is imported"
    assert found.__doc__, "what is offered first is documented"


def test_dir_lists_the_names() -> None:
    assert set(r3_repro.__all__) <= set(dir(r3_repro)) and "__version__" in dir(r3_repro)


def test_everything_can_be_imported_with_a_star() -> None:
    space: dict[str, object] = {}
    exec("from r3_repro import *", space)
    assert set(r3_repro.__all__) <= set(space)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("load_profil", "did you mean 'load_profile'?"), ("zzz", "it is none of"), ("_zzz", "no attribute '_zzz'")],
)
def test_an_unknown_name_is_an_error_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match="module 'r3_repro' has no attribute") as e:
        getattr(r3_repro, name)
    assert hint in str(e.value)
    with pytest.raises(ImportError, match=name):
        exec(f"from r3_repro import {name}")


def test_a_module_that_is_not_loaded_is_named_as_one() -> None:
    ask = "import r3_repro\ntry:\n    r3_repro.planning\nexcept AttributeError as e:\n    print(e)"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, encoding="utf-8", timeout=patience(60), cwd=REPOSITORY
    )
    assert "it is a module, so import r3_repro.planning first" in done.stdout, done.stderr


def test_no_name_hides_a_module() -> None:
    "`r3_repro.train` must stay the function, whatever is imported later."
    folder = Path(r3_repro.__file__).parent
    modules = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert {"config", "training", "mining"} <= modules and modules & set(NAMES) == set()


def test_type_checkers_are_told_the_same() -> None:
    stub = ast.parse((REPOSITORY / "r3_repro/__init__.pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    said = {alias.asname: f"{node.module}:{alias.name}" for node in imports for alias in node.names}
    assert said == {name: f"r3_repro.{where}" for name, where in r3_repro._DEFINED_IN.items()}
    (listed,) = [ast.literal_eval(n.value) for n in stub.body if isinstance(n, ast.Assign)]
    assert sorted(listed) == sorted(r3_repro.__all__)
    assert (REPOSITORY / "r3_repro/py.typed").is_file()
