"""Making Countdown problems: this package beside a plain Python loop of the same law.

    python benchmarks/countdown_generator.py                      # 450,000 problems, as many as the paper uses
    python benchmarks/countdown_generator.py --n 20000 --loop-seconds 2

Both sides draw a size and a target and redraw the numbers until they can make the target and the problem is new. The
loop runs for a fixed time, the package for the full number. Every generated problem is then checked (different, in
range), and a sample by the exact solver and the verifier.
"""

import argparse
import random
import resource
import time
from collections.abc import Iterator

from r3_repro.tasks.countdown.generator import generate, make_countdown_problem, problem_id, solve
from r3_repro.tasks.countdown.verifier import verify_expression


def makes(nums: list[int], target: int) -> bool:
    "Can all numbers together make the target, without fractions or negative numbers? One problem at a time."
    if len(nums) == 1:
        return nums[0] == target
    for i in range(len(nums)):
        for j in range(i):
            rest = [n for m, n in enumerate(nums) if m not in (i, j)]
            a, b = max(nums[i], nums[j]), min(nums[i], nums[j])
            if makes([a + b, *rest], target) or makes([a * b, *rest], target) or makes([a - b, *rest], target):
                return True
            if b and a % b == 0 and makes([a // b, *rest], target):
                return True
    return False


def loop(seed: int) -> Iterator[str]:
    "New problems, one by one, without numpy."
    rng, seen = random.Random(seed), set()
    while True:
        k, target = rng.choice((3, 4)), rng.randint(10, 100)
        while True:
            nums = [rng.randint(1, 99) for _ in range(k)]
            if makes(nums, target) and (name := problem_id(nums, target)) not in seen:
                seen.add(name)
                yield name
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=450_000, help="problems to generate (default 450,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loop-seconds", type=float, default=10.0, help="how long the plain loop runs")
    args = parser.parse_args()

    start, made = time.perf_counter(), 0
    for made, _ in enumerate(loop(args.seed), 1):  # noqa: B007
        if time.perf_counter() - start > args.loop_seconds:
            break
    loop_rate = made / (time.perf_counter() - start)

    start = time.perf_counter()
    problems = generate(args.n, args.seed)
    seconds = time.perf_counter() - start
    rate = args.n / seconds

    start = time.perf_counter()
    assert len({p.id for p in problems}) == args.n
    for p in problems:
        nums, target = p.data["nums"], p.data["target"]
        assert p.id == problem_id(nums, target) and 10 <= target <= 100 and all(1 <= n <= 99 for n in nums)
    sample = random.Random(args.seed).sample(problems, min(300, args.n))
    for p in sample:
        assert makes(p.data["nums"], p.data["target"])
        assert verify_expression(make_countdown_problem(**p.data), f"<answer>{solve(**p.data)[0]}</answer>").ok
    checked = time.perf_counter() - start

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"plain loop     {loop_rate:10,.0f} problems/s   ({made:,} in {args.loop_seconds:g} s, one process)")
    print(f"this package   {rate:10,.0f} problems/s   ({args.n:,} in {seconds:.1f} s, one process)")
    print(f"{rate / loop_rate:.0f} times faster; 450,000 at the loop's rate: {450_000 / loop_rate / 60:.0f} minutes")
    print(f"checked in {checked:.1f} s: all different and in range; {len(sample)} of {len(sample)} sampled ones solved")
    print(f"peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    main()
