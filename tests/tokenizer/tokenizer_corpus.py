# ruff: noqa: RUF001 (the corpus is made of look-alike characters)
"""Hard texts for tokenizers: all scripts, runs, code, special tokens as text, and random mixtures of them."""

from __future__ import annotations

import random
import unicodedata

CORPUS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\r\n\r\n",
    "\t",
    " \t \n \t ",
    "\u00a0",
    "\u3000\u2003 \u00a0x",
    "\x85\x1c\x1d\u2028\u2029\u180e\u200b.",
    "Hello, world!",
    " leading",
    "trailing ",
    "trailing   ",
    "two  spaces   three    four",
    "line one\nline two\r\nline three\rline four\n\n\nend\n",
    "tab\tseparated\t\tvalues \t mixed",
    "I'm you're he'll she'd they've it's don't 's't're've'm'll'd",
    "I'M YOU'RE HE'LL SHE'D THEY'VE IT'S DON'T 'S'T'RE'VE'M'LL'D 'Re 'lL",
    "a'ſb 'ſ K'K o\u2019clock can\u2019t",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-9 ١٢٣ ४५६ ½ Ⅷ ² ₃ ㊿",
    "9" * 300,
    "def f(x: int) -> int:\n    if x < 2:\n        return 1\n\n    return x * f(x - 1)  # factorial\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; } /* c */ // d\r\n#include <stdio.h>\n",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "<html><body class='x'>&amp;&#x27;</body></html>",
    "http://example.com/a/b?c=d&e=f#g user@example.org /usr/local/bin C:\\Windows\\",
    "!!!???...---___***~~~```$$$%%%^^^&&&(((]]]",
    "敏捷的棕色狐狸跳过了懒狗。人工智能，2024年！",
    "吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ カタカナ 々〆",
    "대한민국의 수도는 서울입니다.",
    "Быстрая коричневая лиса Ёжик",
    "مرحبا بالعالم، كيف حالك؟ ٣٤٥ ـــ",
    "שלום עולם",
    "Ελληνικά ΆΈΉ ς",
    "Ünïcödé ÀÉÎÕÜ ß ẞ İ ı ǅ ŉ ﬁ",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ☺ ✨✨",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 𠜎𠜱 \U0001f9d1\u200d\U0001f4bb \ue000 \U000f0000 \U0010ffff \ufffd \ufffe \ufeffbom",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[0m\x7f",
    "soft\u00adhyphen zero\u200bwidth\u200djoiner rtl\u202eabc",
    "▁▁ ▁a Ġthe Ċ <0x0A> <0xFF> <unk> <pad>",
    "<s>hi</s> [INST] x [/INST] <<SYS>>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|><|im_end|> b <|im_start|",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|header_start|>user<|header_end|>\n\nHi<|eot|> <|eom|>",
    "<|endoftext|><reponame><|reserved_special_token_0|>",
    " <|im_end|> </s> x</s> <s> ",
    "a" * 5000,
    " " * 3000,
    "\n" * 2000,
    "ab" * 2000 + "!" * 1000,
    "日" * 2000,
    "=-" * 700,
    "supercalifragilisticexpialidocious" * 20,
]
MARKS = [
    "cafe\u0301 e\u0301\u0302 a\u030a \u0301alone 1\u0301 !\u0301",
    "नमस्ते दुनिया, आप कैसे हैं? १२३",
    "สวัสดีชาวโลก ๑๒๓",
    "العَرَبِيَّة",
    "தமிழ் മലയാളം বাংলা ខ្មែរ မြန်မာ",
    "Z̸͇a̷l̵g̴o̶",
]
_PIECES = [
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "a",
        "B",
        "Zz",
        "THE",
        "'s",
        "'T",
        "'re",
        "'VE",
        "'",
        '"',
        "é",
        "ß",
    ),
    *(
        "日本",
        "中文",
        "한국",
        "مرحبا",
        "1",
        "23",
        "4567",
        "٣",
        "½",
        "Ⅷ",
        "!",
        "...",
        "/",
        "//",
        "_",
        "#",
        "-",
        "</s>",
        "<s>",
    ),
    *(
        "<|im_end|>",
        "<|eot_id|>",
        "<|eot|>",
        "<0x0A>",
        "▁",
        "👩‍👧",
        "🇩🇪",
        "\x00",
        "\x7f",
        "\ufeff",
        "\u200b",
        "ǅ",
        "ª",
        "\u1160",
    ),
]
_MARK_PIECES = ["e\u0301", "\u0300", "नमस्ते", "ไทย", "\u200d", "่"]
_RANGES = ((0x20, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x1FFFF), (0x20000, 0x10FFFF))


def _random_texts(count: int, seed: int, *, marks: bool) -> list[str]:
    generator = random.Random(seed)
    pieces = _PIECES + (_MARK_PIECES if marks else [])

    def character() -> str:
        while True:
            drawn = chr(generator.randint(*generator.choice(_RANGES)))
            category = unicodedata.category(drawn)
            if category not in ("Cn", "Cs") and (marks or category[0] != "M"):
                return drawn

    def piece() -> str:
        return generator.choice(pieces) if generator.random() < 0.85 else character()

    return ["".join(piece() for _ in range(generator.randint(1, 24))) for _ in range(count)]


RANDOM = _random_texts(500, 1, marks=True)
RANDOM_WITHOUT_MARKS = _random_texts(500, 2, marks=False)

# Longer than what Meta's tokenizers show to tiktoken at once (25,000 characters without a change between white space
# and none).
LONG = [
    "a" * 30_000,
    " " * 25_001 + "x",
    "\n" * 26_000 + "\r\n" * 200,
    "<|eot_id|>" * 3_000 + "<|eot|>" * 4_000,
    "1234567890" * 2_600 + " " * 60_000 + "é" * 50_001,
]
# The planes with scripts and emoji whole, of ideographs, tags and private use a part.
EVERY_CHARACTER = [
    "".join(map(chr, range(start, start + 4096))).encode("utf-8", "ignore").decode()
    for start in [*range(0, 0x20000, 4096), 0x20000, 0x2F000, 0x31000, 0xE0000, 0xF0000, 0x10F000]
]
