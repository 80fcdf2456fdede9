r"""Hold a conversation: a line is a message, and the model answers.

python -m kangaroo_jax chat --model vicuna-7b             talk with Vicuna
python -m kangaroo_jax chat --system "Be brief."          with a system message
python -m kangaroo_jax chat --do-sample --seed 1          with answers drawn at random
python -m kangaroo_jax chat < messages.txt                answer each line of a file

Each message adds only itself to the caches that are kept; the line below an answer says how many tokens of the
conversation had to be prefilled for it. joey, the default model, has never seen a conversation: it goes on with a text.
Where a model also writes what the user would say next, a stop string ends its answers: --stop "\nUser:"

Ctrl-C ends an answer; it stays in the conversation as far as it came. At the prompt Ctrl-C clears the line, and
pressed again leaves, as Ctrl-D does. /help lists the commands; a message that starts with a slash is written with two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import kangaroo_jax
from kangaroo_jax.cli import common_options as options
from kangaroo_jax.cli import lines, terminal
from kangaroo_jax.store import home

COMMANDS = {
    "/help": "list the commands",
    "/history": "show the conversation",
    "/reset": "forget the conversation, all but the system message",
    "/exit": "leave",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = options.new_parser("chat", __doc__)
    add = parser.add_argument
    options.add_model(parser)
    add("--system", metavar="TEXT", help="system message (default: the template's)")
    add(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja file that makes a prompt of a conversation (default: the tokenizer's)",
    )
    add(
        "--chat-template-kwargs",
        metavar="JSON",
        help='variables for the chat template, as {"enable_thinking": false}',
    )
    add(
        "--context",
        type=int,
        metavar="N",
        help="most tokens of a conversation (default: what the model takes, at most 4096)",
    )
    options.add_decoding(parser, max_new_tokens=512)
    options.add_writing(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends; returns the exit status 0.

    Raises:
        ValueError: on bad options; a message that is refused is reported, and the conversation goes on.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # Bytes that are no text are refused with their message.
    chat = _start(args)
    typed = sys.stdin.isatty()
    with lines.remembered(home() / "chat_history") if typed else contextlib.nullcontext():
        if typed:
            _note(f"{args.model}: /help lists the commands, Ctrl-D leaves")
        _talk(chat, typed)
    return 0


def _start(args: argparse.Namespace) -> kangaroo_jax.Chat:
    """Load the model and start a conversation."""
    template = None
    if args.chat_template is not None:
        try:
            template = args.chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ValueError(f"{args.chat_template} cannot be read ({reason}); pass a Jinja file") from error
    variables = _object("--chat-template-kwargs", args.chat_template_kwargs)
    params = options.load(args)
    try:
        return kangaroo_jax.Chat(
            params,
            system=args.system,
            chat_template=template,
            chat_template_kwargs=variables,
            context=args.context,
            **options.writing(args),
        )
    except ValueError as error:
        if "has no chat template" not in str(error):
            raise
        raise ValueError(
            f"{args.model} has no chat template; pass --chat-template FILE, Jinja as transformers takes it"
        ) from error


def _object(option: str, text: str | None) -> dict[str, Any] | None:
    """Return the JSON object that an option gives; None without it."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f'{option} is {text!r:.60}; pass a JSON object, as {{"enable_thinking": false}}')
    return value


def _talk(chat: kangaroo_jax.Chat, typed: bool) -> None:
    """Answer lines and obey commands until there are no more.

    Args:
        chat: the conversation.
        typed: whether somebody types the lines, and can go on after Ctrl-C.
    """
    while (line := _read(typed)) is not None:
        command = line.strip()
        if command.startswith("/") and not line.startswith("//"):
            if command == "/exit":
                return
            _obey(chat, command)
        elif command:
            _answer(chat, line.removeprefix("/") if line.startswith("//") else line, typed)


def _read(typed: bool) -> str | None:
    """Return the next line; None at the end of the input, or when Ctrl-C is pressed twice."""
    interrupted = False
    while True:
        try:
            return input("> " if typed and sys.stdout.isatty() else "")
        except EOFError:
            if typed:
                print()
            return None
        except KeyboardInterrupt:
            if not typed:
                raise
            print()
            if interrupted:
                return None
            interrupted = True
            _note("Ctrl-C again or Ctrl-D leaves")


def _obey(chat: kangaroo_jax.Chat, command: str) -> None:
    if command == "/help":
        width = max(map(len, COMMANDS))
        print("\n".join(f"{name:{width}}  {meaning}" for name, meaning in COMMANDS.items()))
        print("All else is a message; one that starts with a slash is written with two: //.", flush=True)
    elif command == "/history":
        for message in chat.history:
            print(f"{message['role']}: {message['content']}", flush=True)
    elif command == "/reset":
        chat.reset()
        _note("the conversation is forgotten")
    else:
        _refuse(f"unknown command {command!r:.60}; /help lists them, and a message with a slash in front has two: //")


def _answer(chat: kangaroo_jax.Chat, text: str, typed: bool) -> None:
    """Write an answer as it comes, and below it what it cost."""
    try:
        answer = terminal.show(chat.send(text, stream=True))
    except ValueError as error:
        undecoded = any("\udc80" <= character <= "\udcff" for character in text)
        _refuse("this line is not UTF-8; pass valid text" if undecoded else str(error))
    except KeyboardInterrupt:
        if not typed:
            raise
        print()
        _note("stopped")
    else:
        stats, cut = answer.stats, ", cut at its token budget" if answer.finish_reason == "length" else ""
        _note(f"[{stats.summary()}, prefilled {stats.prefilled_tokens} of {stats.prompt_tokens} tokens{cut}]")


def _note(text: str) -> None:
    """Write a line that is no part of the conversation; dimmed on a terminal."""
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)


def _refuse(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr, flush=True)
