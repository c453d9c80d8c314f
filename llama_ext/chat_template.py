"""Chat: messages to one text, through the checkpoint's Jinja template or a built-in format.

A chat template comes with the weights and is untrusted code. It runs in Jinja's immutable sandbox, which
keeps it from Python's internals and from changing what it is given, and limits one `range` to 100,000
numbers. On top of that we limit the length of what it writes, of a repeated string and of a power. Not
bounded, because Jinja offers no way: its running time (two nested loops of 100,000 turns that write nothing
run for hours) and memory by other means (a string joined to itself in a loop, ``'%9999999999d' % 1``). Who
serves strangers' checkpoints renders in a process with limits of its own.

A message's content is pasted into the text as it is. If it spells a special token (``<|im_end|>``) that text
is read as the token once the rendered text is encoded; text from strangers should be checked or cleaned by
the caller first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from llama_ext.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    import jinja2

    from llama_ext.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "chat_template_for"]

_MAX_TEXT = 16 << 20  # characters a template may write, and elements a sequence may be repeated to
_MAX_BITS = 1 << 16  # of the result of a power

# The formats below are those that the models were trained on: ChatML (OpenAI), and Meta's model cards
# (https://www.llama.com/docs/model-cards-and-prompt-formats) for Llama 2, 3 and 4, Mistral's tokenization guide
# (https://docs.mistral.ai/guides/tokenization). They use `role` and `content` only.
_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}{{ '\\n' }}{{ message.content }}<|im_end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n' }}{%- endif -%}"""

# Contents are pasted as they are, as Meta's own `ChatFormat` does; the templates on Hugging Face trim them. A tool's
# answer has the role ipython, and in Llama 4 ends a message, not a turn.
_HEADERS = """\
{{- bos_token -}}
{%%- for message in messages -%%}
%(start)s{{ 'ipython' if message.role == 'tool' else message.role }}%(end)s{{ '\\n\\n' }}{{ message.content }}%(turn)s
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}%(start)sassistant%(end)s{{ '\\n\\n' }}{%%- endif -%%}"""

_LLAMA3 = _HEADERS % {"start": "<|start_header_id|>", "end": "<|end_header_id|>", "turn": "<|eot_id|>"}
_LLAMA4 = _HEADERS % {
    "start": "<|header_start|>",
    "end": "<|header_end|>",
    "turn": "{{ '<|eom|>' if message.role == 'tool' else '<|eot|>' }}",
}

# The system message goes into the first user message; every pair of turns is a text of its own between BOS
# and EOS.
_LLAMA2 = """\
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- set state.system = '<<SYS>>\\n' + message.content | trim + '\\n<</SYS>>\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ bos_token }}[INST] {{ state.system }}{{ message.content | trim }} [/INST]
{%- set state.system = '' -%}
{%- elif message.role == 'assistant' -%}
{{ ' ' }}{{ message.content | trim }} {{ eos_token }}
{%- else -%}
{{ raise_exception('the Llama 2 format knows a first system message, user and assistant messages') }}
{%- endif -%}
{%- endfor -%}"""

# Mistral's first format spells its markers as plain text; the system message goes into the first user message.
_MISTRAL_V1 = """\
{{- bos_token -}}
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- set state.system = message.content + '\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ '[INST] ' + state.system + message.content + ' [/INST]' }}
{%- set state.system = '' -%}
{%- elif message.role == 'assistant' -%}
{{ ' ' + message.content + eos_token }}
{%- else -%}
{{ raise_exception('the Mistral format knows a first system message, user and assistant messages') }}
{%- endif -%}
{%- endfor -%}"""

# Later ones have tokens for the markers. The system message goes into the last user message, or has markers of its
# own. `space` is what stands between a marker and a text where the tokenizer does not put it there by itself.
_MISTRAL = """\
{{- bos_token -}}
{%%- set state = namespace(system='', users=0) -%%}
{%%- for message in messages if message.role == 'user' -%%}{%%- set state.users = loop.index -%%}{%%- endfor -%%}
{%%- for message in messages -%%}
{%%- if message.role == 'system' and loop.first -%%}
%(system)s
{%%- elif message.role == 'user' -%%}
{%%- set state.users = state.users - 1 -%%}
{{ '[INST]' + space + (state.system if state.users == 0 else '') + message.content + '[/INST]' }}
{%%- elif message.role == 'assistant' -%%}
{{ space + message.content.rstrip(' ') + eos_token }}
{%%- else -%%}
{{ raise_exception('the Mistral format knows a first system message, user and assistant messages') }}
{%%- endif -%%}
{%%- endfor -%%}"""

_MISTRAL_V3 = _MISTRAL % {"system": "{%- set state.system = message.content + '\\n\\n' -%}"}
_MISTRAL_V7 = _MISTRAL % {"system": "{{ '[SYSTEM_PROMPT]' + space + message.content + '[/SYSTEM_PROMPT]' }}"}

_BUILT_IN = {
    "chatml": _CHATML,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "llama4": _LLAMA4,
    "mistral-v1": _MISTRAL_V1,
    "mistral-v3": _MISTRAL_V3,
    "mistral-v7": _MISTRAL_V7,
}


class _RefusedError(Exception):
    """A template called `raise_exception`: it does not take these messages."""


class _LimitError(Exception):
    """A template went past one of our limits."""


@cache
def _environment() -> jinja2.Environment:
    """The sandbox, with what templates written for transformers expect (`apply_chat_template` there)."""
    import datetime
    import json

    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}``: marks the assistant's part for training; here it only shows its body."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "*":
                for sequence, times in ((left, right), (right, left)):
                    repeats = isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int)
                    if repeats and len(sequence) * times > _MAX_TEXT:
                        raise _LimitError(f"it repeats a text {times} times")
            elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_BITS:
                raise _LimitError(f"it raises a number to the power {right}")
            return super().call_binop(context, operator, left, right)

    class SafeNamespace(Namespace):
        """A namespace without names such as ``__class__``, which reach into the interpreter."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"the name {name!r} is not allowed in a namespace")
            super().__setitem__(name, value)

    def make_namespace(*values: Any, **names: Any) -> SafeNamespace:
        made = SafeNamespace()
        for name, value in dict(*values, **names).items():
            made[str(name)] = value
        return made

    def raise_exception(message: object = "") -> None:
        raise _RefusedError(str(message))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own escapes for HTML (<, >, &), which a prompt must not have.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=make_namespace)
    return environment


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise OptionError(f"The messages are a {type(messages).__name__}: pass a list of dicts with role and content.")
    if not messages:
        raise OptionError("The list of messages is empty: pass at least one message.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise OptionError(f"Message {index} is a {type(message).__name__}: pass a dict with role and content.")
        for key in ("role", "content"):
            value = message.get(key)
            if not isinstance(value, str):
                given = "missing" if key not in message else f"a {type(value).__name__}"
                raise OptionError(f"The {key} of message {index} is {given}: pass a str.")


class ChatTemplate:
    """A template that turns messages into the text a model was trained to continue.

    Args:
        source: Jinja source.
        bos_token: the text of the BOS token, "" if there is none.
        eos_token: the text of the EOS token, "" if there is none.
        space: for our own Mistral format: what it writes between a marker and a text.
        name: what to call the template in messages: "checkpoint", or the name of a built-in format.

    Raises:
        CheckpointError: the source is no valid Jinja template.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", space: str = "", name: str = "checkpoint"
    ) -> None:
        import jinja2

        self.source = source
        self.name = name
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, "space": space}
        try:
            self._template = _environment().from_string(source)
        except (
            jinja2.TemplateError,
            RecursionError,
            SyntaxError,
            ValueError,
            OverflowError,
            MemoryError,
        ) as error:
            raise CheckpointError(
                f"The {name} chat template is no valid Jinja ({_brief(error)}): give another one."
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: dicts with a str `role` and a str `content`; further keys are passed on.
            add_generation_prompt: end with the beginning of the assistant's answer.
            tools: descriptions of functions (JSON schema) for templates that know them.
            variables: further names the template may use, such as `date_string`. Pass plain data only: the
                template can call the public methods of what it is given.

        Returns:
            The text. It may begin with BOS; `Tokenizer.encode` adds no second one.

        Raises:
            OptionError: a message is malformed (the text names its index), or the template refuses the
            conversation. CheckpointError: the template fails, reaches for what the sandbox forbids, or writes
            without end.
        """
        _check_messages(messages)
        names: dict[str, Any] = {**self._tokens, **variables}
        names.update(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None if tools is None else list(tools),
        )
        names.setdefault("documents", None)
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(names):
                length += len(piece)
                if length > _MAX_TEXT:
                    raise _LimitError(f"it writes more than {_MAX_TEXT} characters")
                pieces.append(piece)
        except _RefusedError as error:
            raise OptionError(f"The {self.name} chat template refuses these messages: {error}.") from None
        except (
            Exception
        ) as error:  # untrusted code can raise anything: TypeError, ZeroDivisionError, SecurityError, ...
            raise CheckpointError(
                f"The {self.name} chat template fails ({_brief(error)}): use another template."
            ) from error
        return "".join(pieces)


def _brief(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__.lstrip('_')}: {text[:200]}" if text else type(error).__name__


def chat_template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a checkpoint: its own, else the built-in format that its special tokens point to.

    ``<|im_start|>`` means ChatML, ``<|start_header_id|>`` Llama 3, ``<|header_start|>`` Llama 4, ``[INST]`` Mistral
    from its second tokenizer on; a SentencePiece vocabulary with ``<s>`` and ``</s>`` means Llama 2, or Mistral's first
    format where the checkpoint's config is a Mistral's. A base model has these tokens too, and
    its answers will show that it never learned the format.

    Raises:
        CheckpointError: the checkpoint's own template is no valid Jinja, or there is none and no format fits.
    """
    bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
    eos = "" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id)
    if tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer.chat_template, bos_token=bos, eos_token=eos)
    space = ""
    if _is_special(tokenizer, "<|start_header_id|>"):
        name = "llama3"
    elif _is_special(tokenizer, "<|header_start|>"):
        name = "llama4"
    elif _is_special(tokenizer, "<|im_start|>"):
        name = "chatml"
    elif _is_special(tokenizer, "[INST]") and _is_special(tokenizer, "[/INST]"):
        name = "mistral-v7" if _is_special(tokenizer, "[SYSTEM_PROMPT]") else "mistral-v3"
        first = tokenizer.encode("[INST]x", add_bos=False)[1:2]
        space = "" if first and tokenizer.token_bytes(first[0]).startswith(b" ") else " "
    elif tokenizer.chat_format == "mistral-v1":
        name = "mistral-v1"
    elif tokenizer.find("<0x0A>") is not None and (bos, eos) == ("<s>", "</s>"):
        name = "llama2"
    else:
        raise CheckpointError(
            "The checkpoint has no chat template, its special tokens fit no known format: use its instruct"
            " version, or generate from plain text."
        )
    # Without BOS in a checkpoint's habits, the format must not put one there either.
    bos = bos if tokenizer.add_bos else ""
    return ChatTemplate(_BUILT_IN[name], bos_token=bos, eos_token=eos, space=space, name=name)


def _is_special(tokenizer: Tokenizer, text: str) -> bool:
    index = tokenizer.find(text)
    return index is not None and (tokenizer.is_special(index) or tokenizer.is_user_defined(index))
