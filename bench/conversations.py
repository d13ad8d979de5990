"""Conversations for the benchmarks: made from a seed, as many as wanted, no two the same.

The English is Python's own reference and docstrings, so that words are as rare and as frequent as
in real text; the Chinese is put together from phrases, clause by clause, as it has no spaces that
would let a tokenizer look up whole words.
"""

import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

CHINESE_SHARE = 0.2

# Docstrings long enough to be prose.
DOCUMENTED = (
    "argparse", "asyncio", "collections", "concurrent.futures", "csv", "datetime", "decimal",
    "difflib", "email.message", "fractions", "functools", "hashlib", "heapq", "http.client",
    "inspect", "itertools", "json", "logging", "mailbox", "multiprocessing", "pathlib", "pickle",
    "random", "shutil", "smtplib", "socket", "sqlite3", "ssl", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "typing", "unittest",
    "urllib.request", "xml.etree.ElementTree", "zipfile",
)  # fmt: skip

ASKS = (
    "Can you explain this to me? My colleague {name} wrote: {sentence}",
    "I read in the notes of {name}: {sentence} What does that mean in practice?",
    "{name} and I have {number} days left. How would you go about it? {sentence}",
    "Please summarise for {name}: {sentence}",
    "Version {number} of {name} behaves differently. Why? {sentence}",
    "Write a short note to {name} about the following. {sentence}",
)
GOES_ON = (
    "Thanks. And what about {name}?",
    "Why is that? {sentence}",
    "Could you give an example with {number} items?",
    "Is this also true here: {sentence}",
)
OPENS = (
    "Certainly. ",
    "In short: ",
    "It depends on what {name} needs. ",
    "",
    "Here are the points that matter for {name}:\n\n",
)

WHO = (
    "王小明", "陳老師", "林太太", "張經理", "李同學", "黃醫師", "我妹妹", "隔壁鄰居",
    "新來的同事", "社區志工",
)  # fmt: skip
WHEN = (
    "昨天下午", "上個星期", "今年春天", "每天早上", "下班以後", "放假的時候", "三年前", "最近",
    "考試之前", "颱風過後",
)  # fmt: skip
WHERE = (
    "在台北車站", "在學校圖書館", "在公司會議室", "在老家附近", "在菜市場", "在山上的小屋",
    "在網路論壇", "在醫院",
)  # fmt: skip
DOES = (
    "整理了一份報告", "學會了包水餃", "發現電腦變慢", "想換一份工作", "開始記帳", "準備搬家",
    "寫了一首短詩", "練習用英文開會", "種了幾棵番茄", "修好了舊腳踏車", "弄丟了身分證",
    "參加了讀書會", "重新規劃預算", "訓練一個小模型",
)  # fmt: skip
HOW = (
    "慢慢地", "很有耐心地", "不太情願地", "和朋友一起", "按照步驟", "花了不少錢",
    "一邊聽音樂一邊", "出乎意料地",
)  # fmt: skip
ADVICE = (
    "先把目標寫清楚", "記得備份重要的資料", "不妨請教有經驗的人", "可以分成幾個小步驟",
    "要注意預算的上限", "最好留一點緩衝時間", "別忘了確認細節", "每個星期檢查一次進度",
    "把結果和原來的狀況比較", "先從簡單的部分做起", "遇到困難時換個角度想",
    "把不需要的東西先拿掉", "用具體的數字來說明", "請對方再說明一次", "保持規律的作息",
)  # fmt: skip
LINKS = (
    "因為", "所以", "不過", "而且", "如果", "其實", "另外", "這樣一來", "一般來說", "換句話說",
    "最後",
)  # fmt: skip
ASKS_CHINESE = (
    "該怎麼辦呢？", "有什麼建議嗎？", "這樣做對嗎？", "請用三句話說明。", "請舉一個例子。",
    "原因是什麼？",
)  # fmt: skip


def write(path: Path, num_rows: int, seed: int) -> None:
    """Write one conversation a line, as `messages`: one to three questions with answers."""
    dice = random.Random(seed)
    english = sentences()
    asked: set[str] = set()
    with path.open("w", encoding="utf-8") as file:
        while len(asked) < num_rows:
            messages = list(_conversation(dice, english))
            if messages[0]["content"] not in asked:
                asked.add(messages[0]["content"])
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def sentences() -> list[str]:
    """Sentences of the Python documentation that is installed with it, in a fixed order."""
    texts = list(topics.values())
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        for _, member in sorted(vars(module).items()):
            if inspect.isclass(member) or inspect.isroutine(member):
                texts.append(inspect.getdoc(member) or "")
    found = [
        re.sub(r"\s+", " ", sentence).strip()
        for text in texts
        for sentence in re.split(r"(?<=[.:?])\s+(?=[A-Z])|\n\n", text)
    ]
    return sorted({sentence for sentence in found if 30 <= len(sentence) <= 300})


def _conversation(dice: random.Random, english: list[str]) -> Iterator[dict[str, str]]:
    chinese = dice.random() < CHINESE_SHARE
    for turn in range(dice.choice((1, 1, 2, 3))):
        if chinese:
            budget = f"預算是{dice.randint(2, 4000)}元"
            question = f"{_clause(dice)}，{budget}，{dice.choice(ASKS_CHINESE)}"
            answer = "".join(_advice(dice) for _ in range(dice.randint(1, 2)))
        else:
            question = _fill(dice.choice(GOES_ON if turn else ASKS), dice, english)
            opening = _fill(dice.choice(OPENS), dice, english)
            answer = opening + " ".join(dice.choices(english, k=dice.randint(1, 4)))
        yield {"role": "user", "content": question}
        yield {"role": "assistant", "content": answer}


def _fill(form: str, dice: random.Random, english: list[str]) -> str:
    return form.format(
        name=_name(dice), number=dice.randint(2, 4000), sentence=dice.choice(english)
    )


def _name(dice: random.Random) -> str:
    """A name that hardly any other row has."""
    syllables = [dice.choice("bdfgklmnprstvz") + dice.choice("aeiou") for _ in range(3)]
    return "".join(syllables).capitalize()


def _clause(dice: random.Random) -> str:
    said = (WHO, dice.choice((WHEN, WHERE)), HOW, DOES)
    return "".join(dice.choice(words) for words in said)


def _advice(dice: random.Random) -> str:
    first, second = dice.sample(ADVICE, 2)
    return f"{dice.choice(LINKS)}{first}，{_clause(dice)}，{second}。"
