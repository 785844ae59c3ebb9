"""What is outside of r3_repro/ and ships with it all the same; everything else about the package is in pyproject.toml.

An installed wheel has no clone to look into, so a build copies these files to r3_repro/assets, notebooks without their outputs;
`r3_repro.utils.files.resource` finds them there. An editable install copies nothing: it finds them in the clone.
"""

import json
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ("settings.ini", "nbs/0[1-6]_*.ipynb", "results/published/*", "cluster/chapter.sbatch")


def without_outputs(notebook: str) -> str:
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


class BuildWithResources(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in SHIPPED:
            if not (found := sorted(ROOT.glob(pattern))):
                raise FileNotFoundError(f"{pattern} is not in {ROOT}: a wheel is built from a clone, or from a complete sdist")
            for file in found:
                text = file.read_text(encoding="utf-8")
                target = Path(self.build_lib, "r3_repro", "assets", file.relative_to(ROOT))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(without_outputs(text) if file.suffix == ".ipynb" else text, encoding="utf-8", newline="\n")


setup(cmdclass={"build_py": BuildWithResources})
