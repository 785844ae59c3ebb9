"""Real rows of function calling through loader, parser and verifier: what is loaded, refused, accepted, rejected.

    python benchmarks/real_rows.py FILE_OR_FOLDER ...              # prints the table
    python benchmarks/real_rows.py --out results/benchmarks/real_rows FILE …  # and stores it, with the hashes of the files

Every gold answer is written in every style and judged by both rules; then it is made wrong in six ways and judged again.
The rows themselves are not stored.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import versions
from r3_repro.tasks.base import Problem
from r3_repro.tasks.function_calling.matcher import CALL_RULES, verify_calls
from r3_repro.tasks.function_calling.parser import Call
from r3_repro.tasks.function_calling.task import load_call_rows
from r3_repro.tasks.function_calling.writer import STYLES, write_calls
from r3_repro.utils.files import write_json
from r3_repro.utils.hashing import file_hash


def wrong_answers(p: Problem) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    "Error type and calls: the gold calls made wrong in one way."
    gold, names = p.data["answers"], {t["name"] for t in p.data["tools"]}
    if not gold:
        if names:
            yield "extra_call", [{"name": min(names), "arguments": {}}]
        return
    first, rest = gold[0], gold[1:]
    yield "extra_call", [*gold, first]
    if rest:
        yield "missing_call", rest
    yield "unknown_tool", [first | {"name": first["name"] + "_2"}, *rest]
    yield "extra_parameter", [first | {"arguments": first["arguments"] | {"no such parameter": 1}}, *rest]
    if first["arguments"]:
        key, value = next(iter(first["arguments"].items()))
        yield "missing_parameter", [first | {"arguments": {k: v for k, v in first["arguments"].items() if k != key}}, *rest]
        wrong = value + "!" if isinstance(value, str) else [value] if isinstance(value, dict) else {"was": value}
        yield (
            "wrong_value" if isinstance(value, str) else "wrong_type",
            [
                first | {"arguments": first["arguments"] | {key: wrong}},
                *rest,
            ],
        )


def examine(source: Path) -> dict[str, Any]:
    "One row of the table."
    problems, refused = load_call_rows(source)
    texts = right = made = rejected = 0
    for p in problems:
        for style in STYLES:
            try:
                text = write_calls([Call(a["name"], a["arguments"]) for a in p.data["answers"]], style)
            except ValueError:  # a name that Python style cannot express
                continue
            verdicts = [verify_calls(p, text, rule).ok for rule in CALL_RULES]
            texts, right = texts + len(verdicts), right + sum(verdicts)
        for error, calls in wrong_answers(p):
            verdict = verify_calls(p, json.dumps(calls))
            made, rejected = made + 1, rejected + (verdict.error == error)
    reasons = Counter(r.reason for r in refused)
    return {
        "source": source.name, "rows": len(problems) + len(refused), "loaded": len(problems), "refused": len(refused),
        "reasons": ", ".join(f"{k} {n}" for k, n in sorted(reasons.items())),
        "gold verdicts": texts, "accepted": right, "wrong answers": made, "rejected with the right error": rejected,
    }  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("sources", type=Path, nargs="+")
    ap.add_argument("--out", type=Path, help="folder for the table and its manifest")
    a = ap.parse_args()
    table = pd.DataFrame([examine(s) for s in a.sources])
    print(table.to_markdown(index=False))
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        save_table(table, a.out, "real_rows", caption="Real rows through loader, parser and verifier.")
        hashes = {s.name: file_hash(s) for s in a.sources}
        write_json(
            a.out / "manifest.json", {"command": "python benchmarks/real_rows.py", "sources": hashes, "versions": versions()}
        )


if __name__ == "__main__":
    main()
