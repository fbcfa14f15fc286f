from rnnkit.screen.fonts import fonts_for


def test_other_fonts_are_asked_for_what_the_usual_one_lacks():
    usual, missing = fonts_for(["été"])
    assert not missing
    sign = "\N{EMPTY SET WITH LEFT ARROW ABOVE}"  # STIX, which matplotlib brings, has it
    fonts, missing = fonts_for(["été", sign])
    assert fonts[: len(usual)] == usual
    assert len(fonts) > len(usual)
    assert not missing


def test_a_character_that_no_font_has_is_returned():
    unseen = "\U0010fffd"  # of private use
    assert fonts_for([f"a{unseen}"])[1] == {unseen}
