"""python -m kangaroo_jax chat: lines in, answers out, and how it goes on after Ctrl-C and errors."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kangaroo_jax
from kangaroo_jax.cli import chat_command as command
from kangaroo_jax.engine.run import Run

Outcome = tuple[int, str, str]
PIPED, TYPED = False, True


class Input(io.StringIO):
    """Standard input; the line ``^C`` is that key."""

    def __init__(self, lines: tuple[str, ...], typed: bool) -> None:
        super().__init__("".join(line + "\n" for line in lines))
        self.typed = typed

    def isatty(self) -> bool:
        return self.typed

    def readline(self, *args: Any) -> str:  # type: ignore[override]
        line = super().readline(*args)
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def talk(run: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Talk with the tiny model; returns exit status, standard output and standard error."""

    def call(*lines: str, typed: bool = PIPED, argv: tuple[str, ...] = (), **options: Any) -> Outcome:
        monkeypatch.setattr(sys, "stdin", Input(lines, typed))
        return run("--max-new-tokens", "5", *argv, command="chat", **options)

    return call


@pytest.fixture
def answers(tiny: kangaroo_jax.Params) -> Callable[..., list[str]]:
    """What a ``Chat`` answers to the same messages."""

    def call(*texts: str, **options: Any) -> list[str]:
        chat = kangaroo_jax.Chat(tiny, max_new_tokens=5, **options)
        return [chat.send(text).text for text in texts]

    return call


def as_lines(texts: list[str]) -> str:
    return "".join(text + "\n" for text in texts)


def test_each_line_of_a_pipe_is_answered(talk: Any, answers: Any, own_home: Path) -> None:
    status, out, err = talk("Hello", "", "  \t", " and now?")
    assert (status, out) == (0, as_lines(answers("Hello", " and now?")))
    first, second = err.splitlines()
    assert first.startswith("[5 tokens, ") and "compression rate" in first
    assert first.endswith(", prefilled 24 of 24 tokens, cut at its token budget]")
    assert second.startswith("[5 tokens, ") and ", prefilled " in second
    assert not own_home.exists()  # Only what is typed is kept.


def test_a_pipe_that_is_empty_is_no_error(talk: Any) -> None:
    assert talk() == (0, "", "")


def test_a_prompt_is_shown_to_who_types(talk: Any, answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = talk("Hello", typed=TYPED)
    assert (status, out) == (0, as_lines(answers("Hello")) + "\n")  # not in what is redirected
    assert "/help" in err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, out, err = talk("Hello", typed=TYPED)
    assert (status, out) == (0, "> " + as_lines(answers("Hello")) + "> \n")
    assert "\033[2m[5 tokens, " in err and "tokens, cut at its token budget]\033[0m\n" in err


def test_help_names_every_command(talk: Any) -> None:
    status, out, err = talk("/help")
    assert (status, err) == (0, "")
    assert all(f"{name} " in out and meaning in out for name, meaning in command.COMMANDS.items())
    assert "//" in out


def test_history_and_reset(talk: Any, answers: Any) -> None:
    status, out, err = talk("Hello", "/history", "/reset", "/history", "Hello", argv=("--system", "Be kind."))
    (answer,) = answers("Hello", system="Be kind.")
    system = "system: Be kind.\n"
    shown = f"{system}user: Hello\nassistant: {answer.strip()}\n"
    assert (status, out) == (0, f"{answer}\n{shown}{system}{answer}\n")
    assert err.splitlines()[1] == "the conversation is forgotten"


def test_exit_leaves(talk: Any, answers: Any) -> None:
    assert talk("Hello", " /exit ", "and now?")[:2] == (0, as_lines(answers("Hello")))


def test_an_unknown_command_is_named(talk: Any, answers: Any) -> None:
    status, out, err = talk("/exits now", "Hello")
    assert (status, out) == (0, as_lines(answers("Hello")))
    assert err.splitlines()[0].startswith("error: unknown command '/exits now'; /help lists them")


def test_a_message_may_start_with_a_slash(talk: Any, answers: Any) -> None:
    assert talk("//etc", "a / b", "///")[:2] == (0, as_lines(answers("/etc", "a / b", "//")))


def test_a_message_that_is_refused_does_not_end_the_chat(talk: Any, answers: Any) -> None:
    status, out, err = talk("Hello", "x" * 200, "caf\udce9", "and now?")
    assert (status, out) == (0, as_lines(answers("Hello", "and now?")))
    figures, too_long, no_text, _ = err.splitlines()
    assert figures.startswith("[5 tokens")
    assert too_long.startswith("error: the conversation has ") and "reset()" in too_long
    assert no_text == "error: this line is not UTF-8; pass valid text"


def test_ctrl_c_ends_an_answer_and_not_the_chat(talk: Any, answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(self: Run, *_: Any) -> list[str]:
        monkeypatch.setattr(Run, "advance", real)
        raise KeyboardInterrupt

    real = Run.advance
    monkeypatch.setattr(Run, "advance", advance)
    status, out, err = talk("Hello", "/reset", "Hello", typed=TYPED)
    assert status == 0 and out.endswith("\n" + as_lines(answers("Hello")) + "\n")
    assert err.splitlines()[1:3] == ["stopped", "the conversation is forgotten"]


def test_ctrl_c_at_the_prompt_clears_the_line(talk: Any, answers: Any) -> None:
    status, out, err = talk("^C", "Hello", "^C", "and now?", typed=TYPED)
    first, second = answers("Hello", "and now?")
    assert (status, out) == (0, f"\n{first}\n\n{second}\n\n")
    assert err.count("Ctrl-C again or Ctrl-D leaves") == 2


def test_ctrl_c_twice_leaves(talk: Any, answers: Any) -> None:
    status, out, _ = talk("Hello", "^C", "^C", "and now?", typed=TYPED)
    assert (status, out) == (0, as_lines(answers("Hello")) + "\n\n")


def test_ctrl_c_ends_a_chat_that_nobody_types(talk: Any, answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = talk("Hello", "^C", "and now?")
    assert (status, out) == (130, as_lines(answers("Hello")))
    assert err.endswith("\ninterrupted\n")

    def advance(self: Run, *_: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "advance", advance)
    assert talk("Hello", "and now?")[0] == 130


def test_what_is_typed_is_kept(talk: Any, own_home: Path) -> None:
    talk("Hello", typed=TYPED)
    assert [path.name for path in own_home.iterdir()] == ["chat_history"]


def test_options_reach_the_chat(talk: Any, answers: Any, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}[{{ message['content'] }}]\n{% endfor %}")
    argv = ("--chat-template", str(template), "--eta", "0.9", "--temperature", "1.5", "--seed", "3")
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "seed": 3}
    expected = answers("Hello", chat_template=template.read_text(), eta=0.9, **drawn)
    assert talk("Hello", argv=argv)[:2] == (0, as_lines(expected))
    assert talk("Hello", argv=("--method", "plain"))[:2] == (0, as_lines(answers("Hello", method="plain")))
    assert "compression rate" not in talk("Hello", argv=("--method", "plain"))[2]
    assert "holds 39:" in talk("Hello, hello, hello, hello", argv=("--context", "40"))[2]


def test_a_stop_string_ends_answers(talk: Any, answers: Any) -> None:
    (whole,) = answers("Hello")
    stop = whole[1]
    assert stop != whole[0]
    status, out, err = talk("Hello", argv=("--stop", "never", "--stop", stop))
    assert (status, out) == (0, whole[0] + "\n") and "budget" not in err


def test_a_model_without_a_template_needs_a_file(
    talk: Any, refused: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = tmp_path / "template.jinja"
    template.write_text(config.pop("chat_template"))
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert f"{model} has no chat template; pass --chat-template FILE" in refused(command="chat", model=str(model))
    assert talk("Hello", argv=("--chat-template", str(template)), model=str(model))[:2] == talk("Hello")[:2]


def test_variables_for_the_template(talk: Any, answers: Any, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}{% if loud %}!{% endif %}")
    argv = ("--chat-template", str(template), "--chat-template-kwargs", '{"loud": true}')
    expected = answers("Hello", chat_template="{{ messages[0].content }}!")
    assert talk("Hello", argv=argv)[1] == as_lines(expected)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--context", "0"], ("context is 0", "at least 2")),
        (["--system", "x" * 101], ("tokens", "holds 100")),
        (["--stop", ""], ("stop_strings", "empty")),
        (["--top-p", "2"], ("top_p is 2",)),
        (["--gamma", "0"], ("gamma is 0",)),
        (["--chat-template", "nowhere.jinja"], ("nowhere.jinja cannot be read", "No such file")),
        (["--chat-template", __file__ + "c"], ("cannot be read",)),
        (["--chat-template-kwargs", "{"], ("--chat-template-kwargs is '{'", "pass a JSON object")),
        (["--chat-template-kwargs", "[3]"], ("--chat-template-kwargs is '[3]'", "pass a JSON object")),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(refused: Any, argv: list[str], words: tuple[str, ...]) -> None:
    message = refused(*argv, command="chat")
    assert all(word in message for word in words), message


def test_a_template_that_is_no_text_is_one_line(refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_bytes(b"\xff")
    assert f"{file} cannot be read (not UTF-8)" in refused("--chat-template", str(file), command="chat")
    file.write_text("{% nonsense")
    assert "the chat template fails" in refused("--chat-template", str(file), command="chat")


def test_a_process_of_its_own(tiny_model: Path, answers: Any) -> None:
    """Bytes that are no text are refused, and the rest is answered."""
    argv = [sys.executable, "-m", "kangaroo_jax", "chat", "--model", str(tiny_model), "--max-new-tokens", "5"]
    done = subprocess.run(argv, input=b"Hello\n\xff\n/history\nand now?", capture_output=True)
    first, second = answers("Hello", "and now?")
    assert done.returncode == 0
    assert done.stdout.decode() == f"{first}\nuser: Hello\nassistant: {first.strip()}\n{second}\n"
    assert b"error: this line is not UTF-8" in done.stderr
