"""How often a 95% interval holds the truth: the contrast of the protocol beside Welch's t interval over seeds.

    python benchmarks/coverage.py                                 # 1,000 experiments a cell, two minutes
    python benchmarks/coverage.py --out results/benchmarks/coverage

An experiment draws problems of different difficulty, seeds of training that differ on the logit scale, what is peculiar to a seed
and a problem, and four draws an episode; arms are not paired by seed. The truth is the mean over infinitely many seeds and
problems. `contrast` is `r3_repro.analysis.contrasts`; `welch` is SciPy's interval from one mean a seed, for these very problems,
which needs two seeds a side. `false claims` are one-sided tests at 2.5% where both arms have the same rate. With one seed an
interval is over problems alone, and no claim about training is made from it.
"""

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as sps
from scipy.special import expit, logit
from tqdm import tqdm

from r3_repro.analysis.contrasts import contrast, side
from r3_repro.reporting.tables import save_table
from r3_repro.runs.layout import provenance
from r3_repro.utils.files import write_json

SEEDS = (1, 2, 3, 5, 8, 20)
RATES = ((0.3, 0.36), (0.3, 0.3), (0.9, 0.95), (0.99, 0.995), (0.999, 0.999))
BETWEEN_PROBLEMS, INTERACTION, DRAWS = 1.0, 0.3, 4


def arm(rng: np.random.Generator, rate: float, difficulty: np.ndarray, seeds: int, between_seeds: float) -> np.ndarray:
    "Shares of right draws, seeds x problems."
    shift = rng.normal(0, between_seeds, (seeds, 1)) + rng.normal(0, INTERACTION, (seeds, len(difficulty)))
    return rng.binomial(DRAWS, expit(logit(rate) + difficulty + shift)) / DRAWS


def truth(rate: float, between_seeds: float) -> float:
    "The mean over all seeds and problems."
    sd = np.sqrt(between_seeds**2 + BETWEEN_PROBLEMS**2 + INTERACTION**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float((expit(logit(rate) + sd * nodes) * weights).sum() / weights.sum())


def cell(a: argparse.Namespace, before: float, after: float, seeds: int, between_seeds: float) -> dict[str, float | int]:
    "Coverage and median width of both kinds of interval."
    rng = np.random.default_rng([a.seed, seeds, round(1e4 * before), round(1e4 * after), round(100 * between_seeds)])
    wanted = truth(after, between_seeds) - truth(before, between_seeds)
    found: dict[str, list[float]] = {k: [] for k in ("contrast", "contrast width", "false claims", "welch", "welch width")}
    for _ in range(a.experiments):
        difficulty = rng.normal(0, BETWEEN_PROBLEMS, a.problems)
        one, two = (arm(rng, r, difficulty, seeds, between_seeds) for r in (before, after))
        c = contrast(side(two), side(one))
        found["false claims"].append(c.p_above() < 0.025)
        new, plain = c.interval(), (np.nan, np.nan)
        if seeds > 1:
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # of equal means: an interval without width
                plain = sps.ttest_ind(two.mean(1), one.mean(1), equal_var=False).confidence_interval()
        for name, (low, high) in (("contrast", (new.low, new.high)), ("welch", plain)):
            found[name].append(low <= wanted <= high)
            found[f"{name} width"].append(high - low)
    medians = {k: float(np.median(v) if k.endswith("width") else np.mean(v)) for k, v in found.items()}
    if seeds == 1:
        medians["welch"] = np.nan
    if before != after:
        medians["false claims"] = np.nan
    return {"before": before, "after": after, "between seeds": between_seeds, "seeds": seeds} | medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000, help="a cell (default: 1000)")
    parser.add_argument("--problems", type=int, default=300, help="of the held-out part (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    parser.add_argument("--out", type=Path, help="folder for the table")
    a = parser.parse_args()
    cells = list(itertools.product(RATES, SEEDS, (0.05, 0.3)))
    table = pd.DataFrame([cell(a, *rates, seeds, sd) for rates, seeds, sd in tqdm(cells, unit="cell")])
    print(table.round(3).to_string(index=False))
    several = table[table.seeds > 1]
    print("\nfrom two seeds on, least coverage: " + ", ".join(f"{k} {several[k].min():.3f}" for k in ("contrast", "welch")))
    if a.out:
        caption = f"Coverage of 95% intervals: {a.experiments} experiments a cell, {a.problems} problems, {DRAWS} draws each."
        save_table(table.round(4), a.out, "coverage", caption, table)
        write_json(a.out / "coverage.manifest.json", provenance() | {"arguments": {k: str(v) for k, v in vars(a).items()}})


if __name__ == "__main__":
    main()
