"""The workflow files are whole, and the step that keeps the sites of releases does what it says."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY, patience

FILES = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
GH = """#!/bin/sh
case "$2" in
  list) printf 'v1.0\\nv0.9\\nv0.1\\n' ;;
  download) [ "$3" = v0.9 ] && exit 1; mkdir -p "$7" && cp site.zip "$7/" ;;
esac
"""
"A stand-in for GitHub's program: three releases, and the one in the middle has no site."


def workflow(file: Path) -> dict[str, Any]:
    return {"on" if key is True else key: value for key, value in yaml.safe_load(file.read_text("utf-8")).items()}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_workflow_starts_by_itself_and_may_do_little(file: Path) -> None:
    made = workflow(file)
    assert made["on"]["push"] == {"branches": ["main"]} and made["permissions"] == {"contents": "read"}
    jobs = made["jobs"]
    for job in jobs.values():
        assert set(job.get("needs", "").split()) <= jobs.keys() and job["runs-on"] and job["steps"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
        for target in (t for step in job["steps"] for t in re.findall(r"^make ([\w-]+)$", step.get("run", ""), re.M)):
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text("utf-8"), re.M), target


@pytest.mark.skipif(not (shutil.which("unzip") and shutil.which("bash")), reason="needs bash and unzip")
def test_sites_of_releases_stand_beside_the_newest(tmp_path: Path) -> None:
    (step,) = [
        s
        for s in workflow(REPOSITORY / ".github/workflows/docs.yml")["jobs"]["build"]["steps"]
        if "releases" in s.get("name", "")
    ]
    for folder in ("bin", "_site", "old"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin/gh").write_text(GH, "utf-8")
    (tmp_path / "bin/gh").chmod(0o755)
    (tmp_path / "old/index.html").write_text("old", "utf-8")
    shutil.make_archive(str(tmp_path / "site"), "zip", tmp_path / "old")
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub starts it
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=patience(20))
    assert done.returncode == 0, done.stderr
    assert sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "_site").rglob("*.html")) == [
        "_site/versions/v0.1/index.html",
        "_site/versions/v1.0/index.html",
    ]
