"""Data files as people have them: any encoding, lines or an array, some rows bad."""

import json

import pytest

from posttrain.data.datasets import DatasetError, example
from posttrain.data.json_rows import read_objects
from posttrain.data.row_files import RowFile

ROWS = [dict(prompt=text, completion="I am, é.") for text in ("Who?", "Why?")]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def turns(question):
    return [dict(role="user", content=question)] + [
        dict(role="assistant", content="I am, é.")
    ]


@pytest.fixture
def file(tmp_path):
    """Writes a text or bytes into a file, and returns its path."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "mine.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def refusal(path, kind="conversations"):
    with pytest.raises(DatasetError) as refused:
        RowFile(path, kind).kept()
    message = str(refused.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", ["lines", "CRLF", "CR", "array", "indented"])
def test_lines_and_arrays_in_any_unicode_are_the_same_rows(file, encoding, form):
    texts = dict(
        lines=LINES,
        CRLF=LINES.replace("\n", "\r\n\r\n") + "\r\n",
        CR=LINES.replace("\n", "\r"),
        array=json.dumps(ROWS, ensure_ascii=False),
        indented=" \n" + json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n",
    )
    rows = RowFile(file(texts[form], encoding), "conversations").kept()
    word = "row" if form in ("array", "indented") else "line"
    second = 3 if form == "CRLF" else 2
    assert [row["messages"] for row in rows] == [turns("Who?"), turns("Why?")]
    assert [row["id"] for row in rows] == [f"{word} 1", f"{word} {second}"]


def test_one_object_over_several_lines_is_a_row(file):
    path = file(json.dumps(ROWS[0], indent=2))
    assert RowFile(path, "conversations").kept()[0]["messages"] == turns("Who?")


def test_ids_are_kept_where_they_are_texts_and_made_of_the_place_else(file):
    ids = ["a", 7, None, "", 7, 1.5]
    rows = [dict(id=each) | ROWS[0] for each in ids]
    found = RowFile(file("\n".join(map(json.dumps, rows))), "conversations").kept()
    expected = ["a", "line 2", "line 3", "line 4", "line 5", "line 6"]
    assert [row["id"] for row in found] == expected
    twice = [dict(id="a") | row for row in ROWS]
    message = refusal(file("\n".join(map(json.dumps, twice))))
    assert "line 2 (id a): the id 'a' is that of line 1" in message


FOREIGN = {
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "Parquet": (b"PAR1\x15\x04", "is a Parquet file, not JSON: save it as JSON Lines"),
    "gzip": (b"\x1f\x8b\x08\x00", "is packed with gzip, not JSON: unpack it"),
    "Latin-1": (LINES.encode("latin-1"), "is not UTF-8 text"),
    "cut UTF-16": (LINES.encode("utf-16")[:-1], "is not UTF-16 text"),
    "nothing": (b"", "holds no lines: it needs at least one conversation"),
    "blank lines": (b"\xef\xbb\xbf\n \r\n", "holds no lines"),
    "a cut array": (json.dumps(ROWS)[:-9].encode(), "an array is read whole or not"),
    "an empty array": (b"[]", "holds no lines"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_none_is_refused_with_the_way_out(file, kind):
    data, reason = FOREIGN[kind]
    message = refusal(file(data))
    assert reason in message and message.count("\n") == 0


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "nowhere")
    assert "cannot be read: " in refusal(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_objects("a\0b")


def bad_lines(n, good=1):
    return "\n".join([json.dumps(ROWS[0])] * good + ["oops"] * n)


@pytest.mark.parametrize("n", [1, 10, 11, 250])
def test_all_bad_rows_are_named_at_once_the_first_ten_and_a_count(file, n):
    first, *shown = refusal(file(bad_lines(n))).split("\n")
    assert first == f": {n} of {n + 1} rows cannot be used:"
    assert [line.split(":")[0] for line in shown[: min(n, 10)]] == [
        f"  line {i}" for i in range(2, min(n, 10) + 2)
    ]
    rest = [f"  and {n - 10} more"] * (n > 10)
    rest += [f"A line looks like this: {example('conversations')}"]
    rest += [f"Leave them out with --skip-bad: 1 of {n + 1} rows are good."]
    assert shown[min(n, 10) :] == rest


def test_bad_rows_are_left_out_where_that_is_asked_for_and_counted(file, capsys):
    path = file(bad_lines(12, good=2))
    assert len(RowFile(path, "conversations").kept(skip_bad=True)) == 2
    assert capsys.readouterr().out == (
        f"{path}: 12 of 14 rows are left out ("
        + ", ".join(f"line {i}" for i in range(3, 13))
        + ", ...).\n"
    )
    assert RowFile(file(LINES), "conversations").kept(skip_bad=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(DatasetError, match="2 of 2 rows cannot be used") as refused:
        RowFile(file(bad_lines(2, good=0)), "conversations").kept(skip_bad=True)
    assert "skip-bad" not in str(refused.value)


def test_what_a_later_reader_cannot_take_is_named_beside_the_bad_rows(file):
    def short(row):
        if row["messages"][0]["content"] == "Why?":
            raise ValueError("it asks why")
        return len(row["messages"])

    path = file(LINES + "\noops\n" + json.dumps(ROWS[0]))
    rows = RowFile(path, "conversations").each(short)
    with pytest.raises(DatasetError) as refused:
        rows.kept()
    _, why, oops, *_ = str(refused.value).split("\n")
    assert why == "  line 2: it asks why" and oops.startswith("  line 3: not JSON")
    assert rows.kept(skip_bad=True) == [2, 2]


def test_what_all_rows_have_alike_is_raised_as_it_is_and_no_rows_fault(file):
    class ModelFault(ValueError):
        pass

    def fail(row):
        raise ModelFault("the template fails")

    with pytest.raises(ModelFault, match="^the template fails$"):
        RowFile(file(LINES), "conversations").each(fail)
    path = file(json.dumps(ROWS[0]))
    with pytest.raises(DatasetError, match="line 1: the template fails"):
        RowFile(path, "conversations").each(fail).kept()


@pytest.mark.parametrize(
    "row, kind, name",
    [
        (dict(prompt="a", chosen="b", rejected="c"), "conversations", "preference p"),
        (dict(chosen=turns("a"), rejected=turns("b")), "conversations", "preference p"),
        (ROWS[0], "preferences", "conversations"),
        (dict(instruction="a", output="b"), "preferences", "conversations"),
    ],
)
def test_the_other_kind_of_file_is_told_by_name(file, row, kind, name):
    assert refusal(file(json.dumps(row)), kind).startswith(f": this looks like {name}")


def test_a_huge_bad_row_is_not_repeated(file):
    huge = [{"x" * 100_000: 1}, dict(prompt="a", completion=["x" * 100_000])]
    for row in huge:
        assert len(refusal(file(json.dumps(row)))) < 1000
    assert "Python cannot read" in refusal(file("[" * 100_000))
    assert "line 1: Python cannot read" in refusal(file('{"a": ' + "1" * 5000 + "}"))
