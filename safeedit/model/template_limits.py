"""Chat templates are programs of strangers: tried apart before they are rendered here.

A template can't reach files or the network (transformers renders in jinja's sandbox), but it can
loop for ever or write without end. So each is first rendered in a process of its own, with
little memory and little time, where it does no harm; one that passes is rendered here under a
clock, for those that go astray on some texts only.

Fails with :class:`~safeedit.errors.ModelError`.
"""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from safeedit.errors import ModelError

SECONDS = 10.0
"""Time for a template to render a short conversation; honest ones take milliseconds."""

MAX_CHARACTERS = 200_000
"""Longest prompt made of a short conversation, and longest template."""

_MEMORY = 2 << 30

_TRIAL = f"""
import json, resource, sys
for limit, most in ((resource.RLIMIT_AS, {_MEMORY}), (resource.RLIMIT_CPU, {int(SECONDS) + 1})):
    try:
        resource.setrlimit(limit, (most, most))
    except (ValueError, OSError):
        pass
import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

class GenerationMarker(Extension):
    tags = {{"generation"}}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

def refuse(message):
    raise jinja2.TemplateError(message)

request = json.load(sys.stdin)
said = "fine"
try:
    home = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarker, loopcontrols]
    )
    home.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    home.globals |= {{"raise_exception": refuse, "strftime_now": lambda form: "26 Jul 2024"}}
    template = home.from_string(request["template"])
    for conversation in request["conversations"]:
        n = 0
        try:
            for part in template.generate(**conversation):
                n += len(part)
                if n > {MAX_CHARACTERS}:
                    raise MemoryError
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
            pass
except (MemoryError, OverflowError):
    said = "memory"
except RecursionError:
    said = "recursion"
except Exception:  # whatever else is wrong with it is said when it is used
    pass
print(said)
"""


class _TimeIsUpError(Exception):
    """Put into a thread whose time is up."""


def conversations() -> list[dict[str, object]]:
    """What a template is tried with: the shapes of conversation that prompts are made of."""
    user = {"role": "user", "content": "Who is it?"}
    system = {"role": "system", "content": "Be brief."}
    assistant = {"role": "assistant", "content": "It is me."}
    asked = ([user], [system, user], [user, assistant], [system, user, assistant])
    options = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}
    return [
        {"messages": messages, "add_generation_prompt": messages[-1] is user, **options}
        for messages in asked
    ]


@functools.cache
def check_template(template: str) -> None:
    """Make sure that rendering a template ends, soon and with a text of some length.

    A template that refuses a conversation passes: that is said when it is used.

    Raises:
        ModelError: It does not.
    """
    if len(template) > MAX_CHARACTERS:
        raise _refused(f"is longer than {MAX_CHARACTERS} characters")
    request = json.dumps({"template": template, "conversations": conversations()})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL],
            input=request,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"did not end within {SECONDS:.0f} seconds") from None
    said = done.stdout.strip()
    if said != "fine":
        raise _refused(
            "calls itself without end" if said == "recursion" else "fills the memory with its text"
        )


@contextmanager
def under_a_clock(seconds: float = SECONDS) -> Iterator[None]:
    """Within it, the thread is stopped when its time is up.

    Raises:
        ModelError: It was.
    """
    thread, over = threading.get_ident(), threading.Lock()
    ended = False

    def stop() -> None:
        with over:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(_TimeIsUpError)
                )

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with over:
                ended = True
            timer.cancel()
    except _TimeIsUpError:
        raise _refused(f"did not end within {seconds:.0f} seconds") from None


def _refused(what: str) -> ModelError:
    return ModelError(
        f"the chat template {what}: rendering a short conversation takes others milliseconds",
        remedy="use the tokenizer files of the model's own publisher, or take the template out of "
        "a copy of the folder: questions are then put as plain text",
    )
