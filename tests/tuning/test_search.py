"""tune on a tiny random model: what it looks at, what it returns and stores. How fast anything is decides nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

import kangaroo_jax
from kangaroo_jax.cli import main
from kangaroo_jax.model import KangarooConfig, init_adapter
from kangaroo_jax.store import save_adapter
from kangaroo_jax.tuning import timers
from kangaroo_jax.tuning.outcome import Setting
from kangaroo_jax.tuning.replay import replay, trace
from kangaroo_jax.tuning.search import _shortlist, _with_choice, steps

PROMPTS = ["def f(x):", "import os", "class A"]
ETAS = (0.0, 0.05)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny: kangaroo_jax.Params) -> list[Path]:
    """Return the tiny model's adapter, copied, and one of exit layer 2."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copytree(tiny_model / "adapter", folder / "one")
    params = jax.device_get(init_adapter(tiny.config, jax.random.key(8)))
    save_adapter(folder / "two", tiny.config, KangarooConfig(2, 4, 0.1), params, {"steps": 3})
    return [folder / "one", folder / "two"]


def run(tiny: kangaroo_jax.Params, **arguments: Any) -> tuple[kangaroo_jax.Tuning, int]:
    """Tune in a hurry; return the outcome and the ticks."""
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timers, "SECONDS", 0.01)
        tuning = kangaroo_jax.tune(
            tiny,
            PROMPTS,
            max_new_tokens=30,
            max_gamma=5,
            etas=ETAS,
            candidates=1,
            tick=lambda: next(ticks),
            **arguments,
        )
    return tuning, next(ticks)


@pytest.fixture(scope="module")
def outcome(tiny: kangaroo_jax.Params, adapters: list[Path]) -> tuple[kangaroo_jax.Tuning, int]:
    return run(tiny, adapters=adapters[:1], repeats=1)


@pytest.fixture(scope="module")
def tuning(outcome: tuple[kangaroo_jax.Tuning, int]) -> kangaroo_jax.Tuning:
    return outcome[0]


@pytest.fixture(scope="module")
def slow(tuning: kangaroo_jax.Tuning) -> kangaroo_jax.Tuning:
    """The same, where the best setting had turned out slower than plain decoding."""
    chosen = next(setting for setting in tuning.settings if (setting.gamma, setting.eta) == (5, 0.3))
    chosen = dataclasses.replace(chosen, measured=0.9)
    return dataclasses.replace(tuning, chosen=chosen, params=_with_choice(tuning.params, chosen))


def test_every_setting_is_predicted(tuning: kangaroo_jax.Tuning, outcome: tuple[kangaroo_jax.Tuning, int]) -> None:
    found = {(setting.gamma, setting.eta) for setting in tuning.settings}
    assert found == {(gamma, eta) for gamma in range(1, 6) for eta in (*ETAS, 0.3)}
    predicted = [setting.predicted for setting in tuning.settings]
    assert predicted == sorted(predicted, reverse=True) and predicted[-1] > 0
    assert outcome[1] == steps(len(PROMPTS), repeats=1)


@pytest.mark.full
def test_adapters_of_two_exit_layers(tiny: kangaroo_jax.Params, adapters: list[Path]) -> None:
    tuning, ticks = run(tiny, adapters=adapters, repeats=2)
    assert ticks == steps(len(PROMPTS), 2, 2)
    asked = [(0, gamma, eta) for gamma in range(1, 6) for eta in (*ETAS, 0.3)]
    asked += [(1, gamma, eta) for gamma in range(1, 6) for eta in (*ETAS, 0.1)]
    assert sorted((s.adapter, s.gamma, s.eta) for s in tuning.settings) == sorted(asked)
    assert {(s.adapter, s.exit_layer) for s in tuning.settings if s.measured} == {(0, 1), (1, 2)}
    assert tuning.draft.exit_layer == tuning.chosen.exit_layer == tuning.params.draft.exit_layer
    table = str(tuning).splitlines()
    assert table[0].split() == ["adapter", "gamma", "eta", "tokens/round", "drafted", "predicted", "measured"]
    assert {line.split()[0] for line in table[1 : table.index("")]} == {"one", "two"}


def test_the_rates_are_those_of_real_runs(tuning: kangaroo_jax.Tuning, tiny: kangaroo_jax.Params) -> None:
    for setting in tuning.settings:
        if setting.adapter == 0 and setting.gamma == 5:
            runs = kangaroo_jax.generate(tiny, PROMPTS, method="kangaroo", gamma=5, eta=setting.eta, max_new_tokens=30)
            rounds = sum(out.stats.rounds for out in runs)
            assert setting.compression_rate == sum(sum(out.stats.accept_lengths) for out in runs) / rounds
            assert setting.drafted == sum(sum(out.stats.draft_lengths) for out in runs) / rounds


def test_the_predicted_speedup_is_the_counts_times_the_costs(
    tuning: kangaroo_jax.Tuning, tiny: kangaroo_jax.Params
) -> None:
    texts = [tiny.tokenizer.encode(prompt) for prompt in PROMPTS]
    traces = [trace(tiny, ids, 5, 30) for ids in texts]
    costs = tuning.costs[0]
    plain, alone = costs.plain * sum(len(traced.token_ids) - 1 for traced in traces), []
    for setting in tuning.settings:
        runs = [replay(traced, setting.gamma, setting.eta) for traced in traces]
        rounds, drafted = sum(run.rounds for run in runs), sum(run.drafted for run in runs)
        kangaroo = costs.decode_seconds(setting.gamma, rounds, drafted)
        alone.append((setting.predicted, plain, kangaroo))
    # predicted = (p + plain) / (k + kangaroo), with the same two prefills p and k for all.
    (a, _, one), (b, _, other) = alone[0], alone[-1]
    prefill = (b * other - a * one) / (a - b)
    top = a * (prefill + one)
    for predicted, _, kangaroo in alone:
        assert predicted * (prefill + kangaroo) == pytest.approx(top)
    assert prefill > 0 and top > plain


def test_the_best_and_what_there_was_are_measured(tuning: kangaroo_jax.Tuning) -> None:
    measured = [s for s in tuning.settings if s.measured]
    assert (5, 0.3) in {(s.gamma, s.eta) for s in measured} and tuning.settings[0] in measured
    assert tuning.chosen.measured == max(s.measured for s in measured if s.measured)
    assert tuning.before == (5, 0.3) and tuning.identical


def test_where_nothing_pays_decoding_is_plain(slow: kangaroo_jax.Tuning) -> None:
    assert not slow.pays and slow.draft.method == "plain"
    assert "plain decoding: no setting pays (best: gamma 5, eta 0.3: 0.90x)" in str(slow)
    usual = kangaroo_jax.generate(slow.params, PROMPTS[0], max_new_tokens=9)
    asked = kangaroo_jax.generate(slow.params, PROMPTS[0], max_new_tokens=9, method="kangaroo")
    assert (usual.stats.method, usual.stats.gamma) == ("plain", 0)
    assert (asked.stats.method, asked.stats.gamma) == ("kangaroo", 5)
    assert usual.token_ids == asked.token_ids
    pieces = kangaroo_jax.stream(slow.params, PROMPTS[0], max_new_tokens=9)
    with pytest.raises(StopIteration) as end:
        while True:
            next(pieces)
    assert end.value.value.stats.method == "plain"


def test_where_something_pays_its_gamma_and_eta_are_the_defaults(tiny: kangaroo_jax.Params) -> None:
    pays = Setting(0, 1, 5, 0.05, 2.0, 2.5, predicted=1.4, measured=1.3)
    model = _with_choice(tiny, pays)
    stats = kangaroo_jax.generate(model, "a", max_new_tokens=9).stats
    assert (stats.method, stats.gamma, stats.eta) == ("kangaroo", 5, 0.05)
    assert model.draft.exit_layer == 1 and pays.error == pytest.approx(1.4 / 1.3 - 1)


def test_a_gamma_is_measured_with_its_best_eta_alone() -> None:
    settings = [
        Setting(0, 1, gamma, eta, 2.0, 2.0, predicted=gamma + eta) for gamma in (1, 2, 3) for eta in (0.0, 0.1, 0.2)
    ]
    short = _shortlist(settings, 2, before=(1, 0.1))
    assert [(s.gamma, s.eta) for s in short] == [(3, 0.2), (2, 0.2), (1, 0.1)]
    # A gamma that was not looked at has no prediction, and is not measured.
    assert [(s.gamma, s.eta) for s in _shortlist(settings, 2, before=(4, 0.1))] == [(3, 0.2), (2, 0.2)]


def test_saved_and_loaded_the_choice_is_the_default(
    slow: kangaroo_jax.Tuning, tiny_model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    out = slow.save(out=tmp_path / "tuned")
    again = kangaroo_jax.load(tiny_model, adapter=out)
    assert again.draft == slow.draft and again.draft.method == "plain"
    assert kangaroo_jax.generate(again, "a", max_new_tokens=5).stats.method == "plain"
    assert kangaroo_jax.generate(again, "a", max_new_tokens=5, method="kangaroo").stats.draft_lengths
    note = json.loads((out / "adapter_config.json").read_text())["tuning"]
    assert note == slow.note() and note["device"] == "cpu" and note["versions"]["jax"] == jax.__version__
    assert slow.save() == adapters[0] and kangaroo_jax.load(tiny_model, adapter=adapters[0]).draft == slow.draft


def test_the_outcome_as_json_and_as_a_table(tuning: kangaroo_jax.Tuning, slow: kangaroo_jax.Tuning) -> None:
    fields = json.loads(json.dumps(slow.as_dict()))
    assert len(fields["settings"]) == len(slow.settings) and fields["pays"] is False
    assert fields["chosen"]["gamma"] == 5 and fields["method"] == "plain"
    table = str(tuning).splitlines()
    assert table[0].split() == ["gamma", "eta", "tokens/round", "drafted", "predicted", "measured"]
    assert sum("<- chosen" in line for line in table) == 1
    assert "params" not in repr(tuning)


def test_bad_input(tiny: kangaroo_jax.Params, tuning: kangaroo_jax.Tuning, tmp_path: Path) -> None:
    wrong = [
        ({"max_gamma": 0}, "max_gamma is 0"),
        ({"max_new_tokens": 1}, "max_new_tokens is 1; it must be at least 2"),
        ({"repeats": 0}, "repeats is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"etas": [-1]}, "etas is -1"),
        ({"prompts": []}, "prompt is an empty list"),
        ({"prompts": "x" * 200}, "takes at most 100"),
        ({"adapters": "one"}, "adapters is 'one'; pass a list"),
        ({"adapters": [tmp_path / "none"]}, "no adapter directory"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            kangaroo_jax.tune(tiny, **{"prompts": PROMPTS, **arguments})
    with pytest.raises(ValueError, match="has no adapter"):
        kangaroo_jax.tune(tiny.replace(adapter=None, draft=None), PROMPTS)
    with pytest.raises(ValueError, match="params is 'joey'"):
        kangaroo_jax.tune("joey")
    with pytest.raises(ValueError, match="directory is not known"):
        dataclasses.replace(tuning, adapters=(None,)).save()


def test_prompts_of_one_token_cannot_be_tuned_on(tiny: kangaroo_jax.Params) -> None:
    with pytest.raises(ValueError, match="no prompt gives more than one token"):
        kangaroo_jax.tune(tiny, [[7] * 100], max_new_tokens=30, max_gamma=5)  # A context of 101.


def test_the_command_prints_and_stores(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, and not in tests/cli, because the programs it runs are compiled already."""
    monkeypatch.setattr(timers, "SECONDS", 0.01)
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    record = model / "adapter" / "adapter_config.json"
    file, before = tmp_path / "prompts.jsonl", record.read_bytes()
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    command = ["tune", "--model", str(model), "--prompts", str(file), "--max-new-tokens", "30", "--max-gamma", "5"]
    command += ["--candidates", "1", "--repeats", "1"]
    assert main(command) == 0
    out = capsys.readouterr()
    assert "<- chosen" in out.out and out.err == "nothing is stored; --save stores the choice with the adapter\n"
    assert record.read_bytes() == before

    assert main([*command, "--save", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["saved"] == str(model / "adapter")
    draft, chosen = kangaroo_jax.load(model).draft, printed["chosen"]
    assert (draft.gamma, draft.eta, draft.method) == (chosen["gamma"], chosen["eta"], printed["method"])

    # Every command decodes so now, unless it is told otherwise.
    record.write_text(json.dumps(json.loads(record.read_text()) | {"method": "plain", "gamma": 5}))
    for extra, method in (([], "plain"), (["--method", "kangaroo"], "kangaroo")):
        assert main(["import os", "--model", str(model), "--max-new-tokens", "3", "--json", *extra]) == 0
        assert json.loads(capsys.readouterr().out)["method"] == method
