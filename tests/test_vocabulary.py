import pytest

from sedseg.errors import InputError
from sedseg.label_sets import label_set, pascal_context_validation
from sedseg.vocabulary import Vocabulary

SOFA_WALL = (("sofa", "couch"), ("wall",))


@pytest.mark.parametrize(
    "spec",
    [
        "sofa|couch, wall",
        " sofa | couch,wall\n",
        ["sofa|couch", "wall"],
        ["sofa, couch", "wall"],
        [["sofa", "couch"], "wall"],
        ("sofa |couch", ["  wall "]),
        {"sofa": ["couch"], "wall": []},
        {"sofa": ["sofa", "couch"], "wall": "wall"},
        Vocabulary(SOFA_WALL),
        (name for name in ["sofa|couch", "wall"]),
    ],
)
def test_ways_to_say_the_same(spec):
    assert Vocabulary.of(spec) == Vocabulary(SOFA_WALL)


@pytest.mark.parametrize("as_string", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "# rooms\nsofa|couch\n\n  wall\n"),
        ("a.txt", "\ufeffsofa, couch\r\nwall\r\n"),
        ("no-suffix", "sofa|couch\nwall"),
        ("a.json", '["sofa|couch", "wall"]'),
        ("a.json", '\ufeff[["sofa", "couch"], ["wall"]]'),
        ("a.json", '{"sofa": ["couch"], "wall": []}'),
        ("json.txt", '\n["sofa, couch", "wall"]'),
    ],
)
def test_files(tmp_path, name, content, as_string):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert Vocabulary.of(str(path) if as_string else path) == Vocabulary(SOFA_WALL)


def test_a_file_named_like_a_class_does_not_hide_the_class(tmp_path, monkeypatch):
    (tmp_path / "car").write_text("wall\nfloor\n")
    monkeypatch.chdir(tmp_path)
    assert Vocabulary.of("car").names == ("car",)
    assert Vocabulary.of("St. Bernard, 1/2 litre").names == ("St. Bernard", "1/2 litre")
    assert Vocabulary.of("~nobody/./x" * 400).names == ("~nobody/./x" * 400,)


def test_names_are_shown_without_what_a_terminal_obeys():
    assert Vocabulary.of(["\u200bred \t car\x1b\x07", "日本 😀"]).names == ("red car", "日本 😀")


def test_background():
    assert Vocabulary.of("sky, Background").background == 1
    assert Vocabulary.of("sky, road").background is None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([], ["class list is empty"]),
        ("", ["class list is empty"]),
        ("sky, , road", ["empty name", "class 2"]),
        (["sky", "  "], ["empty name", "class 2"]),
        (["sky", "sofa||couch"], ["empty name", "class 2"]),
        (["sky", []], ["empty name", "class 2"]),
        (["sky", "\x00\x07"], ["'\\x00\\x07'", "class 2", "tokenizer"]),
        (["sky", "\u200b\u200d"], ["class 2", "tokenizer"]),
        (["sky", "\ud83d"], ["class 2", "tokenizer"]),
        (["sky", "&nbsp;"], ["'&nbsp;'", "class 2", "tokenizer"]),
        (["sky", "a <end_of_text> b"], ["<end_of_text>", "class 2", "tokenizer"]),
        ("Red  car, sky, red CAR", ["'red CAR'", "twice", "class 1", "class 3"]),
        ("sofa|couch, wall, couch", ["'couch'", "twice", "class 1", "class 3"]),
        ("sofa|sofa, wall", ["'sofa'", "twice", "class 1"]),
        ("cafe\u0301, caf\u00e9", ["twice"]),
        (["sky", 3], ["class 2", "3"]),
        (["sky", ["a", None]], ["class 2", "None"]),
        ({"sky": 3}, ["'sky'", "3"]),
        ({"sky", "road"}, ["list of names"]),
        (7, ["7", "list of names"]),
        (["sky, building, road"], ["sky, building, road", "entry of its own", "|"]),
        ("classes.txt", ["classes.txt", "does not exist"]),
        ("ade20k-15", ["'ade20k-15'", "did you mean 'ade20k-150'"]),
        ("coco stuff 171", ["did you mean 'coco-stuff'"]),
    ],
)
def test_errors_name_the_entry(spec, said):
    with pytest.raises(InputError) as error:
        Vocabulary.of(spec)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"sky\n# no\n\nroad\nSKY\n", ["'SKY'", "line 1 of", "line 5 of"]),
        ("a.txt", b"sky\nsofa||couch\n", ["empty name", "line 2 of"]),
        ("a.txt", b"sky, road, car\n", ["'sky, road, car'", "line of its own"]),
        ("a.txt", b"# nothing\n", ["class list is empty"]),
        ("a.txt", "sky\nroad".encode("utf-16"), ["a.txt", "UTF-8"]),
        ("a.txt", b"\xff\xd8\xff\xe0\x00\x10JFIF", ["a.txt", "UTF-8"]),
        ("a.json", b'["sky",\n "road"\n "car"]', ["a.json", "line 3"]),
        ("a.json", b"", ["a.json", "line 1"]),
        ("a.json", b'"sky"', ["a.json", "'sky'", "list of classes"]),
        ("a.json", b'{"sky": [], "road": [], "sky": []}', ["a.json", "'sky'", "twice"]),
        ("a.json", b'["sky", "road", "sky"]', ["a.json", "class 1", "class 3"]),
        ("a.json", b'{"sky": 0, "road": 1}', ["a.json", "'sky'", "0"]),
        ("a.json", b"[" * 100_000, ["a.json"]),
    ],
)
def test_errors_in_files_say_where(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        Vocabulary.of(path)
    for words in said:
        assert words in str(error.value)


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        Vocabulary.of(str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        Vocabulary.of(tmp_path / "words")


@pytest.mark.parametrize(
    ("name", "count", "scored", "first", "last"),
    [
        ("ade20k-150", 150, 150, (1, "wall"), (150, "flag")),
        ("ade20k-847", 847, 847, (2978, "wall"), (3148, "adding machine")),
        ("coco-stuff", 171, 171, (0, "person"), (181, "wood")),
        ("pascal-context-59", 59, 59, (2, "aeroplane"), (458, "wood")),
        ("pascal-context-459", 459, 459, (1, "accordion"), (459, "wool")),
        ("pascal-voc-20", 20, 20, (1, "aeroplane"), (20, "tvmonitor")),
        ("pascal-voc-20b", 59, 21, (1, "aeroplane"), (0, "wood")),
    ],
)
def test_label_sets(name, count, scored, first, last):
    known = label_set(name)
    vocabulary = Vocabulary.of(name.upper())
    assert vocabulary.synonyms == known.synonyms
    assert len(vocabulary) == len(known.raw_ids) == len(known.scored_as) == count
    assert len(known.scored_names) == len(known.scored_raw_ids) == scored
    assert (known.raw_ids[0], vocabulary.names[0]) == first
    assert (known.raw_ids[-1], vocabulary.names[-1]) == last


def test_official_synonyms_are_kept_and_shared_words_allowed():
    words = Vocabulary.of("ade20k-847").synonyms
    assert words[1] == ("building", "edifice")
    assert sum("screen" in synonyms for synonyms in words) == 4


def test_words_scored_as_background():
    known = label_set("pascal-voc-20b")
    assert known.scored_as == (*range(20), *[20] * 39)
    assert known.scored_names == (*label_set("pascal-voc-20").scored_names, "background")
    assert known.scored_raw_ids == (*range(1, 21), 0)


def test_unknown_label_set():
    with pytest.raises(InputError, match="ade20k-150"):
        label_set("cityscapes")


def test_pascal_context_validation_ids():
    ids = pascal_context_validation()
    assert len(ids) == len(set(ids)) == 5104
    assert ids[0] == "2008_000002"
    assert list(ids) == sorted(ids)
