"""Two built-in corpora of line pairs that every machine can make: dates and numbers.

    dates    tuesday, the 3rd of may 1983                   1983-05-03
    numbers  two hundred and five thousand and seven        205007

Both are drawn once with a fixed seed: they are the same wherever they are made. No date and no
number of the validation or test pairs occurs in the training pairs, in whatever form.
"""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

Pair = tuple[str, str]
"""A source line and its target line."""

Splits = tuple[list[Pair], list[Pair], list[Pair]]
"""Training, validation and test pairs."""

TRAIN_PAIRS = 10_000
EVALUATION_PAIRS = 500
"""Number of validation pairs, and of test pairs."""

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_SMALL = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS = (
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
)
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}

# Each holds the whole year and the month's name: none can be read as two dates.
_DATE_FORMS = (
    "{weekday}, the {nth} of {month} {year}",
    "{weekday}, {month} {day}, {year}",
    "{month} {day}, {year}",
    "{month} {nth}, {year}",
    "{day} {month} {year}",
    "{nth} {month} {year}",
    "{wkd}, {day} {mon} {year}",
    "{mon} {day} {year}",
    "{month} the {ordinal}, {year}",
    "the {ordinal} of {month}, {year_words}",
    "{month} the {ordinal}, {year_words}",
    "{weekday}, {month} {day}, {year_words}",
)


def dates() -> Splits:
    """Days from 1900 to 2099: written out in one of 12 English forms, and in ISO 8601."""
    random = Random(0)
    first = date(1900, 1, 1)
    days = (date(2100, 1, 1) - first).days
    drawn = random.sample(range(days), TRAIN_PAIRS + 2 * EVALUATION_PAIRS)
    pairs = []
    for number in drawn:
        day = first + timedelta(number)
        pairs.append((written_date(day, random.choice(_DATE_FORMS)), day.isoformat()))
    return _split(pairs)


def numbers() -> Splits:
    """Numbers from 0 to 999,999: in English words, and in digits.

    Every number of digits from 3 to 6 is as likely as the others until its numbers run out. The
    numbers below 100, of whose words all others are made, are in training.
    """
    random = Random(0)
    small = list(range(100))
    drawn: dict[int, None] = {}  # ordered, unlike a set
    while len(drawn) < TRAIN_PAIRS - len(small) + 2 * EVALUATION_PAIRS:
        digits = random.randint(3, 6)
        drawn[random.randrange(10 ** (digits - 1), 10**digits)] = None
    order = [*drawn]
    # The first draws hold most of the short numbers: without a shuffle the test would lack them.
    random.shuffle(order)
    return _split([(number_words(number), str(number)) for number in [*small, *order]])


def _split(pairs: list[Pair]) -> Splits:
    valid_end = TRAIN_PAIRS + EVALUATION_PAIRS
    return pairs[:TRAIN_PAIRS], pairs[TRAIN_PAIRS:valid_end], pairs[valid_end:]


def written_date(day: date, form: str) -> str:
    """A day in words.

    Args:
        day: The day, from 1900 to 2099.
        form: A format string with the fields weekday and wkd (its first three letters), month
            and mon, day (3), nth (3rd), ordinal (third), year (1983) and year_words.
    """
    weekday, month = _WEEKDAYS[day.weekday()], _MONTHS[day.month - 1]
    return form.format(
        weekday=weekday,
        wkd=weekday[:3],
        month=month,
        mon=month[:3],
        day=day.day,
        nth=_nth(day.day),
        ordinal=_ordinal(day.day),
        year=day.year,
        year_words=_year_words(day.year),
    )


def _nth(day: int) -> str:
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _ordinal(day: int) -> str:
    head, hyphen, last = number_words(day).rpartition("-")
    return head + hyphen + _ORDINALS.get(last, f"{last}th")


def _year_words(year: int) -> str:
    """A year from 1900 to 2099 as it is read: nineteen oh five, two thousand and five."""
    if 2000 <= year <= 2009:
        return number_words(year)
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{number_words(century)} hundred"
    return f"{number_words(century)} {'oh ' if rest < 10 else ''}{number_words(rest)}"


def number_words(number: int) -> str:
    """A number from 0 to 999,999 in English words, with "and" before the last two digits.

    Raises:
        ValueError: It is out of that range.
    """
    if not 0 <= number <= 999_999:
        raise ValueError(f"expected a number from 0 to 999999, got {number}")
    thousands, rest = divmod(number, 1000)
    if thousands == 0:
        return _below_thousand(rest)
    head = f"{_below_thousand(thousands)} thousand"
    if rest == 0:
        return head
    return (
        f"{head} and {_below_thousand(rest)}" if rest < 100 else f"{head} {_below_thousand(rest)}"
    )


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if hundreds == 0:
        return _below_hundred(rest)
    head = f"{_SMALL[hundreds]} hundred"
    return f"{head} and {_below_hundred(rest)}" if rest else head


def _below_hundred(number: int) -> str:
    if number < len(_SMALL):
        return _SMALL[number]
    tens, rest = divmod(number, 10)
    return f"{_TENS[tens - 2]}-{_SMALL[rest]}" if rest else _TENS[tens - 2]
