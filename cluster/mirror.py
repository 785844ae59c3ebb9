"""Copy a run tree to another place while it is written to, so that what has arrived can be resumed at any moment.

    python cluster/mirror.py FROM TO
    python cluster/mirror.py --back FROM TO    # to a disk where runs may have gone on since: nothing newer is replaced or removed

Each file is written beside its place and renamed. What says whose a folder is (`identity.json`) arrives first. What says that
something is finished (a manifest, the mark of a checkpoint) arrives last, and only if it was there before anything was copied.
Hidden files, which are locks and parts of files, stay behind. Only checkpoints that are gone at FROM are removed at TO.

With `--back` a file is copied if TO does not have it, or an older one. What a manifest at TO stands for stays as it is, and no
manifest comes to a folder where something newer stays.
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


def finished(tree: Path, file: Path) -> bool:
    "Whether a manifest in this tree, of a folder or of a single table, stands for a file."
    folders = [tree / folder for folder in file.parents if folder != Path(".")]
    marks = [*(folder / "manifest.json" for folder in folders), (tree / file).with_suffix(".manifest.json")]
    return any(mark.is_file() for mark in marks)


def newer(a: Path, b: Path) -> bool:
    "Whether there is a file `a` that is not older, to the second, than `b`."
    return a.is_file() and int(a.stat().st_mtime) >= int(b.stat().st_mtime)


def mirror(source: Path, target: Path, back: bool = False) -> int:
    "Copy what has changed, or, on the way back, what is newer; returns the number of files copied."
    copied, broken, listed = 0, set(), files_of(source)
    done = {file for file in listed if back and finished(target, file)}
    for file in listed:
        if file in done or (place(file) == 2 and file.parent in broken):
            continue  # a checkpoint that is being removed, or a run that has gone on
        try:
            if same(source / file, target / file):
                continue
            if back and newer(target / file, source / file):
                broken.update(file.parents)
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            part = target / file.parent / f".{file.name}.mirror"
            shutil.copy2(source / file, part)
            part.replace(target / file)
            copied += 1
        except FileNotFoundError:
            broken.add(file.parent)
    gone = set() if back else set(files_of(target)) - set(listed)
    for file in sorted((f for f in gone if listed and "checkpoints" in f.parts), key=place, reverse=True):  # the mark first
        (target / file).unlink(missing_ok=True)
    return copied


if __name__ == "__main__":
    *options, source, target = sys.argv[1:]
    print(f"mirror: {mirror(Path(source), Path(target), options == ['--back'])} files to {target}")
