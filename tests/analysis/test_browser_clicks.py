"""The page of episodes in a headless Chromium: clicks, typing and keys do what they should, and texts of models do nothing."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
from attacks import ATTACKS
from chromium import CONTRAST, PROGRAM, Chromium, chromium
from test_browser import attacked

from r3_repro.analysis.benchmark_items import write_items_page
from r3_repro.analysis.browser import browsed_episodes, make_page
from r3_repro.testing import synthetic_episodes

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: install chromium or google-chrome")

COUNT = "document.getElementById('count').textContent"
DIALOG = "document.getElementById('episode')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        tab.look(1280, 900)
        yield tab


@pytest.fixture(scope="module")
def episodes() -> pd.DataFrame:
    both = [synthetic_episodes(problems=60, draws=2), synthetic_episodes("r3", 0, 0.4, 0.4, problems=60, draws=2)]
    both.append(synthetic_episodes("r3", 1, 0.4, 0.4, words=5.0, problems=60, draws=2))
    e = pd.concat(both).astype(object)
    e.loc[e.reflection.notna() & e.problem_id.isin({f"toy-{i:05}" for i in range(0, 60, 4)}), "reflection"] = "use each number"
    pieces = [[f"{w} " for w in r.split()] if isinstance(r, str) else None for r in e.reflection]
    e["reflection_pieces"], e["reflection_shades"] = pieces, [p and [1.0, -0.5, *[0.0] * (len(p) - 2)] for p in pieces]
    e.loc[(e.arm == "r3") & (e.seed == 1), ["reflection_pieces", "reflection_shades"]] = None
    e = browsed_episodes([e])[0]
    return e.assign(shaded=["yes" if p else "no" for p in e.reflection_pieces])


@pytest.fixture(scope="module")
def file(episodes: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(make_page(episodes, "Toy episodes", "A note."), "utf-8")
    return file


@pytest.fixture
def page(tab: Chromium, file: Path) -> Iterator[Chromium]:
    tab.look(1280, 900)
    tab.visit(file.as_uri())
    yield tab
    quiet(tab)


def quiet(tab: Chromium) -> None:
    "Nothing was thrown, refused by the policy, or asked from anywhere but the page's own file."
    wrong = [e for e in tab.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    asked = {e["params"]["request"]["url"].split("#")[0] for e in tab.events if e["method"] == "Network.requestWillBeSent"}
    assert wrong == [] and len(asked) <= 1 and all(u.startswith("file:") for u in asked), (wrong, asked)


def found(tab: Chromium, n: int) -> None:
    "Wait until so many episodes are found, and see them in the table."
    tab.wait(f"{COUNT}.startsWith('{n:,} of ')" if n else f"{COUNT}.startsWith('No episode')")
    assert tab.js("document.querySelectorAll('#episodes tbody tr[data-i]').length") == min(n, 25)


def link(e: pd.Series) -> str:
    return "#" + "/".join(quote(str(e[k]), safe="!'()*~") for k in ("task", "model", "arm", "seed", "mode", "draw", "problem_id"))


def said(tab: Chromium, selector: str) -> list[str]:
    return tab.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


def test_typing_searches_all_texts(page: Chromium, episodes: pd.DataFrame) -> None:
    found(page, len(episodes))
    texts = episodes[["label", "problem_id", "attempt", "reflection", "retry"]].fillna("").agg(" | ".join, axis=1)
    for query, words in (
        ("target", ["target"]),
        ("OP missed", ["op", "missed"]),
        ('"a op" right', ["a op", "right"]),
        ("none such", ["none such"]),
    ):
        page.write_text("#text", query)
        found(page, int(sum(all(w in t for w in words) for t in texts)))
    page.click("button[type=reset]")
    found(page, len(episodes))


def test_filters_join(page: Chromium, episodes: pd.DataFrame) -> None:
    left = episodes
    for column, value in (("arm", "r3"), ("seed", 1), ("mode", "sampled"), ("draw", 1), ("outcome", "failed twice")):
        page.choose(f"#by-{column}", f"{value} ")
        left = left[left[column] == value]
        found(page, len(left))
    ends = f"{len(left)} of {len(episodes)} episodes: {len(left)} failed twice"
    assert page.js(COUNT) == ends and 0 < len(left) < 60
    page.choose("#by-attempt_error", "missed_target ")
    left = left[left.attempt_error == "missed_target"]
    page.choose("#by-variety", "distinct ")
    left = left[left.variety == "distinct"]
    page.write_text("#least", "4")
    page.write_text("#most", "6")
    left = left[left.reflection_tokens.between(4, 6)]
    found(page, len(left))
    assert 0 < len(left) < 30


def test_shaded_reflections_are_found(page: Chromium, episodes: pd.DataFrame) -> None:
    for answer, hint in (
        ("yes", []),
        ("no", ["Only reflections with stored shades are coloured: filter by Shaded to find them."]),
    ):
        page.choose("#by-arm", "r3 ")
        page.choose("#by-seed", "0 " if answer == "yes" else "1 ")
        page.choose("#by-shaded", f"{answer} ")
        page.choose("#by-outcome", "repaired ")
        found(page, int(((episodes.outcome == "repaired") & (episodes.arm == "r3") & (episodes.seed == (answer == "no"))).sum()))
        page.click("#episodes tbody tr")
        page.wait(f"{DIALOG}.open")
        page.choose("#beside", "nothing")
        assert said(page, "#content > .hint") == hint and bool(said(page, ".up")) == (answer == "yes")
        legend = "What training added to the log-probability of each token, full colour at ±1"
        assert (answer == "no") or any(legend in text for text in said(page, ".reflection .hint"))
        page.click("#close")
        page.click("button[type=reset]")


def test_columns_sort_and_pages_turn(page: Chromium, episodes: pd.DataFrame) -> None:
    heading = "#episodes thead th:nth-last-child(2) [role=button], #episodes thead th:nth-last-child(2)"
    page.click(heading)
    page.click(heading)
    longest = str(int(episodes.reflection_tokens.max()))
    page.wait(f"document.querySelector('#episodes tbody tr td:nth-last-child(2)').textContent === '{longest}'")
    assert page.js("document.querySelector('#episodes thead th[aria-sort]').getAttribute('aria-sort')") == "descending"
    page.click(".dt-paging-button.next")
    page.wait("document.querySelector('.dt-paging-button.current').textContent === '2'")


def test_a_click_opens_the_whole_conversation(page: Chromium, episodes: pd.DataFrame) -> None:
    page.choose("#by-outcome", "repaired ")
    page.choose("#by-arm", "vanilla ")
    e = episodes[(episodes.outcome == "repaired") & (episodes.arm == "vanilla")].iloc[0]
    found(page, int(((episodes.outcome == "repaired") & (episodes.arm == "vanilla")).sum()))
    page.click("#episodes tbody tr")
    page.wait(f"{DIALOG}.open")
    assert page.js("location.hash") == link(e)
    first = said(page, ".talk:first-child pre")
    assert first[0] == e.attempt and first[1].strip() == e.reflection and first[-1] == e.retry
    assert said(page, ".question pre") == [e.problem] and e.problem_id in said(page, "#which")[0]
    assert said(page, ".talk:first-child .reflection .fact") == [f"{e.reflection_tokens} tokens", "distinct"]
    assert "right" in said(page, ".talk:first-child .turn:last-child .fact")
    assert said(page, ".talk:first-child .reflection > pre .up") == [e.reflection.split()[0] + " "]
    assert said(page, ".talk:first-child .reflection > pre .down") == [e.reflection.split()[1] + " "]
    styles = "[...document.querySelectorAll('.reflection > pre span')].slice(0, 3).map((s) => getComputedStyle(s))"
    looks = page.js(f"{styles}.map((s) => s.borderBottomStyle + s.backgroundColor)")
    assert len(set(looks)) == 3 and "Values of the tokens" in said(page, ".reflection summary")
    page.click("#close")
    page.wait(f"!{DIALOG}.open && location.hash === ''")
    page.click("#episodes tbody tr:nth-child(2)")
    page.wait(f"{DIALOG}.open")
    page.js("history.back()")
    page.wait(f"!{DIALOG}.open")


def test_keys_do_all_that_clicks_do(page: Chromium, episodes: pd.DataFrame) -> None:
    page.key("Tab")
    assert page.js("document.activeElement.id") == "skip"
    page.key("Enter")
    for key, row in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("ArrowUp", 0), ("ArrowUp", 0), ("ArrowDown", 1)):
        page.key(key)
        assert page.js("document.activeElement.dataset.i") == str(row)
    assert page.js("document.querySelectorAll('#episodes tr[tabindex=\"0\"]').length") == 1
    page.key("Enter")
    page.wait(f"{DIALOG}.open && document.activeElement.id === 'which'")
    for key, row in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.key(key)
        page.wait(f"location.hash === {json.dumps(link(episodes.iloc[row]))}")
        assert f"{row + 1} of {len(episodes)}" in said(page, "#which")[0]
    page.key("Escape")
    page.wait(f"!{DIALOG}.open && document.activeElement.dataset.i === '2'")
    for _ in range(23):
        page.key("ArrowDown")
    page.wait(
        "document.activeElement.dataset.i === '25' && document.querySelector('.dt-paging-button.current').textContent === '2'"
    )


def test_a_link_opens_its_episode(page: Chromium, file: Path, episodes: pd.DataFrame) -> None:
    e = episodes[(episodes.arm == "r3") & (episodes.outcome == "repaired")].iloc[-1]
    page.visit(file.as_uri() + link(e))
    page.wait(f"{DIALOG}.open")
    assert e.problem_id in said(page, "#which")[0] and page.js("document.getElementById('link').hash") == link(e)
    page.visit(file.as_uri() + link(e.copy(deep=True)).replace("toy-", "no-"))
    page.wait("!document.getElementById('problem').hidden")
    assert said(page, "#problem")[0].startswith("This page has no episode") and not page.js(f"{DIALOG}.open")


def test_arms_stand_side_by_side(page: Chromium, file: Path, episodes: pd.DataFrame) -> None:
    e = episodes[(episodes.arm == "r3") & (episodes.seed == 1) & (episodes["mode"] == "sampled") & (episodes.draw == 1)].iloc[5]
    same = episodes[(episodes.problem_id == e.problem_id) & (episodes["mode"] == "sampled") & (episodes.draw == 1)]
    vanilla, other = same[same.arm == "vanilla"].iloc[0], same[(same.arm == "r3") & (same.seed == 0)].iloc[0]
    page.visit(file.as_uri() + link(e))
    page.wait(f"{DIALOG}.open")
    heads = lambda: [h.split("  ")[0] for h in said(page, ".talk h3")]  # noqa: E731
    assert [h.startswith(w) for h, w in zip(heads(), ("vanilla", "r3, seed 1"), strict=True)] == [True, True]
    assert [said(page, f".talk:nth-child({k}) pre")[0] for k in (1, 2)] == [vanilla.attempt, e.attempt]
    tops = page.js("[...document.querySelectorAll('.talk')].map((t) => t.getBoundingClientRect().top)")
    assert tops[0] == tops[1], "beside one another"
    assert len(said(page, "#beside option")) == 1 + 2
    page.choose("#beside", "r3, seed 0")
    assert [said(page, f".talk:nth-child({k}) pre")[0] for k in (1, 2)] == [e.attempt, other.attempt]
    page.choose("#beside", "nothing")
    assert len(heads()) == 1
    page.js("document.getElementById('which').focus()")
    page.key("ArrowRight")
    page.wait(f"location.hash !== {json.dumps(link(e))}")
    assert len(heads()) == 1, "the choice stays"


def test_it_fits_a_telephone(page: Chromium, file: Path, episodes: pd.DataFrame) -> None:
    page.look(390, 844)
    page.visit(file.as_uri())
    assert not page.js("document.getElementById('more').open")
    assert page.js("document.documentElement.scrollWidth") <= 390
    page.click("#episodes tbody tr")
    page.wait(f"{DIALOG}.open")
    assert page.js(f"{DIALOG}.scrollWidth") <= 390
    tops = page.js("[...document.querySelectorAll('.talk')].map((t) => t.getBoundingClientRect().top)")
    assert tops[0] < tops[1], "one below the other"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everyone_can_read_it(page: Chromium, file: Path, dark: bool) -> None:
    page.look(1280, 900, dark)
    page.visit(file.as_uri())
    page.js("document.getElementById('more').open = true")
    bright = page.js("getComputedStyle(document.body).backgroundColor")
    assert (bright == "rgb(255, 255, 255)") != dark and page.js(CONTRAST) == []
    fields = "[...document.querySelectorAll('input, select, button, a')]"
    unnamed = f"{fields}.filter((e) => !(e.labels?.length || e.textContent.trim())).length"
    assert page.js(unnamed) == 0 and page.js("document.getElementById('count').getAttribute('role')") == "status"
    page.choose("#by-outcome", "repaired ")
    page.wait(f"{COUNT}.includes('repaired') && !{COUNT}.includes('twice')")
    page.click("#episodes tbody tr")
    page.wait(f"{DIALOG}.open")
    assert page.js(CONTRAST) == [] and page.js(unnamed) == 0
    levels = [int(t[1]) for t in page.js("[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => h.tagName)")]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels)), levels
    roles = {n["role"]["value"] for n in page.call("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]}
    assert {"dialog", "heading", "button", "link", "combobox"} <= roles


NAMED = "\0-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0041"
PLAIN = re.compile(f"[^{NAMED}]+")
"What a page must show letter by letter; the rest is named in boxes."


def clean(value: object) -> object:
    "A text as a link holds it: without halves of characters."
    return re.sub("[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value


def test_no_text_of_a_model_does_anything(tab: Chromium, tmp_path: Path) -> None:
    e, _ = browsed_episodes([attacked()])
    for shaded in (True, False):
        file = tmp_path / f"attacks-{shaded}.html"
        file.write_text(make_page(e if shaded else e.drop(columns="reflection_pieces"), ATTACKS[1], ATTACKS[3]), "utf-8")
        tab.look(1280, 900)
        tab.visit(file.as_uri())
        elements = "document.querySelectorAll('script, img, svg, iframe, style, link, base, meta, template, textarea').length"
        before = tab.js(elements)
        for k in range(tab.js("document.querySelectorAll('#episodes thead th').length")):
            tab.click(f"#episodes thead th:nth-child({k + 1})")
        tab.write_text("#text", "&amp;")
        tab.wait(f"{COUNT}.startsWith('2 of ')")
        tab.write_text("#text", "")
        tab.wait(f"{COUNT}.startsWith('{len(e)} of ')")
        for _, row in e[e.arm == "vanilla"].iterrows():
            tab.js(f"location.hash = {json.dumps(link(row.map(clean)))}")
            name = json.dumps(f"problem {row.problem_id.partition(':')[0]}:")
            tab.wait(f"{DIALOG}.open && document.getElementById('content').textContent.includes({name})")
            if not row.attempt:
                assert said(tab, ".talk:first-child .turn:nth-of-type(1) .hint") == ["(empty text)"]
                continue
            shown = said(tab, ".talk:first-child .turn:nth-of-type(1) pre")[0]
            if len(row.attempt) <= 6000:
                assert all(piece in shown for piece in PLAIN.findall(row.attempt))
            if PLAIN.fullmatch(row.attempt):
                assert shown == (row.attempt if len(row.attempt) <= 6000 else row.attempt[:4000])
            assert len(shown) <= 6000
        assert tab.js(elements) == before and tab.js("document.documentElement.dataset.ran") is None
        assert not tab.js("document.querySelectorAll('a[href^=javascript]').length")
        quiet(tab)


def open_only(tab: Chromium, file: Path, attempt: str) -> None:
    "Open the only episode of a page, whose attempt is this text."
    table = synthetic_episodes(problems=1, modes=("greedy",)).astype(object).assign(attempt=pd.Series([attempt], dtype=object))
    file.write_text(make_page(browsed_episodes([table])[0]), "utf-8")
    tab.visit(file.as_uri())
    tab.click("#episodes tbody tr")
    tab.wait(f"{DIALOG}.open")


def test_what_cannot_be_seen_is_named(tab: Chromium, tmp_path: Path) -> None:
    text = "nul\0\0 \u202egnp.exe\u202c half \ud83d whole \U0001f600 line\u2028 \r\n\ttab zero\u200bwidth"
    open_only(tab, tmp_path / "named.html", text)
    assert said(tab, ".talk .turn:first-of-type pre .char") == [
        "U+0000×2",
        "U+202E",
        "U+202C",
        "U+D83D",
        "U+2028",
        "U+000D",
        "U+200B",
    ]
    expected = "nulU+0000×2 U+202Egnp.exeU+202C half U+D83D whole \U0001f600 lineU+2028 U+000D\n\ttab zeroU+200Bwidth"
    assert said(tab, ".talk .turn:first-of-type pre")[0] == expected


def test_a_huge_text_is_cut_and_can_be_had_whole(tab: Chromium, tmp_path: Path) -> None:
    text = "😀" * 60_000 + "the end"
    open_only(tab, tmp_path / "huge.html", text)
    assert said(tab, ".talk .turn:first-of-type pre") == ["😀" * 2000]
    assert said(tab, ".more") == ["Show 100,000 of 116,007 more characters"]
    tab.click(".more")
    assert said(tab, ".more") == ["Show all: 16,007 more characters"]
    tab.click(".more")
    assert said(tab, ".talk .turn:first-of-type pre") == [text] and said(tab, ".more") == []
    quiet(tab)


def test_items_of_benchmarks_are_found_by_what_changed(tab: Chromium, tmp_path: Path) -> None:
    for model, right in (("vanilla", "1100"), ("r3-seed0", "1010")):
        (tmp_path / "forgetting/samples" / model).mkdir(parents=True)
        rows = [
            {"task": "t", "doc_id": k, "doc_hash": f"h{k}", "doc": {"question": f"{k} + <b>1</b>?", "choices": ["x", "y"]}}
            | {"target": 1, "resps": [[[-2.0, False]], [[-1.0 - k, False]]], "acc_norm": int(c)}
            for k, c in enumerate(right)
        ]
        (tmp_path / f"forgetting/samples/{model}/HellaSwag.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    write_items_page(tmp_path, tmp_path / "items.html")
    tab.look(1280, 900)
    tab.visit((tmp_path / "items.html").as_uri())
    assert "Reflection" not in said(tab, "#episodes thead th") and not tab.js("document.querySelector('#least')")
    tab.choose("#by-change", "lost ")
    found(tab, 1)
    tab.click("#episodes tbody tr")
    tab.wait(f"{DIALOG}.open")
    assert said(tab, ".talk h3 .outcome") == ["right", "wrong"]  # vanilla beside r3
    assert "1 + <b>1</b>?\n(A) x\n(B) y\n\nRight answer: (B)" in said(tab, ".question pre")[0]
    assert said(tab, ".talk h4") == ["Answerright", "Answerwrong"]
    quiet(tab)
