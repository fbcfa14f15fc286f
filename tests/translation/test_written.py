from rnnkit.decoding import Hypothesis
from rnnkit.translation.words import BEGIN, END, UNKNOWN, CharacterTokenizer
from rnnkit.translation.written import best_text, text_of

TOKENIZER = CharacterTokenizer.train(["a\rb\u2028c\x85d"])


def hypothesis(*ids: int) -> Hypothesis:
    return Hypothesis([*ids, END], -1.0, -1.0, True)


def test_line_separators_in_a_translation_become_blanks() -> None:
    assert text_of(hypothesis(*TOKENIZER.encode("a\rb\u2028c\x85d")), TOKENIZER) == "a b c d"


def test_unknown_tokens_stand_or_are_what_is_put_for_them() -> None:
    written = hypothesis(BEGIN, UNKNOWN, *TOKENIZER.encode("a"), UNKNOWN)
    assert text_of(written, TOKENIZER) == "<unk>a<unk>"
    assert text_of(written, TOKENIZER, ["x", "\u2028"]) == "xa"


def test_the_best_is_the_first_and_nothing_found_is_nothing_written() -> None:
    found = [hypothesis(*TOKENIZER.encode(text)) for text in ("a", "b")]
    assert best_text(found, TOKENIZER) == "a"
    assert best_text([], TOKENIZER) == ""
