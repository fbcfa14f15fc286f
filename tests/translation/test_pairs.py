import hashlib
import re
from collections import Counter
from datetime import date, datetime, timedelta

import pytest

from rnnkit.translation import pairs
from rnnkit.translation.pairs import Splits, dates, number_words, numbers

# An independent reader: values of words, added and multiplied.
UNITS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90,
}  # fmt: skip


def value(words: str) -> int:
    total = current = 0
    for word in re.split("[ -]", words):
        if word == "thousand":
            total, current = current * 1000, 0
        elif word == "hundred":
            current *= 100
        elif word != "and":
            current += UNITS[word]
    return total + current


# An independent speller: the number's digits in groups of three.
def spell(number: int) -> str:
    def group(digits: str) -> list[str]:
        words = [w for w, v in UNITS.items() if v == int(digits[0]) and v] + ["hundred"]
        words = words if digits[0] != "0" else []
        rest = int(digits[1:])
        if not rest:
            return words
        exact = [w for w, v in UNITS.items() if v == rest]
        tens = [w for w, v in UNITS.items() if v == rest - rest % 10]
        ones = [w for w, v in UNITS.items() if v == rest % 10]
        return [*words, *(["and"] if words else []), *(exact or [f"{tens[0]}-{ones[0]}"])]

    digits = f"{number:06d}"
    head, tail = group(digits[:3]), group(digits[3:])
    if head and tail and digits[3] == "0":
        tail = ["and", *tail]
    return " ".join([*(head and [*head, "thousand"]), *tail]) or "zero"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (40, "forty"),
        (100, "one hundred"),
        (119, "one hundred and nineteen"),
        (1000, "one thousand"),
        (1001, "one thousand and one"),
        (1100, "one thousand one hundred"),
        (205_007, "two hundred and five thousand and seven"),
        (999_999, "nine hundred and ninety-nine thousand nine hundred and ninety-nine"),
    ],
)
def test_numbers_are_spelt_as_in_english(number: int, words: str) -> None:
    assert number_words(number) == words


def test_numbers_are_spelt_as_by_another_speller_and_read_back() -> None:
    for number in [*range(1200), *range(1200, 1_000_000, 997), 999_999]:
        assert number_words(number) == spell(number)
        assert value(number_words(number)) == number


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_numbers_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 999999, got {number}"):
        number_words(number)


def test_pairs_of_numbers_have_the_same_value() -> None:
    for part in numbers():
        for words, digits in part:
            assert value(words) == int(digits)
            assert digits == str(int(digits))


def test_numbers_below_one_hundred_are_in_training_and_all_lengths_are_tested() -> None:
    train, valid, test = numbers()
    assert {str(number) for number in range(100)} <= {digits for _, digits in train}
    for part in (valid, test):
        lengths = Counter(len(digits) for _, digits in part)
        assert set(lengths) == {3, 4, 5, 6}
        assert (
            min(lengths.values()) >= 25
        )  # all 900 numbers of three digits are 8 % of what is drawn


# Year in words, read by rules of its own: centuries and what follows them.
def year(words: str) -> int:
    if words.isdigit():
        return int(words)
    if words.startswith("two thousand"):
        return value(words)
    head, rest = words.split(" ", 1)
    if rest == "hundred":
        return 100 * value(head)
    return 100 * value(head) + value(rest.removeprefix("oh "))


ORDINAL_WORDS = """
first second third fourth fifth sixth seventh eighth ninth tenth
eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth
twentieth twenty-first twenty-second twenty-third twenty-fourth twenty-fifth twenty-sixth
twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first
"""
ORDINALS = {word: day for day, word in enumerate(re.findall("[a-z-]+", ORDINAL_WORDS), 1)}


def read_date(line: str) -> tuple[date, str | None]:
    """The day of a written date and its weekday's first three letters, by taking it apart."""
    weekdays = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    match = re.search(r"\b(\d{4}|(nineteen|twenty|two thousand)( .*|)?)$", line)
    assert match, line
    words = line[: match.start()].replace(",", "").split()
    weekday = words.pop(0)[:3] if words[0][:3] in weekdays and words[0] != "second" else None
    words = [word for word in words if word not in ("the", "of")]
    assert len(words) == 2, line
    (month,) = (word for word in words if word.isalpha() and word not in ORDINALS)
    (day,) = (word for word in words if word != month)
    number = ORDINALS[day] if day in ORDINALS else int(re.sub("(st|nd|rd|th)$", "", day))
    month_number = datetime.strptime(month[:3], "%b").month
    return date(year(match[0]), month_number, number), weekday


def test_dates_say_the_day_that_iso_says() -> None:
    names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    for part in dates():
        for written, iso in part[::7]:
            day, weekday = read_date(written)
            assert day == date.fromisoformat(iso)
            assert weekday in (None, names[day.weekday()])
            assert 1900 <= day.year <= 2099


@pytest.mark.parametrize("form", pairs._DATE_FORMS)
def test_every_form_reads_back_on_every_kind_of_day(form: str) -> None:
    days = [date(1900, 1, 1) + timedelta(97 * i) for i in range(750)]  # to 2099
    for day in [*days, date(1900, 2, 28), date(2000, 2, 29), date(2005, 12, 31)]:
        assert read_date(pairs.written_date(day, form))[0] == day


@pytest.mark.parametrize(
    ("day", "form", "line"),
    [
        (
            date(1983, 5, 3),
            "{weekday}, the {nth} of {month} {year}",
            "tuesday, the 3rd of may 1983",
        ),
        (date(2011, 3, 11), "{wkd} {nth} {mon}", "fri 11th mar"),
        (date(1900, 1, 22), "{nth} {year_words}", "22nd nineteen hundred"),
        (date(1905, 1, 30), "{ordinal}, {year_words}", "thirtieth, nineteen oh five"),
        (date(1909, 1, 31), "{ordinal}, {year_words}", "thirty-first, nineteen oh nine"),
        (date(1910, 1, 8), "{ordinal}, {year_words}", "eighth, nineteen ten"),
        (date(2000, 1, 12), "{ordinal}, {year_words}", "twelfth, two thousand"),
        (date(2005, 1, 21), "{ordinal}, {year_words}", "twenty-first, two thousand and five"),
        (date(2010, 1, 13), "{nth}, {year_words}", "13th, twenty ten"),
        (date(2099, 1, 1), "{nth}, {year_words}", "1st, twenty ninety-nine"),
    ],
)
def test_dates_are_written_as_in_english(day: date, form: str, line: str) -> None:
    assert pairs.written_date(day, form) == line


def test_the_training_dates_have_every_form() -> None:
    lines = [line for line, _ in dates()[0]]
    assert any(re.fullmatch(r"[a-z]+day, the \d+(st|nd|rd|th) of [a-z]+ \d{4}", x) for x in lines)
    assert any(re.fullmatch(r"[a-z]{3}, \d+ [a-z]{3} \d{4}", line) for line in lines)
    assert any(re.fullmatch(r"the [a-z-]+ of [a-z]+, nineteen [a-z-]+", line) for line in lines)
    assert len({re.sub(r"\d+|[a-z]+", "x", line) for line in lines}) >= 8


@pytest.mark.parametrize("corpus", [dates(), numbers()], ids=["dates", "numbers"])
def test_no_pair_occurs_twice_in_any_split(corpus: Splits) -> None:
    assert [len(part) for part in corpus] == [10_000, 500, 500]
    for side in (0, 1):
        lines = [pair[side] for part in corpus for pair in part]
        assert len(set(lines)) == len(lines)


def test_the_corpora_are_the_same_on_every_machine() -> None:
    digests = [
        hashlib.sha256(repr(corpus).encode()).hexdigest()[:16] for corpus in (dates(), numbers())
    ]
    assert digests == ["3035aad4a5d49b59", "baa252b43f84f88a"]
