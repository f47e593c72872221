"""What is made once for a run, in files of 64 rows."""

from pathlib import Path

import torch

from ddm_rt.train.disk_cache import Portions, Rows


def test_a_row_is_taken_from_the_file_that_it_lies_in(tmp_path: Path) -> None:
    made = Portions(tmp_path, "number", 150).made(lambda rows: {"number": torch.arange(rows.start, rows.stop)})
    assert [len(part["number"]) for part in made] == [64, 64, 22]
    index = torch.tensor([149, 0, 63, 64, 127, 128])
    assert torch.equal(Rows(tuple(part["number"] for part in made)).take(index), index)
