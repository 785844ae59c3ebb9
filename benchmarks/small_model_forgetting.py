"""The four benchmarks on a model, on the supervised start that was made from it, and on what was trained from the start.

    python benchmarks/small_model_forgetting.py FOLDER --base models/SmolLM2-135M-Instruct --start models/SmolLM2-135M-start4 \\
        --trained runs/small/countdown/SmolLM2-135M-start4 --root runs/stage_d --out results/benchmarks/small_model_forgetting

Stage D of nbs/small_model.ipynb: 500 items of HellaSwag and 50 of each other benchmark, seeded samples, the same for all models.
FOLDER has the rows of the benchmarks, as the setting `benchmarks` does. Each model is examined as by `r3-repro forgetting`, once
for each number of items; what is done is kept under --root and not done again. Two comparisons are stored: `start`, the start
against the model as it is, and `arms`, the trained models against the start, which is `vanilla` there. With --only, models of the
folder of trainings whose names are not given are left out; without --trained there is the first comparison alone.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from r3_repro.analysis.forgetting import load_results, make_forgetting
from r3_repro.evaluation.benchmarks import models_of, run_benchmarks
from r3_repro.runs.identity import digest
from r3_repro.runs.layout import Run, open_run, provenance
from r3_repro.utils.files import write_json

PARTS = {"HellaSwag": 500, "MMLU-Pro GSM8K MATH": 50}
"Benchmarks -> items of each."

KEPT = ("hashes", "seconds", "git_commit", "git_dirty", "benchmarks")
"What the manifest says of each model's run."


def examined(a: argparse.Namespace, tasks: str, items: int) -> dict[str, dict[str, Any]]:
    "Results of all models on some benchmarks, by name; `vanilla` is the start."
    how = {"forgetting_tasks": tasks, "forgetting_limit": items, "benchmarks": a.benchmarks, "engine": a.engine}
    root = f"{a.root}/{tasks.replace(' ', '_')}"
    run = open_run("small", task="countdown", model=a.start, root=root, **how)
    models: dict[str, tuple[Run, str]] = {"vanilla": (replace(run, arm="vanilla"), a.start)}
    models["as-it-is"] = (replace(run, arm="as_it_is"), a.base)
    if a.trained:
        of = open_run("small", task="countdown", model=a.start, root=str(Path(a.trained).resolve().parents[2]))
        if of.model_dir.resolve() != Path(a.trained).resolve():
            raise SystemExit(
                f"{a.trained} is no folder of trainings from {a.start}: expected <root>/small/countdown/{of.model_dir.name}"
            )
        trained = {n: (replace(run, arm=r.arm, seed=r.seed), path) for n, (r, path) in models_of(of).items() if n != "vanilla"}
        models |= {n: m for n, m in trained.items() if not a.only or n in a.only.split()}
    run_benchmarks(run, models)
    folder = run.model_dir / "forgetting"
    found = load_results(folder)
    made = {n: json.loads((folder / f"{n}.manifest.json").read_text("utf-8")) for n in models}
    return {n: found[n] | {"made": {k: made[n][k] for k in KEPT}} for n in models}


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    "One model's results on the parts of the suite as one result, whose hashes cover all of them."
    assert len({p["hashes"]["model"] for p in parts}) == 1 and len({p["hashes"]["chat_template"] for p in parts}) == 1
    hashes = parts[0]["hashes"] | {k: digest([p["hashes"][k] for p in parts]) for k in ("protocol", "items")}
    tasks = {name: score for p in parts for name, score in p["tasks"].items()}
    parts = [{k: v for k, v in p.items() if k != "made"} for p in parts]
    return parts[0] | {"hashes": hashes, "protocol": {"parts": [p["protocol"] for p in parts]}, "tasks": tasks}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("benchmarks", help="folder of the benchmarks' rows")
    ap.add_argument("--base", required=True, help="folder of the model as it is")
    ap.add_argument("--start", required=True, help="folder of the supervised start")
    ap.add_argument("--trained", default="", help="<root>/small/countdown/<start>, with trainings")
    ap.add_argument("--only", default="", help='names of trainings, such as "r3-seed0 plain_grpo-seed0"; default: all')
    ap.add_argument("--engine", default="vllm")
    ap.add_argument("--root", default="runs/stage_d", help="folder for what is done")
    ap.add_argument("--out", type=Path, help="folder for tables, figures, results by item and manifest")
    a = ap.parse_args()
    made, parts = provenance(), [examined(a, tasks, items) for tasks, items in PARTS.items()]
    whole = {name: joined([p[name] for p in parts]) for name in parts[0]}
    start, base = whole["vanilla"], whole.pop("as-it-is")
    compared = {"start": {"vanilla": base | {"name": "vanilla", "arm": "vanilla"}, "start-seed0": start | {"arm": "start"}}}
    compared |= {"arms": whole} if len(whole) > 1 else {}
    out = a.out or Path(a.root) / "tables"
    for which, results in compared.items():
        for name, result in results.items():
            write_json(out / which / "forgetting" / f"{name}.json", result | {"name": name})
        for table in ("scores", "by_arm"):
            print(make_forgetting(out / which)[table].round(3).to_markdown(index=False))
    kept = {name: [p[name]["made"] for p in parts] for name in parts[0]}
    write_json(out / "manifest.json", made | {"items": PARTS, "engine": a.engine, "base": Path(a.base).name, "runs": kept})


if __name__ == "__main__":
    main()
