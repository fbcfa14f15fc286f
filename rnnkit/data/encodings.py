"""From bytes to text: UTF-8, what a byte-order mark names, and words about everything else."""

from __future__ import annotations

import codecs
import re
import string
from collections.abc import Iterable, Iterator
from itertools import chain

from rnnkit.data.packing import refuse_packed
from rnnkit.data.registry import DataError

# UTF-32's first, for UTF-16's little-endian mark is how its own begins.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_SAMPLE_BYTES = 2**16

# Latin 1 has controls there, which no text has; CP1252 has letters and quotation marks.
_CP1252_ONLY = re.compile(rb"[\x80-\x9f]")
_NOT_IN_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_BEYOND_ASCII = bytes(range(0xC0, 0x100))  # letters in all one-byte encodings but a few
_ASCII = re.compile("[\t-~]")
_LONGEST_EXCERPT = 20

_CONVERT = (
    "convert it with `iconv -f ENCODING -t UTF-8`, where ENCODING is its own, for example CP1251 "
    "for Cyrillic, GB18030 for Chinese or SHIFT_JIS for Japanese"
)


def decode(content: bytes, name: str) -> str:
    r"""Text of bytes in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    The mark is left out, and lines end in `\n` whether they did in LF, in CRLF or, as on old
    Macintoshes, in CR alone.

    Args:
        content: The bytes.
        name: Where they come from, for an error.

    Raises:
        DataError: They are packed, hold zero bytes or are in another encoding; the message tells
            the byte and its line, and in one command what converts them.

    Example:
        >>> decode("naïve\r\n".encode("utf-16"), "train.txt")
        'naïve\n'
    """
    refuse_packed(content, name)
    encoding = _marked(content)
    try:
        text = content.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        if encoding is None:
            line = content.count(b"\n", 0, error.start) + 1
            told = reason(content, error.start, line)
            raise DataError(f"{name} is no UTF-8: {told}") from error
        line = content[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise DataError(
            f"{name} begins as {encoding}, but is damaged in line {line}: replace it"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name} has a zero byte in line {line}, {_zeros(content, text)}")
    return _with_line_feeds(text)


def decoded(stream: Iterable[bytes]) -> Iterator[tuple[str, str | None]]:
    """Lines of a stream as `decode` reads them, whatever they hold, as soon as they are there.

    Args:
        stream: Bytes up to the end of each line, as a binary file gives them.

    Yields:
        A line, in which U+FFFD stands for what cannot be decoded, and what is wrong with it:
        "is no UTF-8" and so on, or None.

    Raises:
        DataError: They are packed.
    """
    chunks = iter(stream)
    first = next(chunks, None)
    if first is None:
        return
    refuse_packed(first, "standard input")
    encoding = _marked(first)
    if encoding is not None:
        yield from _wide_lines(chain([first], chunks), encoding)
        return
    wide: str | None = None
    for raw in chain(_by_carriage_returns(first.removeprefix(codecs.BOM_UTF8)), chunks):
        text = raw.decode("utf-8", "replace")
        fault = None
        # In a line, unlike in a text, a single zero byte may look like a wide blank. The first such
        # line decides: those after a little-endian line feed begin amid a character.
        if 3 * raw.count(0) > len(raw) and (wide := wide or _looks_wide(raw)):
            fault = f"looks like {wide} (iconv -f {wide} -t UTF-8 converts)"
        elif "\ufffd" in text and codecs.encode("\ufffd", "utf-8") not in raw:
            likely = _looks_western(raw)
            looks = f" and looks like {likely}" if likely else ""
            fault = f"is no UTF-8{looks} (iconv -f {likely or 'ENCODING'} -t UTF-8 converts)"
        yield text.rstrip("\r\n"), fault


def reason(content: bytes, start: int, line: int) -> str:
    """What some bytes that are no UTF-8 look like, and the command that converts them.

    Args:
        content: A text or a part of it.
        start: Where the first byte is that is no UTF-8.
        line: Its line in the text.
    """
    found = f"byte 0x{content[start]:02x} in line {line}; "
    if wide := _looks_wide(content):
        return f"{found}it {_wide(wide)}"
    near = content[max(start - _SAMPLE_BYTES, 0) : start + _SAMPLE_BYTES]
    replaced = near.decode("utf-8", "replace")
    broken = replaced.count("\ufffd")
    # In other encodings hardly two bytes beyond ASCII follow each other as they do in UTF-8.
    if sum(character > "\x7f" for character in replaced) - broken > 3 * broken:
        return (
            f"{found}the rest looks like UTF-8: correct that line, or leave such bytes out with "
            "`iconv -c -f UTF-8 -t UTF-8`"
        )
    likely = _looks_western(content)
    if likely is None:
        return f"{found}it looks like no Western encoding: {_CONVERT}"
    word = _word(content, start).decode(likely)
    return (
        f"{found}it looks like {likely} ({word!r}): if that word is right, convert it with "
        f"`iconv -f {likely} -t UTF-8`"
    )


def wide_encoding(content: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark or the look of some bytes; None: they look like neither."""
    return _marked(content) or _looks_wide(content)


def _marked(content: bytes) -> str | None:
    """The encoding that a byte-order mark names; None: there is none, or UTF-8's."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)


def _with_line_feeds(text: str) -> str:
    if "\r" not in text:
        return text
    text = text.replace("\r\n", "\n")
    return text.removesuffix("\r") if "\n" in text else text.replace("\r", "\n")


def _by_carriage_returns(line: bytes) -> list[bytes]:
    """Lines of the first line of a stream: it has all of them if CR alone ends them."""
    if line.endswith(b"\n") or b"\r" not in line:
        return [line]
    return line.removesuffix(b"\r").split(b"\r")


def _wide_lines(chunks: Iterable[bytes], encoding: str) -> Iterator[tuple[str, str | None]]:
    """Lines of UTF-16 or UTF-32, of which a chunk may end within a character."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest, seen = "", False
    for chunk in chain(chunks, [b""]):
        *lines, rest = (rest + decoder.decode(chunk, final=not chunk)).split("\n")
        if not chunk and rest:
            lines += [rest] if seen else _with_line_feeds(rest).removesuffix("\n").split("\n")
        for line in lines:
            seen = True
            yield line.rstrip("\r"), f"is no {encoding}" if "\ufffd" in line else None


def _looks_wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: what has many ASCII characters or some blanks in it."""
    sample = content[:_SAMPLE_BYTES]
    for encoding, width in (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2)):
        text = sample.decode(encoding, "replace")
        size = len(sample) / width
        blanks = text.count(" ") + text.count("\n")
        # Chinese has a line end now and then; and two zero bytes by chance are no line ends.
        if len(_ASCII.findall(text)) > 0.3 * size or (blanks > 1 and blanks > 0.005 * size):
            return encoding
    return None


def _wide(encoding: str) -> str:
    return (
        f"looks like {encoding} without a byte-order mark: convert it with `iconv -f {encoding} -t "
        "UTF-8`"
    )


def _zeros(content: bytes, text: str) -> str:
    """What a text that is UTF-8 but for its zero bytes looks like."""
    if text.startswith(("ÿþ", "þÿ")):  # UTF-16's marks as letters
        return (
            "and looks like UTF-16 that was converted as if it were LATIN1: convert the original "
            "with `iconv -f UTF-16 -t UTF-8`"
        )
    if wide := _looks_wide(content):
        return f"and {_wide(wide)}"
    return "as no text has: delete such bytes with `tr -d '\\000'`, or name another file"


def _looks_western(content: bytes) -> str | None:
    """CP1252 or LATIN1; None: neither is likely."""
    if _NOT_IN_CP1252.search(content):
        return None
    # French has one letter of twenty beyond ASCII; other scripts have nearly all there.
    letters = _count(content, _BEYOND_ASCII + string.ascii_letters.encode())
    if 2 * _count(content, _BEYOND_ASCII) > letters:
        return None
    return "CP1252" if _CP1252_ONLY.search(content) else "LATIN1"


def _count(content: bytes, which: bytes) -> int:
    return len(content) - len(content.translate(None, delete=which))


def _word(content: bytes, at: int) -> bytes:
    """The word around a byte, or the part of it that is near."""
    before = content[max(at - _LONGEST_EXCERPT, 0) : at]
    behind = content[at : at + _LONGEST_EXCERPT]
    return re.split(rb"\s", before)[-1] + re.split(rb"\s", behind)[0]
