"""Batches of replies: nothing is written twice, and a resumed run makes the batches it would have made."""

from __future__ import annotations

import contextlib
import copy
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kangaroo_jax
from kangaroo_jax.engine.plan import Options, plan
from train.replies import Batch, Totals, Writer
from train.reply_rows import Reply, Row
from workshop.journal import Journal


class Told(Writer):
    """A writer whose replies are a function of row and turn: some are cut, some are empty."""

    asked: list[list[int]]

    def _prompt(self, row: Row) -> list[int]:
        return [7] * sum(len(message["content"]) for message in row.spoken())

    def _answer(
        self, batch: Batch, batch_size: int, check: Callable[[], None]
    ) -> tuple[list[tuple[int, Reply]], float]:
        check()
        assert len(batch) <= batch_size
        self.asked = [*getattr(self, "asked", []), [index for index, _ in batch]]
        return [(index, self._told(index)) for index, _ in batch], 0.5

    def _told(self, index: int) -> Reply:
        chance = zlib.crc32(f"{index} {len(self._rows[index].replies)}".encode())
        return Reply("r" * (chance % 9), 1 + chance % 9, 1, chance % 5 == 0)


def conversation(index: int, turns: int, size: int) -> Row:
    turn = [{"role": "user", "content": "q" * size}, {"role": "assistant", "content": "a"}]
    return Row(f"t:{index}", turn * turns)


class Stopped(Exception):
    pass


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 5), st.data()
)
def test_a_run_that_is_stopped_anywhere_goes_on_with_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: kangaroo_jax.Params,
    shapes: list[tuple[int, int]],
    size: int,
    data: Any,
) -> None:
    folder, checked = tmp_path_factory.mktemp("run"), plan(tiny, Options())
    rows = [conversation(index, *shape) for index, shape in enumerate(shapes)]
    whole, parts = copy.deepcopy(rows), copy.deepcopy(rows)
    undisturbed = Told(tiny, checked, whole, Journal(folder / "whole", {}))
    undisturbed.run(size, lambda: None)
    assert all(row.ended for row in whole)

    calls = data.draw(st.integers(0, len(rows) + len(undisturbed.asked)))

    def stop() -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Stopped

    first = Told(tiny, checked, parts, Journal(folder / "parts", {}))
    with contextlib.suppress(Stopped):
        first.run(size, stop)
    parts = copy.deepcopy(rows)
    second = Told(tiny, checked, parts, Journal(folder / "parts", {}))
    second.run(size, lambda: None)
    assert getattr(first, "asked", []) + getattr(second, "asked", []) == undisturbed.asked
    assert parts == whole and second.totals == undisturbed.totals
    assert (folder / "parts").read_bytes() == (folder / "whole").read_bytes()


def test_totals_count_all_batches() -> None:
    totals = Totals()
    assert (totals.speed, totals.compression_rate) == (0, 1)
    totals.add([Reply("a", 11, 4, False), Reply("", 1, 0, False)], 2)
    totals.add([Reply("b", 5, 3, True)], 2)
    assert (totals.replies, totals.tokens, totals.rounds) == (3, 17, 7)
    assert (totals.speed, totals.compression_rate) == (17 / 4, 2)


def written(params: kangaroo_jax.Params, file: Path, texts: list[str], size: int, **options: Any) -> list[Row]:
    rows = [Row(text, text=text) for text in texts]
    Writer(params, plan(params, Options(**options)), rows, Journal(file, {})).run(size, lambda: None)
    return rows


@pytest.mark.full
def test_sampled_replies_depend_on_seed_and_row_and_not_on_the_batch(tmp_path: Path, tiny: kangaroo_jax.Params) -> None:
    texts = ["same"] * 3 + ["other", "x"]
    options = {"max_new_tokens": 9, "do_sample": True, "temperature": 2.0, "seed": 3}
    rows = written(tiny, tmp_path / "one", texts, 1, **options)
    replies = [row.replies[0] for row in rows]
    assert len({reply.text for reply in replies[:3]}) == 3
    assert [row.replies[0] for row in written(tiny, tmp_path / "many", texts, 4, **options)] == replies
    other = written(tiny, tmp_path / "other", texts, 4, **options | {"seed": 4})
    assert all(row.replies[0].text != reply.text for row, reply in zip(other, replies, strict=True))


def test_a_batch_beyond_the_memory_is_refused_with_what_to_do(
    tmp_path: Path, tiny: kangaroo_jax.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kangaroo_jax.engine.memory.free_bytes", lambda: 10**6)
    with pytest.raises(ValueError, match=r"--batch-size is 16, and .* pass at most .* with a smaller one") as caught:
        written(tiny, tmp_path / "j", ["abc"] * 16, 16, max_new_tokens=50)
    assert "\n" not in str(caught.value)
