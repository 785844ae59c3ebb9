"""`python -m r3_repro` is `r3-repro`."""

from r3_repro.workflow.cli import app

if __name__ == "__main__":
    app(prog_name="r3-repro")
