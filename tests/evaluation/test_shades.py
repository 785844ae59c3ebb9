"""Shades of reflections: the numbers, what is kept when a process is killed, what is read again, and the page that shows them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from r3_repro.analysis.browser import browsed_episodes
from r3_repro.analysis.loading import KEY
from r3_repro.config import model_path
from r3_repro.engines.chat import load_tokenizer, render
from r3_repro.engines.hf import load_model
from r3_repro.evaluation import shades
from r3_repro.evaluation.episodes import episode_files, evaluate
from r3_repro.evaluation.shades import PART, make_shades, shade_files
from r3_repro.runs.layout import Run, open_run
from r3_repro.tasks.base import Problem, get_task, reflection_messages
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_json
from r3_repro.workflow.cli import app
from r3_repro.workflow.study import PUBLISHED_FILES

pytestmark = pytest.mark.filterwarnings("ignore:.*held-out problems are among those the base was trained on")
SETTINGS = {"test_size": 30, "draws": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run of arm r3 whose weights are those of the base with some noise, evaluated."
    run = open_run("smoke", root=str(tmp_path_factory.mktemp("shades")), **SETTINGS)
    model, torch_state = load_model(model_path(run.profile)), torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.add_(0.02 * torch.randn(model.lm_head.weight.shape, generator=torch_state))
    model.save_pretrained(run.training / "model")
    load_tokenizer(model_path(run.profile)).save_pretrained(run.training / "model")
    write_json(run.training / "manifest.json", {"steps": 1})
    evaluate(run)
    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    "How often a model has read a reflection, with a limit that can be set: `calls.append(-n)` raises after n more."
    real, made = shades.token_logprobs, list[int]()

    def counted(*args: object) -> list[float]:
        made.append(1)
        if made[0] < 0 and len(made) > -made[0]:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shades, "token_logprobs", counted)
    return made


def test_a_shade_is_the_difference_of_two_forward_passes(run: Run) -> None:
    table, episodes = make_shades(run), pd.read_parquet(episode_files(run)[0])
    assert len(table) == episodes.reflection.fillna("").str.len().gt(0).sum() > 40
    row = table.iloc[7]
    e = episodes.merge(row[KEY].to_frame().T.infer_objects(), on=KEY).iloc[0]
    tokenizer = load_tokenizer(model_path(run.profile))
    prompt = render(tokenizer, reflection_messages(get_task("countdown"), Problem("", json.loads(e.problem)), e.attempt))
    ids, found = tokenizer(e.reflection, add_special_tokens=False)["input_ids"], []
    for path in (model_path(run.profile), str(run.training / "model")):
        with torch.no_grad():
            logprobs = load_model(path)(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        found.append([logprobs[len(prompt) + k - 1, token].item() for k, token in enumerate(ids)])
    assert np.allclose(row.reflection_shades, np.subtract(found[1], found[0]), atol=2e-3) and np.ptp(row.reflection_shades) > 0.01
    joined = table.merge(episodes, on=KEY)
    assert joined.reflection_pieces.map("".join).eq(joined.reflection).all()


def test_a_killed_process_loses_the_part_that_it_was_at(run: Run, calls: list[int]) -> None:
    whole = make_shades(run)
    for file in shade_files(run):
        file.unlink()
    calls.append(-(PART + 10))
    with pytest.raises(KeyboardInterrupt):
        make_shades(run)
    assert not any(file.is_file() for file in shade_files(run))
    calls.clear()
    assert make_shades(run).equals(whole) and len(calls) == 2 * len(whole) - PART
    calls.clear()
    assert make_shades(run).equals(whole) and calls == []
    assert [f.name for f in shade_files(run)[0].parent.iterdir() if f.is_dir()] == [], "parts are removed"


def test_another_size_and_a_torn_table_are_read_again(run: Run, calls: list[int]) -> None:
    few = make_shades(run, 20)
    assert 0 < len(few) <= 20 and len(calls) == 2 * len(few)
    assert few.groupby("problem_id").size().max() > 1, "whole problems, with their draws"
    shade_files(run)[0].write_bytes(b"torn")
    calls.clear()
    assert make_shades(run, 20).equals(few) and len(calls) == 2 * len(few)


def test_a_tag_that_the_template_wrote_is_shown_and_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    e = pd.read_parquet(episode_files(run)[0]).dropna(subset="reflection").head(2)
    monkeypatch.setattr(shades, "opened_thought", lambda tokenizer: "<think>")
    plain = shades.asked_again(run, e)
    opened = shades.asked_again(run, e.assign(reflection="<think>" + e.reflection))
    assert [x[:2] for x in plain] == [x[:2] for x in opened]
    assert [pieces[0] for *_, pieces in opened] == [f"<think>{pieces[0]}" for *_, pieces in plain]


def test_the_command_says_what_it_stored_and_what_is_missing(run: Run) -> None:
    named = ["--profile", "smoke", "--root", str(run.root), "--set", "test_size=30", "--set", "draws=2"]
    done = CliRunner().invoke(app, ["shades", *named, "--reflections", "10"])
    assert done.exit_code == 0 and done.stdout.startswith("shades of r3 (seed 0): "), done.output
    manifest = json.loads(shade_files(run)[1].read_text("utf-8"))
    assert manifest["stage"] == "shades" and manifest["reflections"] <= 10 < manifest["of"]
    for arm, said in (("vanilla", "arm = vanilla is the model before training"), ("no_leak", "no weights that are trained")):
        wrong = CliRunner().invoke(app, ["shades", *named, "--arm", arm])
        assert wrong.exit_code == 2 and said in wrong.stderr
    added = run.training / "model/added.json"
    added.write_text("{}", "utf-8")
    with pytest.raises(
        SettingsError, match=r"no episodes of the weights in .*: evaluate first \(r3-repro evaluate --profile smoke"
    ):
        make_shades(run)
    added.unlink()
    assert {"*/shades/*.parquet", "*/shades/*.manifest.json"} <= set(PUBLISHED_FILES)


def test_the_page_finds_them_beside_the_episodes_or_where_it_is_told(run: Run, tmp_path: Path) -> None:
    table = make_shades(run)
    e, _ = browsed_episodes([run.model_dir])
    assert (e.shaded == "yes").sum() == len(table)
    moved = tmp_path / "elsewhere.parquet"
    shade_files(run)[0].rename(moved)
    assert "shaded" not in browsed_episodes([run.model_dir])[0]
    assert browsed_episodes([run.model_dir], shades=[moved])[0].equals(e)
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["browse", str(run.model_dir), "--out", str(out), "--shades", str(moved)])
    assert done.exit_code == 0 and out.stat().st_size > 100_000, done.output
