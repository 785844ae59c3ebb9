"""The choice of failures: against the definition, against exact likeness, for any order of storage; its card and its upload."""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub as hub
import numpy as np
import pandas as pd
import pytest
from datasets import load_dataset
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from r3_repro.runs import file_hash, write_json, write_parquet
from r3_repro.selection import (
    COLUMNS,
    FILES,
    PERMUTATIONS,
    STAGES,
    Origin,
    Rule,
    Unlike,
    as_dataset,
    as_funnel,
    bands,
    card,
    choose,
    plot_funnel,
    push,
    rule_of,
    shingles,
    write_set,
)
from r3_repro.settings import SettingsError, load_profile
from r3_repro.tasks import digest, get_task

HERE = "127.0.0.1"
ERRORS = ["no_answer", "wrong_numbers", "missed_target"]
few = settings(max_examples=60, deadline=None)


# --- what to choose from ---


@st.composite
def worlds(draw, most: int = 12) -> SimpleNamespace:
    "Outcomes of some problems, all drawn to the same length, with a text for each attempt from few words."
    n, samples = draw(st.integers(0, most)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return world(rng, n, samples, draw(st.integers(1, 4)), rng.random())


def world(rng: np.random.Generator, n: int, samples: int, words: int = 4, right: float = 0.4) -> SimpleNamespace:
    "Outcomes of n problems, and texts of one to six words out of `words`."
    outcomes = np.where(rng.random((n, samples)) < right, 0, rng.integers(1, len(ERRORS) + 1, (n, samples))).astype(np.int16)
    ids = [f"{i}:{a}" for i, a in enumerate(rng.integers(0, 10**6, n))]
    texts = {
        (i, k): " ".join(f"w{x}" for x in rng.integers(0, words, rng.integers(1, 7))) for i in range(n) for k in range(samples)
    }
    lengths = np.full(n, samples)
    return SimpleNamespace(outcomes=outcomes, cut=rng.random((n, samples)) < 0.3, ids=ids, texts=texts, lengths=lengths)


rules = st.builds(
    Rule,
    failure_rule=st.sampled_from(["any", "all"]),
    max_failures=st.integers(0, 6),
    keep_truncated=st.booleans(),
    keep_unparseable=st.booleans(),
    near_duplicates=st.sampled_from([1.0, 0.9, 0.5, 0.2]),
    max_per_error=st.integers(0, 3),
    pass_rate_min=st.sampled_from([0.0, 0.2, 0.5]),
    pass_rate_max=st.sampled_from([0.5, 0.8, 1.0]),
    seed=st.integers(0, 5),
)


def pick(w: SimpleNamespace, rule: Rule, **more) -> tuple[pd.DataFrame, pd.DataFrame]:
    "The choice, with the ids of the problems instead of their places."
    options = {"unparseable": ["no_answer"], "fetch": lambda keys: [w.texts[key] for key in keys]} | more
    rows, funnel = choose(w.outcomes, w.cut, w.lengths, w.ids, ERRORS, rule, **options)
    return rows.assign(place=[w.ids[i] for i in rows.place]), funnel


def by_hand(w: SimpleNamespace, rule: Rule) -> list[tuple[str, int]]:
    "The definition of the choice in loops, with exact likeness: problem and sample."
    found = []
    for row, cut, length, name in zip(w.outcomes.tolist(), w.cut.tolist(), w.lengths.tolist(), w.ids, strict=True):
        row = row[:length]
        rate = sum(x == 0 for x in row) / max(1, len(row))
        may = [
            k
            for k, x in enumerate(row)
            if x > 0 and (rule.keep_truncated or not cut[k]) and (rule.keep_unparseable or ERRORS[x - 1] != "no_answer")
        ]
        some = any(x > 0 for x in row) if rule.failure_rule == "any" else bool(row) and all(x > 0 for x in row)
        if some and may and rule.pass_rate_min <= rate <= rule.pass_rate_max:
            place = digest([rule.seed, name], 12)
            sample = may[int(place, 16) % len(may)]
            found.append((place, name, sample, row[sample], w.texts.get((w.ids.index(name), sample), "")))
    kept: list[tuple] = []
    for one in sorted(found):
        full = rule.max_per_error and sum(k[3] == one[3] for k in kept) >= rule.max_per_error
        alike = rule.near_duplicates < 1 and any(likeness(k[4], one[4]) >= rule.near_duplicates for k in kept)
        if not full and not alike and len(kept) < (rule.max_failures or len(found)):
            kept.append(one)
    return [(name, sample) for _, name, sample, *_ in kept]


@cache
def triples(text: str) -> frozenset[tuple[str, ...]]:
    words = ["", "", *re.findall(r"\w+|[^\w\s]", text.casefold()), "", ""]
    return frozenset(tuple(words[i : i + 3]) for i in range(len(words) - 2))


def likeness(a: str, b: str) -> float:
    "Jaccard similarity of two texts' padded triples of words, as sets of tuples."
    return len(triples(a) & triples(b)) / len(triples(a) | triples(b))


def keep_failures_before(attempts: pd.DataFrame, rule: str, limit: int = 0, seed: int = 0) -> pd.DataFrame:
    "How failures were chosen in version 1, when all attempts were one table."
    rows = []
    for problem_id, group in attempts.groupby("problem_id", sort=True):
        failed = group[~group.ok]
        if len(failed) == 0 or (rule == "all" and len(failed) < len(group)):
            continue
        place = digest([seed, problem_id], 12)
        row = failed.iloc[int(place, 16) % len(failed)]
        rows.append(row.to_dict() | {"pass_rate": float(group.ok.mean()), "_place": place})
    kept = pd.DataFrame(rows, columns=[*attempts.columns, "pass_rate", "_place"])
    kept = kept.sort_values("_place", ignore_index=True).drop(columns="_place")
    return kept.head(limit) if limit else kept


# --- the choice ---


@few
@given(worlds(), rules)
def test_choice_is_its_definition(w: SimpleNamespace, rule: Rule) -> None:
    rows, funnel = pick(w, rule)
    wanted = by_hand(w, rule)
    assert list(zip(rows.place, rows["sample"], strict=True)) == wanted
    assert (
        funnel.stage.tolist() == list(STAGES)
        and funnel.problems.iloc[-1] == len(wanted)
        and funnel.problems.iloc[0] == len(w.ids)
    )
    assert (funnel.lost >= 0).all() and funnel.lost.sum() == len(w.ids) - len(wanted)


@few
@given(worlds(), st.sampled_from(["any", "all"]), st.integers(0, 5), st.integers(0, 3))
def test_default_settings_choose_what_they_chose_before(w: SimpleNamespace, failure_rule: str, limit: int, seed: int) -> None:
    table = pd.DataFrame(
        [(w.ids[i], k, int(x) == 0, ERRORS[x - 1] if x else "") for (i, k), x in np.ndenumerate(w.outcomes)],
        columns=["problem_id", "sample", "ok", "error"],
    )
    before = keep_failures_before(table, failure_rule, limit, seed)
    rows, _ = pick(w, Rule(failure_rule, limit, seed=seed), fetch=None)
    assert rows.place.tolist() == before.problem_id.tolist() and rows["sample"].tolist() == before["sample"].tolist()
    assert rows.pass_rate.tolist() == before.pass_rate.tolist() and rows.error.tolist() == before.error.tolist()


@few
@given(worlds(), rules, st.randoms())
def test_order_of_storage_is_indifferent(w: SimpleNamespace, rule: Rule, random) -> None:
    order = list(range(len(w.ids)))
    random.shuffle(order)
    texts = {(at, k): w.texts[i, k] for at, i in enumerate(order) for k in range(w.outcomes.shape[1])}
    ids = [w.ids[i] for i in order]
    turned = SimpleNamespace(outcomes=w.outcomes[order], cut=w.cut[order], ids=ids, texts=texts, lengths=w.lengths[order])
    (rows, funnel), (again, funnel_again) = pick(w, rule), pick(turned, rule)
    assert rows.equals(again) and funnel.equals(funnel_again)


@few
@given(worlds(), rules, st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_further_samples_change_nothing(w: SimpleNamespace, rule: Rule, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w.lengths = rng.integers(0, w.outcomes.shape[1] + 1, len(w.ids))
    inside = np.arange(w.outcomes.shape[1]) < w.lengths[:, None]
    bare = SimpleNamespace(**vars(w) | {"outcomes": np.where(inside, w.outcomes, -1), "cut": w.cut & inside})
    extra = rng.integers(-1, 4, (len(w.ids), more)).astype(np.int16)
    full = SimpleNamespace(
        **vars(w) | {"outcomes": np.hstack([w.outcomes, extra]), "cut": np.hstack([w.cut, rng.random(extra.shape) < 0.5])}
    )
    (rows, funnel), (again, funnel_again) = pick(bare, rule), pick(full, rule)
    assert rows.equals(again) and funnel.equals(funnel_again)
    assert list(zip(rows.place, rows["sample"], strict=True)) == by_hand(w, rule)


@few
@given(worlds(most=40), rules, st.integers(1, 7))
def test_bounds_hold_however_texts_are_read(w: SimpleNamespace, rule: Rule, chunk: int) -> None:
    sizes: list[int] = []

    def fetch(keys: list[tuple[int, int]]) -> list[str]:
        sizes.append(len(keys))
        return [w.texts[key] for key in keys]

    rows, _ = pick(w, rule, fetch=fetch, chunk=chunk)
    assert rows.equals(pick(w, rule)[0]) and max(sizes, default=0) <= chunk
    assert rows.place.is_unique and rows.pass_rate.between(rule.pass_rate_min, rule.pass_rate_max).all()
    assert rule.max_failures == 0 or len(rows) <= rule.max_failures
    assert rule.max_per_error == 0 or max(Counter(rows.error).values(), default=0) <= rule.max_per_error
    assert rule.keep_unparseable or not (rows.error == "no_answer").any()
    at = [w.ids.index(name) for name in rows.place]
    assert (w.outcomes[at, rows["sample"]] > 0).all() and (rule.keep_truncated or not w.cut[at, rows["sample"]].any())
    assert not sizes or rule.near_duplicates < 1


def test_choice_prefers_no_sample_and_no_problem() -> None:
    n, failed = 20_000, [1, 2, 4, 7, 8, 11]
    outcomes = np.zeros((n, 12), np.int16)
    outcomes[:, failed] = 3
    ids = [f"{i}:2-3-5" for i in range(n)]
    rows, _ = choose(outcomes, np.zeros_like(outcomes, bool), np.full(n, 12), ids, ERRORS, Rule(seed=4))
    seen = rows["sample"].value_counts()
    assert sorted(seen.index) == failed and chisquare(seen).pvalue > 0.001
    assert chisquare(np.bincount(rows.place[:5000] * 10 // n)).pvalue > 0.001  # the first quarter comes from everywhere
    other, _ = choose(outcomes, np.zeros_like(outcomes, bool), np.full(n, 12), ids, ERRORS, Rule(seed=5))
    both = rows.merge(other, on="place")
    table = pd.crosstab(both.sample_x, both.sample_y).to_numpy().ravel()
    assert chisquare(table).pvalue > 0.001  # another seed, another choice, independent of the first


def test_texts_are_read_a_chunk_at_a_time_and_no_more_than_needed() -> None:
    w = world(np.random.default_rng(0), 3000, 2, words=1000, right=0.3)
    asked: list[int] = []

    def fetch(keys: list[tuple[int, int]]) -> list[str]:
        asked.append(len(keys))
        return [f"{i} {k} x{i}" for i, k in keys]

    rows, _ = pick(w, Rule(near_duplicates=0.99, max_failures=300), fetch=fetch)
    assert len(rows) == 300 and asked == [1024]
    asked.clear()
    pick(w, Rule(near_duplicates=0.99), fetch=fetch, chunk=1000)
    assert asked[:2] == [1000, 1000] and len(asked) == 3
    asked.clear()
    rows, funnel = pick(w, Rule(near_duplicates=0.99, max_per_error=1), fetch=fetch, chunk=1000)
    assert len(rows) == 3 and asked == [1000]  # texts of types that are full are not read
    assert funnel.set_index("stage").lost["under the cap"] == funnel.problems.tolist()[4] - 3


def test_what_cannot_be_chosen_from_is_refused() -> None:
    w = world(np.random.default_rng(0), 5, 4)
    with pytest.raises(ValueError, match="of its first 4 samples only 3 are drawn"):
        gap = w.outcomes.copy()
        gap[2, 1] = -1
        pick(SimpleNamespace(**vars(w) | {"outcomes": gap}), Rule())
    with pytest.raises(ValueError, match="4 distinct ids"):
        pick(SimpleNamespace(**vars(w) | {"ids": [*w.ids[:4], w.ids[0]]}), Rule())
    with pytest.raises(ValueError, match="no error types"):
        pick(w, Rule(), unparseable=["nonsense"])
    with pytest.raises(ValueError, match="'any' or 'all'"):
        pick(w, Rule(failure_rule="most"))
    with pytest.raises(ValueError, match="compares texts"):
        pick(w, Rule(near_duplicates=0.5), fetch=None)
    rows, funnel = pick(SimpleNamespace(**vars(w) | {"outcomes": np.full((5, 4), -1)}), Rule())
    assert rows.empty and funnel.problems.tolist() == [5, 0, 0, 0, 0, 0, 0, 0]


def test_rule_is_in_the_profile() -> None:
    p = load_profile("tiny", failure_rule="all", near_duplicates="0.8", keep_truncated="false", max_per_error=7, data_seed=9)
    assert rule_of(p) == Rule("all", 2000, False, True, 0.8, 7, 0.0, 1.0, 9)
    for name in ("countdown", "function_calling"):
        assert set(get_task(name).unparseable) < set(get_task(name).errors)


# --- near-duplicates ---


@given(st.text(max_size=60), st.text(max_size=60))
@few
def test_likeness_is_that_of_sets_of_words(a: str, b: str) -> None:
    own, other = shingles(a), shingles(b)
    both = len(np.intersect1d(own, other))
    assert both / (len(own) + len(other) - both) == likeness(a, b)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95])
def test_nothing_unlike_is_dropped_and_next_to_nothing_alike_kept(threshold: float) -> None:
    rng = np.random.default_rng(1)
    stories = [[f"w{x}" for x in rng.integers(0, 400, 80)] for _ in range(25)]
    texts = []
    for _ in range(250):  # versions of 25 stories with up to 29 words changed
        words = list(stories[rng.integers(25)])
        for i in rng.integers(0, 80, rng.integers(0, rng.integers(1, 31))):
            words[i] = f"v{rng.integers(1000)}"
        texts.append(" ".join(words))
    unlike, kept, missed = Unlike(threshold, seed=3), list[str](), 0
    for text in texts:
        most = max((likeness(text, k) for k in kept), default=0.0)
        if unlike.add(text):
            kept.append(text)
            missed += most >= threshold
        else:
            assert most >= threshold  # exactly: never below
    assert 25 <= len(kept) < 250 and missed <= 2
    again = Unlike(threshold, seed=3)
    assert [again.add(t) for t in texts].count(True) == len(kept)
    assert not any(again.add(t) for t in kept)  # the same text is always found


def test_bands_miss_few() -> None:
    for threshold in np.linspace(0.06, 0.99, 40):
        number, width = bands(threshold)
        assert number * width <= PERMUTATIONS and number >= 2 and (1 - threshold**width) ** number <= 1e-3 + 1e-12


def test_lone_surrogates_and_long_texts_do_no_harm() -> None:
    unlike = Unlike(0.9)
    assert unlike.add("\ud800 x") and not unlike.add("\ud800  x") and unlike.add("y " * 100_000) and unlike.add("z")


# --- the dataset ---


def a_table(n: int = 30) -> pd.DataFrame:
    attempts = [f"I say {i}\n| pipe | `code` \u2028 --- \ufffd é {'x' * i}" for i in range(n)]
    return pd.DataFrame({
        "problem_id": [f"{i}:1-2" for i in range(n)], "problem": [json.dumps({"target": i}) for i in range(n)],
        "attempt": attempts, "error": (ERRORS * n)[:n], "tokens": range(n), "finish": "stop", "pass_rate": np.arange(n) / n,
        "place": range(n),
    })  # fmt: skip


FUNNEL = as_funnel({s: 40 for s in list(STAGES)[:5]}, Counter(alike=4, cap=3), 30)
ORIGIN = Origin("owner/model-1B", "owner/model-1B@abc", "countdown", "owner/problems", "paper", "python -m x", {"top_p": 1.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A folder of failures as it lies in the run tree: set, card, JSON, and the store of attempts."
    folder = tmp_path / "failures"
    write_set(folder, a_table(), FUNNEL, Rule(), ORIGIN)
    write_parquet(folder / "attempts" / "part-00000001.parquet", pd.DataFrame({"secret": ["all attempts"]}))
    for path in (folder / "attempts" / "README.md", folder / "attempts" / "summary.json", folder / ".lock", folder / "notes.txt"):
        path.write_text("not to be uploaded")
    write_json(folder / "summary.json", {"problems": 40})
    write_json(folder / "manifest.json", {"hashes": {"failures": file_hash(folder / "failures.parquet")}})
    return folder


def test_folder_loads_as_a_dataset_without_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"] and loaded["train"].column_names == list(COLUMNS)
    own = as_dataset(folder)
    assert loaded["train"].features == own.features == as_dataset(a_table()).features
    assert loaded["train"].to_list() == own.to_list() == a_table()[list(COLUMNS)].to_dict("records")


def test_same_set_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "again", a_table().astype({"error": "category", "tokens": "int32"}), FUNNEL, Rule(), ORIGIN)
    assert (folder / "README.md").read_bytes() == (tmp_path / "again" / "README.md").read_bytes()
    assert as_dataset(folder).to_list() == as_dataset(tmp_path / "again").to_list()
    write_set(tmp_path / "third", a_table(), FUNNEL, Rule(), ORIGIN)
    assert file_hash(folder / "failures.parquet") == file_hash(tmp_path / "third" / "failures.parquet")


def test_no_dataset_where_none_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="mine failures first"):
        as_dataset(tmp_path)
    with pytest.raises(SettingsError, match="pass_rate are missing"):
        as_dataset(a_table().drop(columns="pass_rate"))


def test_card_says_how_the_set_was_made(folder: Path) -> None:
    found = hub.DatasetCard.load(folder / "README.md")
    assert found.data.configs == [{"config_name": "default", "data_files": "failures.parquet"}] and found.data.license == "other"
    assert found.data.size_categories == ["n<1K"] and "model-1B" in found.data.pretty_name
    for said in (
        "30 failed attempts",
        "owner/model-1B@abc",
        "owner/problems",
        "python -m x",
        "paper",
        "unlike",
        "Limits",
        "Intended",
    ):
        assert said in found.text
    for name in ("near_duplicates", "max_per_error", "missed_target"):
        assert name.replace("_", "\\_") in found.text
    assert "| unlike | 33 | 4 |" in found.text and "| kept | 30 | 3 |" in found.text
    licensed = card(a_table(), FUNNEL, Rule(), Origin("m", "h", "t", "o/d", "paper", "c", {}, "cc-by-4.0"))
    assert hub.DatasetCard(licensed).data.license == "cc-by-4.0" and "governs them (cc-by-4.0)" in licensed


def test_names_from_elsewhere_do_not_break_the_card() -> None:
    odd = 'x: "y"\n---\n# |<b>'
    text = card(a_table().assign(error=odd), FUNNEL, Rule(), Origin(odd, odd, odd, odd, odd, odd, {odd: odd}))
    found = hub.DatasetCard(text)
    assert found.data.configs == [{"config_name": "default", "data_files": "failures.parquet"}]
    assert not [line for line in found.text.splitlines() if line.startswith(("---", "# |"))]
    assert all(
        line.startswith("| ") == line.endswith(" |") for line in found.text.splitlines() if "|" in line and "`" not in line
    )


def test_figure_shows_what_was_lost() -> None:
    axes = plot_funnel(FUNNEL[["stage", "problems", "lost"]]).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["kept", "unlike", "under the cap", "problems"]
    assert [t.get_text() for t in axes.texts] == ["30   (−3)", "33   (−4)", "37   (−3)", "40"]


# --- the hub ---


@pytest.fixture
def with_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    "A token that is worth nothing; neither this machine's own nor its proxies are used."
    for name in ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_worthless")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    hub.close_session()
    yield
    hub.close_session()


class Recorded:
    "A client that notes what it is asked."

    endpoint = "https://hub.example"
    calls: ClassVar[list[tuple[str, dict]]] = []
    private = True

    def create_repo(self, name: str, **options: object) -> None:
        self.calls.append(("create", {"name": name} | options))

    def repo_info(self, name: str, **options: object) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options: object) -> None:
        self.calls.append(("upload", options))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, with_token: None) -> type[Recorded]:
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(Recorded, "private", True)
    monkeypatch.setattr(hub, "HfApi", Recorded)
    return Recorded


def test_push_uploads_the_named_files_and_nothing_else(folder: Path, recorded: type[Recorded]) -> None:
    assert push(folder, "owner/name") == "https://hub.example/datasets/owner/name"
    (create, made), (upload, sent) = recorded.calls
    assert (create, upload) == ("create", "upload")
    assert made == {"name": "owner/name", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "owner/name" and sent["repo_type"] == "dataset" and Path(sent["folder_path"]) == folder
    there = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    assert "attempts/README.md" in there and "attempts/summary.json" in there
    assert sorted(filter_repo_objects(there, allow_patterns=sent["allow_patterns"])) == sorted(FILES)


def test_push_takes_no_public_dataset_for_a_private_one(folder: Path, recorded: type[Recorded]) -> None:
    recorded.private = False
    with pytest.raises(SettingsError, match="there and public"):
        push(folder, "owner/name")
    assert [what for what, _ in recorded.calls] == ["create"]
    push(folder, "owner/name", private=False)
    assert [what for what, _ in recorded.calls] == ["create", "create", "upload"]


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "/name", "owner/", "owner/na me", "owner/../name", "-owner/name", "owner/x.git"]
)
def test_push_refuses_bad_names(folder: Path, recorded: type[Recorded], name: str) -> None:
    with pytest.raises(SettingsError, match="not a name of the form owner/name"):
        push(folder, name)
    assert not recorded.calls


def test_push_refuses_what_is_not_finished(folder: Path, recorded: type[Recorded]) -> None:
    write_parquet(folder / "failures.parquet", a_table(3))
    with pytest.raises(SettingsError, match="belongs to another"):
        push(folder, "owner/name")
    (folder / "README.md").unlink()
    with pytest.raises(SettingsError, match=r"holds no README.md"):
        push(folder, "owner/name")
    assert not recorded.calls


def test_push_refuses_without_token_or_offline(folder: Path, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE"):
        push(folder, "owner/name")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SettingsError, match="hf auth login"):
        push(folder, "owner/name")
    assert not recorded.calls


class Hub(BaseHTTPRequestHandler):
    "The few answers of the hub that an upload needs, or one status for everything."

    status, private, asked, commits = 200, True, [], []  # type: ignore[var-annotated]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path))
        if self.status != 200:
            return self._send(self.status, {"error": "not for you"})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return self._send(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if "/commit/main" in self.path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            return self._send(200, {"commitUrl": f"http://{self.headers['Host']}/datasets/owner/name/commit/1", "commitOid": "1"})
        where = f"http://{self.headers['Host']}/datasets/owner/name"
        return self._send(
            200, {"url": where, "id": "owner/name", "private": self.private, "siblings": [], "warnings": [], "errors": []}
        )

    def _send(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_HEAD = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, with_token: None) -> Iterator[type[Hub]]:
    "A stand-in for the hub on this machine, for the real client."
    for name, value in {"status": 200, "private": True, "asked": [], "commits": []}.items():
        monkeypatch.setattr(Hub, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://{HERE}:{server.server_port}")
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_real_client_commits_the_named_files_once(folder: Path, stand_in: type[Hub]) -> None:
    assert push(folder, "owner/name").endswith("/datasets/owner/name")
    (commit,) = stand_in.commits
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == set(FILES) and [line["key"] for line in commit].count("header") == 1
    assert ("POST", "/api/repos/create") in stand_in.asked


@pytest.mark.parametrize(
    ("status", "said"), [(401, "token may write"), (403, "token may write"), (500, "answered with an error")]
)
def test_real_client_is_refused(folder: Path, stand_in: type[Hub], status: int, said: str) -> None:
    stand_in.status = status
    with pytest.raises(SettingsError, match=said) as e:
        push(folder, "owner/name")
    assert "'owner/name'" in str(e.value) and "\n" not in str(e.value) and "hf_worthless" not in str(e.value)
    assert not stand_in.commits


def test_real_client_does_not_upload_to_a_public_dataset(folder: Path, stand_in: type[Hub]) -> None:
    stand_in.private = False
    with pytest.raises(SettingsError, match="there and public"):
        push(folder, "owner/name")
    assert not stand_in.commits


def test_real_client_without_network(folder: Path, with_token: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:  # a port on which nobody listens
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://{HERE}:{free.getsockname()[1]}")
    with pytest.raises(SettingsError, match="cannot be reached"):
        push(folder, "owner/name")
