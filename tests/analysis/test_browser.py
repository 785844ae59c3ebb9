"""The page of episodes holds what the tables hold, keeps whole problems, and lets nothing in them be HTML."""

import base64
import gzip
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from attacks import ATTACKS
from typer.testing import CliRunner

import r3_repro.analysis.browser as browser
from r3_repro.analysis.browser import browsed_episodes, episode_places, make_page, page_columns, table_library, write_page
from r3_repro.testing import synthetic_episodes
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_json, write_parquet
from r3_repro.workflow.cli import app


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Two tasks; Countdown with two seeds of r3."
    root = tmp_path_factory.mktemp("browse") / "tiny"
    for task in ("countdown", "mine.TASK"):
        of = {"vanilla": ("vanilla", 0), "r3-seed0": ("r3", 0), "r3-seed1": ("r3", 1)}
        for name, (arm, seed) in of.items():
            e = synthetic_episodes(arm, seed, 0.3, 0.3, problems=40, draws=2)
            problem = e.problem.map(lambda p: json.dumps({"nums": [json.loads(p)["number"], 2], "target": 6}))
            write_parquet(root / task / "tiny-a/episodes" / f"{name}.parquet", e.assign(problem=problem))
    write_json(root / "countdown/tiny-a/episodes/vanilla.manifest.json", {"profile": {"retry_turn": "And now?"}})
    return root


class Parts(HTMLParser):
    "Elements of a page, and the text in each script and style, as a browser reads them."

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.texts.append((self.tags[-1][0], data))


def data_of(page: str) -> dict[str, Any]:
    packed = re.search(r'id="data">([^<]*)<', page)
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def decoded(column: dict[str, list[Any]]) -> list[Any]:
    return [column["values"][c] if c >= 0 else None for c in column["codes"]]


def attacked() -> pd.DataFrame:
    "Every attack in every text that a table can hold, of the untrained model and a trained one."
    rows = []
    for arm in ("vanilla", ATTACKS[0]):
        for k, text in enumerate(ATTACKS):
            row = {"arm": arm, "seed": 0, "mode": "greedy", "draw": 0, "problem_id": f"{k}: {text[:200]}", "problem": text}
            row |= {
                "attempt": text,
                "attempt_ok": False,
                "attempt_error": text[:60],
                "attempt_tokens": 1,
                "attempt_finish": text[:9],
            }
            row |= {"reflection": text, "reflection_tokens": k, "reflection_finish": "stop", "retry": text, "retry_tokens": 1}
            row |= {"retry_ok": bool(k % 2), "retry_error": "" if k % 2 else text[:60], "retry_finish": "stop"}
            rows.append(row | {"reflection_pieces": [text[:50], text[50:99]], "reflection_shades": [0.5, -0.1]})
    return pd.DataFrame(rows, dtype=object)


def test_columns_hold_the_table(study: Path) -> None:
    e, note = browsed_episodes([study])
    stored = pd.concat([pd.read_parquet(f) for f in study.glob("*/*/episodes/*.parquet")])
    assert len(e) == len(stored) == 2 * 3 * 40 * 3 and note.startswith("All 720 episodes of 80 problems. Tiny models (tiny-a)")
    columns = page_columns(e)
    for name in ("arm", "seed", "problem_id", "attempt", "attempt_error", "reflection", "reflection_tokens", "retry"):
        assert decoded(columns[name]) == [None if pd.isna(v) else v for v in e[name]], name
        assert len(set(map(str, columns[name]["values"]))) == len(columns[name]["values"])
        assert sorted(e[name].dropna().map(str)) == sorted(stored[name].dropna().map(str)), name
    assert json.loads(json.dumps(columns)) == columns, "no numbers of numpy"
    assert data_of(make_page(e))["columns"] == columns


def test_the_conversation_is_the_one_that_was_had(study: Path) -> None:
    e, _ = browsed_episodes([study], modes=["greedy"])
    ours, theirs = e[e.task == "countdown"].iloc[0], e[e.task == "mine.TASK"].iloc[0]
    assert ours.prompt.startswith("Using the numbers [0, 2]") and ours.again == "And now?" and ours.label == "0, 2 → 6"
    assert ours.request.startswith("You tried solving the problem")
    assert theirs.prompt == theirs.problem and theirs.request is None and theirs.again is None, "its task is not to be had here"


def test_problems_of_another_task_are_shown_as_they_are_stored(tmp_path: Path) -> None:
    for problem in ('{"number": 3}', "no JSON", None):
        table = synthetic_episodes(problems=2, modes=("greedy",)).astype(object).assign(problem=problem)
        write_parquet(tmp_path / "countdown/tiny-a/episodes/vanilla.parquet", table)
        e, _ = browsed_episodes([tmp_path / "countdown"])
        assert list(e.prompt.map(lambda p: None if pd.isna(p) else p)) == [problem] * 2 and list(e.label) == list(e.problem_id)


def test_outcomes_and_kinds_are_counted_before_anything_is_left_out(study: Path) -> None:
    e, _ = browsed_episodes([study / "countdown/tiny-a"])
    ok, again = e.attempt_ok.astype(bool), e.retry_ok.fillna(False).astype(bool)
    assert (e.outcome == "right at once").eq(ok).all() and (e.outcome == "repaired").eq(again).all()
    table = synthetic_episodes(problems=3, modes=("greedy",), first=0.0).assign(reflection=["same", "same", "own"])
    one, _ = browsed_episodes([table], limit=1)
    assert (
        len(one) == 1
        and dict(zip(table.reflection, ["copied", "copied", "distinct"], strict=True))[one.reflection[0]] == one.variety[0]
    )
    no_retry, _ = browsed_episodes([table.drop(columns=["retry", "retry_ok"])])
    assert set(no_retry.outcome) == {"failed, no retry"}


def test_a_limit_keeps_whole_problems_the_same_for_all(study: Path) -> None:
    e, note = browsed_episodes([study], limit=200)
    assert note.startswith("198 of 720 episodes: all of 22 problems, drawn by chance (seed 0) from 80.")
    assert (
        e.groupby(["task", "problem_id"]).size().eq(9).all()
        and e.groupby(["task", "arm", "seed"]).problem_id.nunique().nunique() <= 2
    )
    assert e.equals(browsed_episodes([study], limit=200)[0]), "the same problems each time"
    assert len(browsed_episodes([study], limit=1)[0]) == 9, "at least one problem"


def test_arms_modes_and_seeds_are_chosen(study: Path) -> None:
    e, _ = browsed_episodes([study / "countdown"], arms=["vanilla", "r3"], modes=["sampled"], seeds=[1])
    assert set(zip(e.arm, e.seed, strict=True)) == {("vanilla", 0), ("r3", 1)} and set(e["mode"]) == {"sampled"}
    one, _ = browsed_episodes([study / "countdown/tiny-a/episodes/r3-seed1.parquet"])
    assert set(one.task) == {"countdown"} and one.prompt.str.startswith("Using the numbers").all()


def test_tables_of_anyones_are_read(tmp_path: Path) -> None:
    pd.DataFrame({"problem_id": [1, 2], "attempt_ok": [True, False]}).to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "half.jsonl").write_text('{"problem_id": "a", "attempt_ok": false, "reflection": "\\ud83d"}\n\n', "utf-8")
    e, _ = browsed_episodes([tmp_path / "mine.csv", str(tmp_path / "half.jsonl")])
    assert list(e.arm) == ["mine", "mine", "half"] and e.reflection.iloc[2] == "\ud83d"
    assert data_of(make_page(e))["columns"]["reflection"]["values"] == ["\ud83d"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: pd.concat([e, e.iloc[:1]]), "an episode is there twice"),
        (lambda e: e.drop(columns="attempt_ok"), "no column 'attempt_ok'"),
        (lambda e: e.assign(seed="x"), "table 1: "),
        (lambda e: e.iloc[:0], "no episodes: give a folder"),
        (lambda e: e.assign(reflection_pieces=[["a"]] * len(e), reflection_shades=[[]] * len(e)), "1 reflection_pieces and 0"),
        (lambda e: e.assign(reflection_pieces="ab", reflection_shades=[[1.0]] * len(e)), "0 reflection_pieces and 1"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(change: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        make_page(browsed_episodes([change(synthetic_episodes(problems=3))])[0])


def test_what_is_no_source_is_said(tmp_path: Path, study: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", "utf-8")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("no", "no is not there"),
        ("notes.txt", "is no table of episodes"),
        ("empty", r"has no episodes/\*.parquet"),
    ):
        with pytest.raises(SettingsError, match=said):
            episode_places(tmp_path / place)
    with pytest.raises(SettingsError, match="two sources hold the same episode"):
        browsed_episodes([study, study / "countdown"])


def test_the_command_says_what_the_page_holds(tmp_path: Path, study: Path) -> None:
    out = tmp_path / "deep/page.html"
    run = lambda *more: CliRunner().invoke(app, ["browse", str(study), "--out", str(out), *more])  # noqa: E731
    done = run("--limit", "100", "--arms", "vanilla r3", "--modes", "greedy", "--seeds", "0")
    assert done.exit_code == 0 and "100 of 160 episodes: all of 50 problems, drawn by chance (seed 0) from 80." in done.output
    assert "100 of 160 episodes" in out.read_text("utf-8") and "<title>Episodes of tiny</title>" in out.read_text("utf-8")
    for more, said in (
        (["--arms", "r4"], "no episodes of arm r4: there are r3, vanilla"),
        (["--seeds", "7"], "no episodes of seed 7: there are 0, 1"),
    ):
        wrong = run(*more)
        assert wrong.exit_code == 2 and said in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    with pytest.raises(SettingsError, match="name a file that ends in"):
        write_page([study], tmp_path / "page.htm")
    for title, shown in (("", "Episodes"), ("Mine", "Mine")):
        write_page([synthetic_episodes(problems=1)], out, title)
        assert f"<title>{shown}</title>" in out.read_text("utf-8")


def test_no_text_of_a_model_is_in_the_page_as_it_is() -> None:
    e, _ = browsed_episodes([attacked()])
    page = make_page(e, f"<script>{ATTACKS[3]}\0\ud800", ATTACKS[1])
    assert page.encode("utf-8") and "\0" not in page
    assert "data-ran" not in html.unescape(page) and not any(a in page.replace("{{", "") for a in ATTACKS if "<" in a)
    parts = Parts(page)
    names = [tag for tag, _ in parts.tags]
    assert names.count("script") == 3 and not {"img", "svg", "iframe", "link"} & set(names)
    assert set(data_of(page)["columns"]["attempt"]["values"]) == set(ATTACKS), "every text is whole"


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_fetched() -> None:
    page = make_page(browsed_episodes([synthetic_episodes(problems=3)])[0])
    parts = Parts(page)
    (policy,) = [a["content"] for tag, a in parts.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in policy and not re.search(r"unsafe|https?:|\*|data:|blob:", policy)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for _, t in parts.texts if len(t) > 99}
    data = re.search(r'id="data">([^<]*)<', page)
    assert data and set(re.findall(r"'sha256-[^']*'", policy)) == hashes - {
        f"'sha256-{base64.b64encode(hashlib.sha256(data[1].encode()).digest()).decode()}'"
    }
    assert not any({"src", "onclick", "style"} & set(a) for _, a in parts.tags)
    own = browser.resource("assets/browser/page.js").read_text("utf-8")
    assert not re.search(r"innerHTML|insertAdjacent|outerHTML|document\.write|\beval\b|new Function|fetch\(|http", own)


def test_the_page_is_small_and_the_same_each_time(study: Path) -> None:
    e, note = browsed_episodes([study])
    page = make_page(e, "t", note)
    assert page == make_page(e, "t", note)
    assert len(page) - len(table_library()) < 120_000, "720 episodes and our own files"


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(browser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "r3_repro\[browse\]"'):
        table_library()
    other = tmp_path / "itables/html/dt_bundle.js"
    other.parent.mkdir(parents=True)
    other.write_text("export default 1", "utf-8")
    spec = type("Spec", (), {"origin": str(tmp_path / "itables/__init__.py")})
    monkeypatch.setattr(browser.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(SettingsError, match="in another form"):
        table_library()
