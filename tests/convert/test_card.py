"""Model cards: what an adapter records is in them, and what it does not is called not recorded."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest
from huggingface_hub import ModelCard

from convert.adapter import main
from convert.card import Labels, model_card
from kangaroo_jax.model import KangarooConfig, init_adapter
from kangaroo_jax.store import fingerprint, home, read_config, save_adapter
from kangaroo_jax.store.adapters import read_adapter

TARGET = Path(__file__).parent.parent / "fixtures" / "llama" / "gqa"
CONFIG = read_config(TARGET)
TRAINING = {
    "model": "someone/model",
    "steps": 1200,
    "tokens": 3456789,
    "data": ["talks", "books"],
    "held_out_acceptance": 0.71234,
    "top1": 0.5,
    "init_adapter": "earlier",
}


@pytest.fixture
def write(tmp_path):
    """Return a function that makes the card of an adapter with the training and labels given."""

    def write(training, **labels):
        params = init_adapter(CONFIG, jax.random.key(0))
        save_adapter(tmp_path / "ours", CONFIG, KangarooConfig(2, 5, 0.3), params, training)
        return model_card(CONFIG, read_adapter(tmp_path / "ours", CONFIG), Labels(**labels))

    return write


def facts(card):
    """The card's list items."""
    return dict(re.findall(r"^- (.*?): (.*)$", card.text, re.MULTILINE))


def test_a_card_says_what_is_recorded(write):
    card = write(TRAINING, base_model="someone/model", licence="apache-2.0")
    found = facts(card)
    assert card.text.startswith("\n# Kangaroo adapter for someone/model\n")
    assert f"`{fingerprint(CONFIG)}`" in found["target"] and "https://huggingface.co/someone/model" in found["target"]
    assert found["exit layer"] == "2"
    assert found["gamma, the most tokens drafted in a round"] == "5"
    assert found["eta, the confidence below which drafting stops"] == "0.3"
    # q and o of 48 x 48, k and v of 48 x 24, two norms.
    assert found["parameters"] == f"{2 * 48 * 48 + 2 * 48 * 24 + 2 * 48:,} (float32)"
    assert (found["data"], found["tokens"], found["steps"]) == ("talks, books", "3,456,789", "1,200")
    assert found["started from the adapter"] == "earlier"
    assert found["expected acceptance on held-out text, sum_v min(p_v, q_v)"] == "0.7123"
    assert sum("agree" in key for key in found) == 1  # held_out_top1 is not recorded, and not there.
    assert "not recorded" not in card.text and "apache-2.0. The target" in card.text


def test_a_card_invents_nothing(write):
    card = write({})
    found = facts(card)
    assert "# Kangaroo adapter\n" in card.text
    assert found["target"].startswith("not recorded; llama, ")
    assert {found[name] for name in ("data", "tokens", "steps", "acceptance")} == {"not recorded"}
    assert "Not stated by who exported the adapter." in card.text
    assert 'load("MODEL", adapter="DIR")' in card.text


def test_front_matter_is_what_the_hub_reads(write, tmp_path):
    write(TRAINING, base_model="someone/model", licence="mit").save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == {
        "base_model": "someone/model",
        "base_model_relation": "adapter",
        "library_name": "kangaroo_jax",
        "license": "mit",
        "tags": ["kangaroo", "speculative-decoding", "early-exit", "jax"],
    }
    data = write(TRAINING).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "not-stated")
    assert "base_model" not in data and "base_model_relation" not in data


def test_recorded_text_stays_on_its_line(write):
    found = facts(write({"data": ["a\n- steps: 9", 3], "steps": "many\n\n# Heading", "tokens": {"a": 1.5}}))
    assert found["data"] == r'\["a\\n- steps: 9", 3\]'
    assert (found["steps"], found["tokens"]) == (r"many \# Heading", '{"a": 1.5}')


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("<img src=x> &amp;", r"\<img src=x\> \&amp;"),
        ("[x](javascript:1) ![y](z)", r"\[x\](javascript:1) \!\[y\](z)"),
        ("`code` *a* _b_ ~c~ |d| $e$", r"\`code\` \*a\* \_b\_ \~c\~ \|d\| \$e\$"),
        ("http://evil a@b", r"http\://evil a\@b"),
        ("a\\[b", r"a\\\[b"),
        ("a\x1b[31m\ud800\u202eb", r"a\[31mb"),
        ("\x00", "not recorded"),
        (["x" * 150, "y" * 100_000], "x" * 150 + ", " + "y" * 45 + "..."),
    ],
)
def test_recorded_text_is_no_markup_and_not_long(write, value, said, tmp_path):
    card = write({"model": value, "data": value, "imported_from": value, "init_adapter": value, "top1": value})
    found = facts(card)
    assert {found["data"], found["imported from"], found["started from the adapter"]} == {said}
    assert found["target"].startswith(f"{said}; llama, ") and f"# Kangaroo adapter for {said}\n" in card.text
    card.save(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"licence": "My own"}, "licence is 'My own'; give one of the hub's identifiers"),
        ({"base_model": "vicuna"}, "base_model is 'vicuna'; give the target's hub id, OWNER/NAME"),
        ({"base_model": "../../x"}, "give the target's hub id"),
    ],
)
def test_labels_the_hub_would_refuse(labels, said):
    with pytest.raises(ValueError, match=said):
        Labels(**labels)


def test_an_alias_is_its_hub_id(write, tmp_path, monkeypatch, capsys):
    write(TRAINING)
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    home().mkdir()
    (home() / "tinyllama").symlink_to(TARGET)
    assert main(["export", str(tmp_path / "ours"), "--target", "tinyllama", "--out", str(tmp_path / "given")]) == 0
    card = ModelCard.load(tmp_path / "given" / "README.md")
    assert card.data.base_model == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert "python -m convert.hf_to_flax tinyllama" in card.text and 'load("tinyllama", adapter="DIR")' in card.text
    argv = ["export", str(tmp_path / "ours"), "--target", "tinyllama", "--out", str(tmp_path / "no")]
    assert main([*argv, "--licence", "MIT License"]) == 2
    assert "licence is 'MIT License'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_card_of_joeys_adapter_has_its_figures(tmp_path):
    assert main(["export", "--target", "joey", "--out", str(tmp_path / "given")]) == 0
    card = ModelCard.load(tmp_path / "given" / "README.md")
    found = facts(card)
    assert found["target"].startswith("joey; llama, 10 layers, hidden size 320")
    assert (found["data"], found["tokens"], found["steps"]) == ("greedy128.jsonl", "3,686,400", "900")
    assert found["expected acceptance on held-out text, sum_v min(p_v, q_v)"] == "0.8978"
    assert "hf_to_flax" not in card.text and 'load("joey", adapter="DIR")' in card.text
