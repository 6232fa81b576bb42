"""`read_file`: somebody's labels from a CSV, all of them or all that is wrong with them."""

import pytest

from halp_probe.judging.from_file import BadLabelsFile, read_file
from halp_probe.judging.verdict import Kind, Label, Question

QUESTIONS = [Question(f"q{number}", "Is there a dog?", "no", "No.") for number in range(6)]


@pytest.fixture
def write(tmp_path):
    def put(text, encoding="utf-8"):
        path = tmp_path / "anna.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return put


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((one, Label.WRONG) for one in ("true", "True", "1", "YES", " hallucinated ", "wrong")),
        *((one, Label.RIGHT) for one in ("false", "FALSE", "0", "no", "Right")),
        ("abstained", Label.ABSTAINED),
        ("", Label.UNJUDGED),
    ],
)
def test_values_are_what_people_write(write, value, label):
    """In any case, with spaces around them; true is a hallucination."""
    found = read_file(write(f"question_id,label\nq0,{value}\n"), QUESTIONS)
    assert found.verdicts["q0"].label is label
    assert found.verdicts["q0"].kind is Kind.YES_NO
    assert found.verdicts["q0"].rule


def test_what_a_person_said_is_taken_before_what_a_script_said(write):
    """Published files have both columns; --column names another."""
    path = write("question_id,is_hallucinating,is_hallucinating_manual,mine\nq0,True,False,1\n")
    assert read_file(path, QUESTIONS).verdicts["q0"].label is Label.RIGHT
    assert read_file(path, QUESTIONS).column == "is_hallucinating_manual"
    assert read_file(path, QUESTIONS, "is_hallucinating").verdicts["q0"].label is Label.WRONG
    assert read_file(path, QUESTIONS, "mine").verdicts["q0"].label is Label.WRONG


def test_rows_that_only_one_side_has_are_counted(write):
    """Neither is an error."""
    found = read_file(write("question_id,label\nq1,1\nx,1\ny,0\n"), QUESTIONS)
    assert (list(found.verdicts), found.unknown, found.missing) == (["q1"], 2, 5)


def test_every_bad_line_is_said_at_once(write):
    """With file, line and reason."""
    path = write("question_id,label\nq0,maybe\nq1,1\n,1\nq2\nq3,0\nq3,1\n")
    with pytest.raises(BadLabelsFile) as error:
        read_file(path, QUESTIONS)
    lines = str(error.value).splitlines()
    for number in (2, 4, 5, 7):
        assert any(one.startswith(f"{path}:{number}: ") for one in lines), number
    assert not any(f"{path}:{number}:" in str(error.value) for number in (1, 3, 6))


def test_a_row_that_is_there_twice_and_says_the_same_is_one(write):
    """Only contradictions are an error."""
    found = read_file(write("question_id,label\nq0,1\nq0,true\n"), QUESTIONS)
    assert found.verdicts["q0"].label is Label.WRONG


@pytest.mark.parametrize("text", ["", "id,label\nq0,1\n", "question_id,other\nq0,1\n"])
def test_a_file_without_its_columns_says_which_are_expected(write, text):
    """And which it has."""
    with pytest.raises(BadLabelsFile, match=r"anna\.csv:1: expected a column"):
        read_file(write(text), QUESTIONS)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("\ufeffquestion_id,label\r\nq0,1\r\n", "utf-8"),
        ("question_id;label\nq0;1\n", "utf-8"),
        ("label\tquestion_id\n1\tq0\n\n", "utf-8"),
        ('"question_id","label"\n"q0","1"', "utf-8"),
    ],
)
def test_files_of_spreadsheets_are_read(write, text, encoding):
    """A mark at the beginning, other separators, quotes, empty lines."""
    assert read_file(write(text, encoding), QUESTIONS).verdicts["q0"].label is Label.WRONG


@pytest.mark.parametrize(
    "data", [b"question_id,label\nq\xff,1\n", b'question_id,label\n"q0,1\n', b"\x00\x01"]
)
def test_bytes_that_are_no_table_are_refused(tmp_path, data):
    """With a sentence."""
    path = tmp_path / "anna.csv"
    path.write_bytes(data)
    with pytest.raises(BadLabelsFile, match="anna"):
        read_file(path, QUESTIONS)
