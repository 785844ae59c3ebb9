"""The four benchmarks on a model, on the supervised start that was made from it, and on what was trained from the start.

    python benchmarks/small_model_forgetting.py FOLDER --base models/SmolLM2-135M-Instruct --start models/SmolLM2-135M-start4 \\
        --trained runs/small/countdown/SmolLM2-135M-start4 --root runs/stage_d --out results/benchmarks/small_model_forgetting

Stage D of nbs/small_model.ipynb, with the numbers of items of profile `small`. FOLDER has the rows of the benchmarks, as the
setting `benchmarks` does. Each model is examined as by `r3-repro forgetting`; what is done is kept under --root and not done
again. Two comparisons are stored: `start`, of the start with the model as it is, and `arms`, of the trained models with the
start, which is `vanilla` there. With --only, other trainings are left out; without --trained there is the first alone.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from r3_repro.analysis.forgetting import load_results, make_forgetting
from r3_repro.evaluation.benchmarks import models_of, run_benchmarks
from r3_repro.runs.layout import Run, open_run, provenance
from r3_repro.utils.files import write_json

KEPT = ("hashes", "seconds", "git_commit", "git_dirty", "benchmarks", "lost_answers")
"What the manifest says of each model's run."


def asked_models(a: argparse.Namespace, run: Run) -> dict[str, tuple[Run, str]]:
    "Every model by name, with its run and folder; `vanilla` is the start."
    models = {"vanilla": (replace(run, arm="vanilla"), a.start), "as-it-is": (replace(run, arm="as_it_is"), a.base)}
    if not a.trained:
        return models
    of = open_run("small", task="countdown", model=a.start, root=str(Path(a.trained).resolve().parents[2]))
    if of.model_dir.resolve() != Path(a.trained).resolve():
        raise SystemExit(f"{a.trained} is no folder of trainings from {a.start}: expected …/small/countdown/{of.model_dir.name}")
    found = {name: (replace(run, arm=r.arm, seed=r.seed), path) for name, (r, path) in models_of(of).items()}
    return models | {n: m for n, m in found.items() if n != "vanilla" and (not a.only or n in a.only.split())}


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
    made = provenance()
    run = open_run("small", task="countdown", model=a.start, root=a.root, benchmarks=a.benchmarks, engine=a.engine)
    names, folder = run_benchmarks(run, asked_models(a, run)), run.model_dir / "forgetting"
    whole = {name: load_results(folder)[name] for name in names}
    kept = {n: json.loads((folder / f"{n}.manifest.json").read_text("utf-8")) for n in names}
    start, base = whole["vanilla"], whole.pop("as-it-is")
    compared = {"start": {"vanilla": base | {"arm": "vanilla"}, "start-seed0": start | {"arm": "start"}}}
    compared |= {"arms": whole} if len(whole) > 1 else {}
    out = a.out or Path(a.root) / "tables"
    for which, results in compared.items():
        for name, result in results.items():
            write_json(out / which / "forgetting" / f"{name}.json", result | {"name": name})
        for table in ("scores", "by_arm"):
            print(make_forgetting(out / which)[table].round(3).to_markdown(index=False))
    runs = {n: {k: m[k] for k in KEPT} for n, m in kept.items()}
    write_json(out / "manifest.json", made | {"profile": kept["vanilla"]["profile"], "base": Path(a.base).name, "runs": runs})


if __name__ == "__main__":
    main()
