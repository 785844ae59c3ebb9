"""The verifier of tool calls: verdicts a second on right answers in every style, and the slowest attack.

    python benchmarks/verify_calls.py                             # 2,000 made-up problems
    python benchmarks/verify_calls.py --rows xlam.jsonl more.jsonl   # rows of your own, in xLAM's schema or BFCL's
    python benchmarks/verify_calls.py --n 200 --repeats 1

Every gold answer is written in each style and judged under both rules; every verdict must be "right". The last line of the
table is the usual way to do it, `json.loads` and `==` on the `json` texts, which reads one style, sets no bounds and takes
True for 1. The attacks are those of the tests; each must get the error that is written beside it.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r3_repro.tasks.base import Problem
from r3_repro.tasks.function_calling.matcher import CALL_RULES, verify_calls
from r3_repro.tasks.function_calling.parser import Call
from r3_repro.tasks.function_calling.task import load_call_rows
from r3_repro.tasks.function_calling.writer import STYLES, write_calls

ATTACKS = Path(__file__).parents[1] / "tests/tasks/data/calls_attacks.json"
WORDS = ["Paris", "New York", "beta", "San José", "2024-05-01", "usd", "john@example.com", "How are you today?", "vegetarian"]


def made_up(n: int, seed: int) -> list[Problem]:
    "Problems of the data's size: 1 to 8 tools, 1 to 4 calls, 1 to 4 parameters of all types."
    rng, kinds = random.Random(seed), ("string", "string", "integer", "number", "boolean", "array", "object")

    def value(kind: str) -> Any:
        simple = {"string": rng.choice(WORDS), "integer": rng.randrange(1000), "number": rng.randrange(1000) / 8}
        simple |= {"boolean": rng.random() < 0.5, "array": [rng.randrange(100) for _ in range(3)]}
        return simple.get(kind, {"city": rng.choice(WORDS), "days": rng.randrange(9)})

    def tool(i: int) -> dict[str, Any]:
        properties = {f"parameter_{j}": {"type": rng.choice(kinds)} for j in range(rng.randint(1, 4))}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "name": rng.choice(["get_item_{}", "math.total_{}", "search{}"]).format(i),
            "description": "",
            "parameters": parameters,
        }

    out = []
    for i in range(n):
        tools = [tool(j) for j in range(rng.randint(1, 8))]
        called = rng.choices(tools, k=rng.choice((1, 1, 1, 2, 2, 3, 4)))
        arguments = [{p: value(s["type"]) for p, s in t["parameters"]["properties"].items()} for t in called]
        answers = [{"name": t["name"], "arguments": a} for t, a in zip(called, arguments, strict=True)]
        out.append(Problem(str(i), {"query": "", "tools": tools, "answers": answers}))
    return out


def usual(problem: Problem, text: str) -> bool:
    "Plain Python: the same list of calls in any order."
    calls, gold = json.loads(text), list(problem.data["answers"])
    for call in calls:
        if call not in gold:
            return False
        gold.remove(call)
    return not gold


def seconds_of(judge: Callable[[Problem, str], bool], pairs: list[tuple[Problem, str]], repeats: int) -> list[float]:
    "Seconds of each verdict, the best of the repeats."
    best = [9.0] * len(pairs)
    for _ in range(repeats):
        for i, (problem, text) in enumerate(pairs):
            start = time.perf_counter()
            right = judge(problem, text)
            best[i] = min(best[i], time.perf_counter() - start)
            assert right, (problem.id, text)
    return best


def report(name: str, pairs: list[tuple[Problem, str]], *timings: list[float]) -> None:
    length = statistics.mean(len(text) for _, text in pairs)
    rates = "".join(f"{len(t) / sum(t):>11,.0f}/s {1e6 * sorted(t)[int(0.99 * len(t))]:>7.0f} µs" for t in timings)
    print(f"{name:<20}{len(pairs):>8,}{length:>12.0f}{rates}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="JSON, JSONL or Parquet files (default: made-up problems)")
    parser.add_argument("--n", type=int, default=2000, help="made-up problems (default 2,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many times counts (default 3)")
    args = parser.parse_args()

    problems = [p for file in args.rows for p in load_call_rows(file)[0]] or made_up(args.n, args.seed)
    print(
        f"{len(problems):,} problems\n\n{'style':<20}{'texts':>8}{'characters':>12}"
        + "".join(f"{r:>13}{'99%':>10}" for r in CALL_RULES)
    )
    total: list[list[float]] = [[] for _ in CALL_RULES]
    for style in STYLES:
        pairs = []
        for p in problems:
            try:
                pairs.append((p, write_calls([Call(a["name"], a["arguments"]) for a in p.data["answers"]], style)))
            except ValueError:
                continue  # a name that this style cannot express
        timings = [seconds_of(lambda p, t, rule=rule: verify_calls(p, t, rule).ok, pairs, args.repeats) for rule in CALL_RULES]  # type: ignore[misc]
        report(style, pairs, *timings)
        total = [before + new for before, new in zip(total, timings, strict=True)]
        if style == "json":
            plain = pairs, seconds_of(usual, pairs, args.repeats)
    print(
        f"{'all styles':<40}"
        + "".join(f"{len(t) / sum(t):>11,.0f}/s {1e6 * sorted(t)[int(0.99 * len(t))]:>7.0f} µs" for t in total)
    )
    report("json.loads and ==", *plain)

    corpus, slow = json.loads(ATTACKS.read_text("utf-8")), []
    for attack in corpus["attacks"]:
        text = "".join(piece * n for piece, n in attack["parts"]) if "parts" in attack else attack["text"]
        problem = Problem(attack["name"], corpus["problems"][attack["problem"]])
        for rule in CALL_RULES:
            (seconds,) = seconds_of(
                lambda p, t, a=attack, r=rule: verify_calls(p, t, r).error == a[r], [(problem, text)], args.repeats
            )  # type: ignore[misc]
            slow.append((seconds, attack["name"], rule, len(text)))
    print(f"\n{len(corpus['attacks'])} attacks, all judged as expected; the slowest:")
    for seconds, name, rule, length in sorted(slow, reverse=True)[:5]:
        print(f"{1e3 * seconds:8.1f} ms   {name} ({length:,} characters, {rule})")


if __name__ == "__main__":
    main()
