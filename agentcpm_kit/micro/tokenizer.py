"""The word-level tokenizer of micro-qwen3, and its Qwen3-style chat template.

One token is one word, one number, one entity name or one piece of tool-call JSON. Whole names as single tokens
are what lets so small a model look facts up: a name of several tokens is learned far more slowly. Spaces are not
tokens: between two words there is one, and the pieces in `GLUE_LEFT` and `GLUE_RIGHT` say where there is none.
So ``decode(encode(text)) == text`` for all text the kit writes (tested).
"""

import re
import string

from ..world.plain.facts import RELATIONS, YEARS, name_pool

SPECIALS = ["<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
            "<tool_response>", "</tool_response>", "<tools>", "</tools>", "<answer>", "</answer>"]
# Pieces longer than one character that must not be split.
PIECES = ['{"name": "', '", "arguments": {"query": ["', '", "arguments": {"url": ["', '"], "purpose": "', '"]}}',
          '"}}', '", "', "](", "atlas/", "======="]
GLUE_LEFT = [*PIECES[1:8], ".", ",", "?", ":", ")", "]", "(", *SPECIALS[3:]]  # no space before
GLUE_RIGHT = [*PIECES[:9], "[", "(", "#", *SPECIALS[2:]]  # no space after
GLUE_RIGHT.remove("#")
PUNCTUATION = list(".,?:()[]#+-=")
LETTERS = list(string.ascii_lowercase)
NUMBERS = [str(n) for n in range(100)]
# Words of pages, tool answers, prompts and thinking; the skills bring their own (see skills.WORDS).
WORDS = [
    "system", "user", "assistant", "search", "fetch_url", "query", "url", "purpose", "You", "are", "a", "research",
    "agent", "Use", "the", "tools", "then", "answer", "in", "tags", "form", "What", "is", "Find", "Name", "The",
    "the", "of", "also", "called", "Do", "not", "confuse", "with", "Error", "page", "found", "No", "results",
    "timeout", "tool", "failed", "needs", "unknown", "Search", "Read", "Question", "Return", "Retry", "again",
    "who", "has", "Who", "and", "an", "this", "call", "could", "be", "read", "as", "JSON", "no", "Give", "text",
    "sentence", "relevant"
]

CHAT_TEMPLATE = """\
{%- macro calls(message) -%}
{%- for call in message.tool_calls or [] %}{{ '\\n<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' \
~ (call.function.arguments | tojson) ~ '}</tool_call>' }}{% endfor -%}
{%- endmacro -%}
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content ~ '\\n' }}{% endif %}{{ '<tools>' }}
{%- for tool in tools %}{{ '\\n' ~ tool.function.name ~ '(' ~ (tool.function.parameters.properties | join(', ')) ~ ')' }}
{%- endfor %}{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' ~ messages[0].content ~ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|im_start|>user\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user\\n' }}{% endif %}
{{- '<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{ '<think>' ~ message.reasoning_content ~ '</think>\\n' }}{% endif %}
{{- message.content or '' }}{{ calls(message) if message.content else calls(message).lstrip('\\n') }}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def vocabulary(skill_words: list[str]) -> list[str]:
    """All tokens, special ones first, each once, in a fixed order."""
    relations = [word for kinds in RELATIONS.values() for name in kinds for word in name.split()]
    tokens = [*SPECIALS, *PIECES, "\n", *PUNCTUATION, *WORDS, *RELATIONS, *relations, *LETTERS, *NUMBERS,
              *[str(y) for y in YEARS], *skill_words, *name_pool()]
    return list(dict.fromkeys(tokens))


def build_tokenizer(skill_words: list[str]):
    """A `PreTrainedTokenizerFast` over `vocabulary`; unknown words become ``<unk>``."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary(skill_words)
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    pieces = "|".join(re.escape(p) for p in sorted(PIECES, key=len, reverse=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pieces}|\n|\w+|[^\s\w]"), "removed", invert=True)
    # Join with spaces, then take out those that a piece does not want; a newline wants none on either side.
    glue = [decoders.Replace(f" {p}", p) for p in [*GLUE_LEFT, "\n"]]
    glue += [decoders.Replace(f"{p} ", p) for p in [*GLUE_RIGHT, "\n"]]
    core.decoder = decoders.Sequence([decoders.WordPiece(prefix="\0", cleanup=False), decoders.Fuse(), *glue])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE, model_max_length=2048,
                                   clean_up_tokenization_spaces=False)
