"""Contract: pieces joined are the decoded answer, cut at the first stop string; nothing shown is taken back."""

from hypothesis import given
from hypothesis import strategies as st

from luthier.serve.engine.text import TextStream, held_back
from tests.support.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = st.lists(st.integers(0, 599), max_size=40)
TEXTS = st.text(st.sampled_from("time water yéß日🙂\n ab"), max_size=40)


def run(ids, stop=()):
    stream, pieces = TextStream(TOKENIZER, stop), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return stream, pieces


@given(text=TEXTS)
def test_pieces_of_a_text_are_the_text_and_no_character_is_torn(text):
    _, pieces = run(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(ids=IDS)
def test_any_ids_at_all(ids):
    _, pieces = run(ids)
    whole = TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if "\ufffd" not in whole:
        assert "".join(pieces) == whole
    else:
        # Bytes that are no UTF-8 may fall into other runs, but all else is there.
        assert "".join(pieces).replace("\ufffd", "") == whole.replace("\ufffd", "")


@given(text=TEXTS, stop=st.lists(st.text(st.sampled_from("time wa\n🙂b"), min_size=1, max_size=5), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text, stop):
    stream, pieces = run(TOKENIZER(text, add_special_tokens=False)["input_ids"], stop)
    places = [text.find(one) for one in stop if one in text]
    shown = "".join(pieces)
    assert stream.stopped == bool(places)
    if places:
        # The first place at which any stop string is complete decides: one that begins earlier may end later.
        assert text.startswith(shown) and any(text[len(shown) :].startswith(one) for one in stop)
        assert not any(one in shown for one in stop)
    else:
        assert shown == text


def test_held_back():
    assert held_back("abc<to", ("<tool>",)) == 3
    assert held_back("abc", ("x", "bcd", "cde")) == 2
    assert held_back("abc", ()) == 0


def test_the_library_asked_itself_gives_what_the_tokenizer_gives():
    from luthier.serve.engine.text import _decoder
    from tests.support.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    direct = _decoder(tokenizer)
    assert direct.__name__ == "direct"
    for start in range(0, 590, 7):
        ids = [*range(start, start + 9), 2]
        assert direct(ids) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    class Own(type(tokenizer)):
        def _decode(self, *ids, **settings):
            return "its own"

    tokenizer.__class__ = Own
    assert _decoder(tokenizer)([5, 6]) == "its own"
