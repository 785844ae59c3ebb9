"""HellaSwag on real rows with a pretrained model and its tokenizer: the numbers are lm-eval's own, as for a random model."""

from pathlib import Path

from test_benchmark_files import folder, same_numbers  # noqa: F401


def test_the_numbers_of_a_pretrained_model_are_lm_evals_own(real: Path, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    same_numbers(real, folder, tmp_path, "HellaSwag", 12)
