"""The mined set as a dataset: loaded without a network, its card, its upload with a recorded client and with a stand-in hub."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
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
from support import patience

from r3_repro.mining.dataset_card import (
    DATASET_FILES,
    FAILURE_COLUMNS,
    Origin,
    as_dataset,
    dataset_card,
    push_dataset,
    write_dataset,
)
from r3_repro.mining.selection import FUNNEL_STAGES, FailureRule, funnel_table
from r3_repro.utils.errors import SettingsError
from r3_repro.utils.files import write_json, write_parquet
from r3_repro.utils.hashing import file_hash

HERE = "127.0.0.1"
ERRORS = ["no_answer", "wrong_numbers", "missed_target"]

# --- the dataset ---


def a_table(n: int = 30) -> pd.DataFrame:
    attempts = [f"I say {i}\n| pipe | `code` \u2028 --- \ufffd é {'x' * i}" for i in range(n)]
    return pd.DataFrame({
        "problem_id": [f"{i}:1-2" for i in range(n)], "problem": [json.dumps({"target": i}) for i in range(n)],
        "attempt": attempts, "error": (ERRORS * n)[:n], "tokens": range(n), "finish": "stop", "pass_rate": np.arange(n) / n,
        "place": range(n),
    })  # fmt: skip


FUNNEL = funnel_table({s: 40 for s in list(FUNNEL_STAGES)[:5]}, Counter(alike=4, cap=3), 30)
ORIGIN = Origin("owner/model-1B", "owner/model-1B@abc", "countdown", "owner/problems", "paper", "python -m x", {"top_p": 1.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A folder of failures as it lies in the run tree: set, card, JSON, and the store of attempts."
    folder = tmp_path / "failures"
    write_dataset(folder, a_table(), FUNNEL, FailureRule(), ORIGIN)
    write_parquet(folder / "attempts" / "part-00000001.parquet", pd.DataFrame({"secret": ["all attempts"]}))
    for path in (folder / "attempts" / "README.md", folder / "attempts" / "summary.json", folder / ".lock", folder / "notes.txt"):
        path.write_text("not to be uploaded", "utf-8")
    write_json(folder / "summary.json", {"problems": 40})
    write_json(folder / "manifest.json", {"hashes": {"failures": file_hash(folder / "failures.parquet")}})
    return folder


def test_folder_loads_as_a_dataset_without_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"] and loaded["train"].column_names == list(FAILURE_COLUMNS)
    own = as_dataset(folder)
    assert loaded["train"].features == own.features == as_dataset(a_table()).features
    assert loaded["train"].to_list() == own.to_list() == a_table()[list(FAILURE_COLUMNS)].to_dict("records")


def test_same_set_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", a_table().astype({"error": "category", "tokens": "int32"}), FUNNEL, FailureRule(), ORIGIN)
    assert (folder / "README.md").read_bytes() == (tmp_path / "again" / "README.md").read_bytes()
    assert as_dataset(folder).to_list() == as_dataset(tmp_path / "again").to_list()
    write_dataset(tmp_path / "third", a_table(), FUNNEL, FailureRule(), ORIGIN)
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
    licensed = dataset_card(a_table(), FUNNEL, FailureRule(), Origin("m", "h", "t", "o/d", "paper", "c", {}, "cc-by-4.0"))
    assert hub.DatasetCard(licensed).data.license == "cc-by-4.0" and "governs them (cc-by-4.0)" in licensed


def test_names_from_elsewhere_do_not_break_the_card() -> None:
    odd = 'x: "y"\n---\n# |<b>'
    text = dataset_card(a_table().assign(error=odd), FUNNEL, FailureRule(), Origin(odd, odd, odd, odd, odd, odd, {odd: odd}))
    found = hub.DatasetCard(text)
    assert found.data.configs == [{"config_name": "default", "data_files": "failures.parquet"}]
    assert not [line for line in found.text.splitlines() if line.startswith(("---", "# |"))]
    assert all(
        line.startswith("| ") == line.endswith(" |") for line in found.text.splitlines() if "|" in line and "`" not in line
    )


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
    assert push_dataset(folder, "owner/name") == "https://hub.example/datasets/owner/name"
    (create, made), (upload, sent) = recorded.calls
    assert (create, upload) == ("create", "upload")
    assert made == {"name": "owner/name", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "owner/name" and sent["repo_type"] == "dataset" and Path(sent["folder_path"]) == folder
    there = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    assert "attempts/README.md" in there and "attempts/summary.json" in there
    assert sorted(filter_repo_objects(there, allow_patterns=sent["allow_patterns"])) == sorted(DATASET_FILES)


def test_push_takes_no_public_dataset_for_a_private_one(folder: Path, recorded: type[Recorded]) -> None:
    recorded.private = False
    with pytest.raises(SettingsError, match="there and public"):
        push_dataset(folder, "owner/name")
    assert [what for what, _ in recorded.calls] == ["create"]
    push_dataset(folder, "owner/name", private=False)
    assert [what for what, _ in recorded.calls] == ["create", "create", "upload"]


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "/name", "owner/", "owner/na me", "owner/../name", "-owner/name", "owner/x.git"]
)
def test_push_refuses_bad_names(folder: Path, recorded: type[Recorded], name: str) -> None:
    with pytest.raises(SettingsError, match="not a name of the form owner/name"):
        push_dataset(folder, name)
    assert not recorded.calls


def test_push_refuses_what_is_not_finished(folder: Path, recorded: type[Recorded]) -> None:
    write_parquet(folder / "failures.parquet", a_table(3))
    with pytest.raises(SettingsError, match="belongs to another"):
        push_dataset(folder, "owner/name")
    (folder / "README.md").unlink()
    with pytest.raises(SettingsError, match=r"holds no README.md"):
        push_dataset(folder, "owner/name")
    assert not recorded.calls


def test_push_refuses_without_token_or_offline(folder: Path, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE"):
        push_dataset(folder, "owner/name")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SettingsError, match="hf auth login"):
        push_dataset(folder, "owner/name")
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
    thread.join(patience(10))


def test_real_client_commits_the_named_files_once(folder: Path, stand_in: type[Hub]) -> None:
    assert push_dataset(folder, "owner/name").endswith("/datasets/owner/name")
    (commit,) = stand_in.commits
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == set(DATASET_FILES) and [line["key"] for line in commit].count("header") == 1
    assert ("POST", "/api/repos/create") in stand_in.asked


@pytest.mark.parametrize(
    ("status", "said"), [(401, "token may write"), (403, "token may write"), (500, "answered with an error")]
)
def test_real_client_is_refused(folder: Path, stand_in: type[Hub], status: int, said: str) -> None:
    stand_in.status = status
    with pytest.raises(SettingsError, match=said) as e:
        push_dataset(folder, "owner/name")
    assert "'owner/name'" in str(e.value) and "\n" not in str(e.value) and "hf_worthless" not in str(e.value)
    assert not stand_in.commits


def test_real_client_does_not_upload_to_a_public_dataset(folder: Path, stand_in: type[Hub]) -> None:
    stand_in.private = False
    with pytest.raises(SettingsError, match="there and public"):
        push_dataset(folder, "owner/name")
    assert not stand_in.commits


def test_real_client_without_network(folder: Path, with_token: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:  # a port on which nobody listens
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://{HERE}:{free.getsockname()[1]}")
    with pytest.raises(SettingsError, match="cannot be reached"):
        push_dataset(folder, "owner/name")
