"""Records say how something was made, without the places of one machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workshop import provenance as made
from workshop.provenance import provenance, weights_digest


def test_a_command_keeps_the_last_parts_of_its_paths(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "run"), "--data", "./texts/a.txt", "--note", "two words", "--steps", "7"]
    found = provenance("train.adapter", words, ("jax", "numpy"))
    assert found["command"] == "python -m train.adapter --out run --data a.txt --note 'two words' --steps 7"
    assert found["versions"].keys() == {"jax", "numpy"} and found["versions"]["numpy"] == np.__version__
    assert found["devices"].split(" x ")[0].isdigit()


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(made, "__file__", str(tmp_path / "package" / "provenance.py"))
    assert made.commit() is None
    (tmp_path / ".git").mkdir()  # Of nothing that git can read.
    assert made.commit() is None


def test_a_digest_sees_first_rows_and_where_asked_shapes() -> None:
    one, longer = {"a": np.arange(6.0).reshape(2, 3)}, {"a": np.arange(9.0).reshape(3, 3)}
    other = {"a": one["a"] + 1}
    assert weights_digest(one) == weights_digest(longer) != weights_digest(other)
    assert weights_digest(one, shapes=True) != weights_digest(longer, shapes=True)
    assert weights_digest({"eta": np.float32(0.5)}) != weights_digest({"eta": np.float32(0.6)})
