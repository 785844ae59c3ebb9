"""The setting `revision`: every file of a hub model is read from that commit, and results know it."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from support import REPOSITORY

from r3_repro.config import load_profile, model_path
from r3_repro.engines.chat import load_tokenizer, stored_ends
from r3_repro.engines.hf import load_model
from r3_repro.engines.server import _own_context
from r3_repro.engines.vllm import _limit, _options
from r3_repro.planning.fit import measure_model
from r3_repro.runs import identity
from r3_repro.runs.hub import hub_commit
from r3_repro.runs.identity import identity_diff, model_hash
from r3_repro.utils.errors import SettingsError

TINY = str(REPOSITORY / "r3_repro/assets/tiny-a")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    "What is read from the hub: (class, name, revision), with the tiny base in place of owner/name."
    found: list[tuple[str, str, str]] = []
    for kind in ("AutoTokenizer", "AutoModelForCausalLM", "AutoConfig", "GenerationConfig"):
        real = getattr(transformers, kind).from_pretrained

        def read(name: str, *args: Any, real: Any = real, kind: str = kind, **more: Any) -> Any:
            if name == "owner/name":
                found.append((kind, name, more.pop("revision", "main")))
            return real(TINY if name == "owner/name" else name, *args, **more)

        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", read)
    return found


def test_tokenizer_weights_and_configuration_are_of_the_revision(asked: list[tuple[str, str, str]]) -> None:
    p = load_profile("paper", model="owner/name", revision=COMMIT)
    path = model_path(p)
    tokenizer = load_tokenizer(path)
    load_model(path, device="cpu"), measure_model(path), _limit(path), _own_context(path, "completions")
    stored_ends(path, tokenizer)
    assert {r for _, _, r in asked} == {COMMIT} and len({kind for kind, _, _ in asked}) == 4 and len(asked) >= 6
    vllm = _options(path, "bfloat16", 8, 0.9, 1)
    assert (vllm["model"], vllm["revision"], vllm["tokenizer_revision"]) == ("owner/name", COMMIT, COMMIT)


def test_without_the_setting_the_newest_commit_is_read(asked: list[tuple[str, str, str]]) -> None:
    path = model_path(load_profile("paper", model="owner/name"))
    load_tokenizer(path), load_model(path, device="cpu")
    assert path == "owner/name" and {r for _, _, r in asked} == {"main"}


def test_the_revision_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "c1", "v1": "c2", "c2": "c2"}
    monkeypatch.setattr(identity, "hub_commit", lambda name, kind="model", revision="main": commits.get(revision))
    hashes = {r: model_hash(f"owner/name@{r}") for r in ("v1", "c2", COMMIT)} | {"": model_hash("owner/name")}
    assert hashes == {"": "owner/name@c1", "v1": "owner/name@c2", "c2": "owner/name@c2", COMMIT: f"owner/name@{COMMIT}"}
    assert identity_diff({"model": hashes[""]}, {"model": hashes["v1"]}) and hashes["v1"] == hashes["c2"], (
        "tag and commit are one"
    )


def test_a_folder_has_no_revision() -> None:
    with pytest.raises(SettingsError, match="is a folder, which has no revision = 'v1'"):
        model_path(load_profile("tiny", revision="v1"))


def test_the_cache_knows_its_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(HfApi, "repo_info", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--owner--name"
    (model / "refs").mkdir(parents=True)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "refs" / "v1").write_text(COMMIT, "utf-8")
    ask = hub_commit.__wrapped__
    assert [ask("owner/name", revision=r) for r in ("v1", COMMIT, "v2")] == [COMMIT, COMMIT, None]
