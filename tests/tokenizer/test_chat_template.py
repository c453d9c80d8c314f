"""Chat templates: the same text as transformers renders, and nothing of Python within a template's reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizer_oracles import CONTROL, Pair

from llama_ext.chat_template import ChatTemplate, chat_template_for
from llama_ext.errors import CheckpointError, OptionError

# Written for this test in the manner of Llama 3's: dates, tools as JSON, loop controls, a refused order of
# roles.
LLAMA3_LIKE = """\
{{- bos_token }}
{%- set now = date_string if date_string is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
    {%- set rest = messages %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ now }}
{% if tools is not none %}
Tools:
{% for tool in tools %}
{{ tool | tojson(indent=4) }}

{% endfor %}
{% endif %}
{{ system_message }}<|eot_id|>
{%- set ns = namespace(count=0) %}
{%- for message in rest %}
    {%- if message.role not in ('user', 'assistant', 'tool') %}
        {{- raise_exception("roles must be user, assistant or tool") }}
    {%- endif %}
    {%- if message.skip is defined and message.skip %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
{# a comment #}
    {% if ns.count > 3 %}
many {{ ns.count }}
    {% endif %}
{% generation %}g{% endgeneration %}
"""

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Grüße <b>&\"'日本\n\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "left out", "skip": True},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"a": [1, None, True], "b": "<&>"}}}]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("source", ["smollm2", "llama3-like"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_renders_as_transformers_does(
    vocabulary: Callable[..., Pair], source: str, add_generation_prompt: bool, tools: Any
) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = vocabulary("smollm2").ours
    assert tokenizer.chat_template is not None
    template = tokenizer.chat_template if source == "smollm2" else LLAMA3_LIKE
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer._backend,  # type: ignore[attr-defined]
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    ours = ChatTemplate(template, bos_token="<|im_start|>", eos_token="<|im_end|>")
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(
            messages,
            chat_template=template,
            tools=tools,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        assert ours.render(messages, add_generation_prompt=add_generation_prompt, tools=tools) == expected


def test_smollm2s_own_template_encodes_to_its_markers(vocabulary: Callable[..., Pair]) -> None:
    tokenizer = vocabulary("smollm2").ours
    template = chat_template_for(tokenizer)
    assert template.name == "checkpoint"
    ids = tokenizer.encode(template.render([{"role": "user", "content": "Hi"}]))
    assert ids.count(tokenizer.bos_id or 0) == 3  # system, user, assistant begin with <|im_start|>, which is BOS here
    assert tokenizer.decode(ids).endswith("assistant\n")


def test_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ date_string }} {{ strftime_now('%Y') | length }}")
    assert template.render([{"role": "user", "content": ""}], date_string="1 May") == "1 May 4"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}x{{ raise_exception.__globals__.os.name }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ (''|attr('__class__')).__mro__[1] }}",
        "{{ '{0.__class__.__mro__[1].__subclasses__}'.format('') }}",
        "{{ '%s'.__mod__.__self__.__class__.x.y }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ self._TemplateReference__context.environment.x() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'aaaaaaaaaa' }}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ (10 ** 12) * ['a'] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ dict.mro() }}",
        "{{ 1 / 0 }}",
        "{{ missing.name }}",
        "{{ 1 + 'a' }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% if %}",
        "{% for x in messages %}",
        "{{ 'unterminated }}",
        "{{ " + "(" * 2000 + ")" * 2000 + " }}",
    ],
)
def test_a_hostile_template_is_an_error(source: str) -> None:
    with pytest.raises(CheckpointError):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "pass a list"),
        (None, "pass a list"),
        ([], "empty"),
        (["hello"], "Message 0"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], "content of message 1 is missing"),
        ([{"role": 1, "content": "a"}], "role of message 0"),
        ([{"role": "user", "content": None}], "content of message 0"),
    ],
)
def test_malformed_messages_are_named(messages: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ChatTemplate("x").render(messages)


def test_a_refusing_template_is_the_callers_error() -> None:
    with pytest.raises(OptionError, match="roles must be user"):
        ChatTemplate(LLAMA3_LIKE).render([{"role": "robot", "content": "x"}])


TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


def test_built_in_chatml(vocabulary: Callable[..., Pair]) -> None:
    template = chat_template_for(vocabulary("smollm2", {"tokenizer.chat_template": 0}).ours)
    assert template.name == "chatml"
    assert template.render(TURNS) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(TURNS[1:2], add_generation_prompt=False) == "<|im_start|>user\nU<|im_end|>\n"


def test_built_in_llama3(vocabulary: Callable[..., Pair]) -> None:
    tokenizer = vocabulary("llama3").ours
    template = chat_template_for(tokenizer)
    assert template.name == "llama3"
    text = template.render(TURNS[:2])
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokenizer.encode(text).count(tokenizer.bos_id or 0) == 1


def test_built_in_llama4(vocabulary: Callable[..., Pair]) -> None:
    template = chat_template_for(vocabulary("llama4", {"tokenizer.ggml.add_bos_token": True}).ours)
    assert template.name == "llama4"
    assert template.render(TURNS[1:2]) == (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\nU<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )


def test_built_in_llama2(vocabulary: Callable[..., Pair]) -> None:
    tokenizer = vocabulary("sentencepiece").ours
    template = chat_template_for(tokenizer)
    assert template.name == "llama2"
    text = template.render(TURNS)
    assert text == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"
    assert tokenizer.encode(text).count(1) == 2
    with pytest.raises(OptionError, match="Llama 2"):
        template.render([{"role": "tool", "content": "x"}])


def test_no_template_and_no_known_format(vocabulary: Callable[..., Pair]) -> None:
    base = vocabulary("smollm2")
    tokens = [text.replace("<|im_start|>", "<|other|>") for text in base.metadata["tokenizer.ggml.tokens"]]  # type: ignore[attr-defined]
    tokenizer = vocabulary("smollm2", {"tokenizer.chat_template": 0, "tokenizer.ggml.tokens": tokens}).ours
    assert base.metadata["tokenizer.ggml.token_type"][1] == CONTROL  # type: ignore[index]
    with pytest.raises(CheckpointError, match="no chat template"):
        chat_template_for(tokenizer)
