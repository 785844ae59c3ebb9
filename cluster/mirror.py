"""Copy a run tree to another place while it is written to, so that what has arrived can be resumed at any moment.

    python cluster/mirror.py FROM TO

Each file is written beside its place and renamed. What says whose a folder is (`identity.json`) arrives first. What says that
something is finished (a manifest, the mark of a checkpoint) arrives last, and only if it was there before anything was copied.
Hidden files, which are locks and parts of files, stay behind. Only checkpoints that are gone at FROM are removed at TO.
"""

import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

FIRST, LAST = ("identity.json",), ("complete", "manifest.json", "*.manifest.json", "done-seed*")


def files_of(tree: Path) -> list[Path]:
    "Files of a tree, relative to it, in the order in which they are to arrive."
    found = [f.relative_to(tree) for f in tree.rglob("*") if f.is_file()]
    return sorted((f for f in found if not any(part.startswith(".") for part in f.parts)), key=lambda f: (place(f), f))


def place(file: Path) -> int:
    "0 for what comes first, 2 for what comes last."
    return next((n for n, names in ((0, FIRST), (2, LAST)) if any(fnmatch(file.name, name) for name in names)), 1)


def same(a: Path, b: Path) -> bool:
    "Whether two files have the same size and, to the second, the same time."
    return b.is_file() and a.stat().st_size == b.stat().st_size and int(a.stat().st_mtime) == int(b.stat().st_mtime)


def mirror(source: Path, target: Path) -> int:
    "Copy what has changed; returns the number of files copied."
    copied, broken, listed = 0, set(), files_of(source)
    for file in listed:
        if place(file) == 2 and file.parent in broken:
            continue  # a checkpoint that is being removed
        try:
            if same(source / file, target / file):
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            part = target / file.parent / f".{file.name}.mirror"
            shutil.copy2(source / file, part)
            part.replace(target / file)
            copied += 1
        except FileNotFoundError:
            broken.add(file.parent)
    gone = set(files_of(target)) - set(listed)
    for file in sorted((f for f in gone if listed and "checkpoints" in f.parts), key=place, reverse=True):  # the mark first
        (target / file).unlink(missing_ok=True)
    return copied


if __name__ == "__main__":
    print(f"mirror: {mirror(Path(sys.argv[1]), Path(sys.argv[2]))} files to {sys.argv[2]}")
