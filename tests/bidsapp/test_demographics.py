import pytest

from bidsapp.demographics import Demographics, Remarks, cells_of, demographics, read_table

MONTHS = {"age": {"Units": "months"}}
NUMBERS = {"sex": {"Levels": {"1": "male", "2": "female"}}}


def look_up(text: str, sidecar: dict | None = None) -> tuple[Demographics, tuple[str, ...]]:
    """Look sub-01 up in one table with the columns participant_id, age and sex."""
    table = read_table(text, "participants.tsv", "participant_id", sidecar or {}, "sub-")
    remarks = Remarks()
    return demographics([(table, "sub-01")], None, remarks), remarks.lines()


@pytest.mark.parametrize(
    ("text", "sidecar", "age", "remark"),
    [
        ("34", {}, 34.0, ""),
        ("34.25", {"age": {"Units": "years"}}, 34.25, ""),
        ("34.25", {"age": {"Units": "Year"}}, 34.25, ""),
        ("3.4e1", {}, 34.0, ""),
        ("0.5", {}, 0.5, ""),
        ("420", MONTHS, 35.0, ""),
        ("420", {"Age": {"Units": "Months"}}, 35.0, ""),
        ("1461", {"age": {"Units": "days"}}, 4.0, ""),
        ("1461", {"age": {"Units": "weeks"}}, 28.0, ""),
        ("038Y", {}, 38.0, ""),
        ("006M", {}, 0.5, ""),
        ("n/a", {}, None, ""),
        ("", {}, None, ""),
        ("NaN", {}, None, ""),
        ("89+", {}, 89.0, "age '89+' is a bound; taken as 89 years"),
        (">89", {}, 89.0, "age '>89' is a bound"),
        ("38,5", {}, 38.5, "age '38,5' has a decimal comma"),
        ("old", {}, None, "age 'old' is not an age"),
        ("-999", {}, None, "age '-999' is not an age"),
        ("inf", {}, None, "age 'inf' is not an age"),
        ("999", {}, None, "age '999' is not a human age in years"),
        ("9999", MONTHS, None, "age '9999' is not a human age in months"),
        ("34", {"age": {"Units": "dog years"}}, 34.0, "unknown Units 'dog years'"),
        ("34", {"age": "in years"}, 34.0, ""),
    ],
)
def test_ages(text: str, sidecar: dict, age: float | None, remark: str) -> None:
    found, remarks = look_up(f"participant_id\tage\nsub-01\t{text}\n", sidecar)
    assert found.age == pytest.approx(age)
    assert [
        line.startswith("participants.tsv, row 2: ") and remark in line for line in remarks
    ] == ([True] if remark else [])


@pytest.mark.parametrize(
    ("column", "text", "sidecar", "sex", "warned"),
    [
        ("sex", "F", {}, "F", False),
        ("sex", "female", {}, "F", False),
        ("Sex", "Male", {}, "M", False),
        ("SEX", "m", {}, "M", False),
        ("gender", "f", {}, "F", False),
        ("gender", "m", {"gender": {"Levels": {"M": "male", "F": "female"}}}, "M", False),
        ("Gender", "woman", {}, "F", False),
        ("sex", "2", NUMBERS, "F", False),
        ("sex", "1.0", NUMBERS, "M", False),
        ("sex", "0", {"sex": {"Levels": {"0": "Female participant", "1": "Male"}}}, "F", False),
        ("sex", "1", {"sex": {"Levels": {"1": {"Description": "female"}}}}, "F", False),
        ("sex", "2", {}, None, True),
        ("sex", "2", {"sex": {"Description": "1 is male"}}, None, True),
        ("sex", "3", NUMBERS, None, True),
        ("sex", "fm", {}, None, True),
        ("sex", "O", {}, None, False),
        ("sex", "n/a", {}, None, False),
    ],
)
def test_sexes(column: str, text: str, sidecar: dict, sex: str | None, warned: bool) -> None:
    found, remarks = look_up(f"participant_id\t{column}\nsub-01\t{text}\n", sidecar)
    assert found.sex == sex
    assert [f"{column.lower()} '{text}'" in line for line in remarks] == [True] * warned


@pytest.mark.parametrize("column", ["group", "Diagnosis", "dx"])
def test_group_and_site(column: str) -> None:
    found, _ = look_up(f"participant_id\tsite\t{column}\nsub-01\tA b\tpatient\n")
    assert (found.site, found.group) == ("A b", "patient")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffparticipant_id\tage\tsex\r\nsub-01\t34\tF\r\n",
        "participant_id\tage\tsex\rsub-01\t34\tF\r",
        '"participant_id"\t"age"\t"sex"\n"sub-01"\t"34"\t"F"\n',
        "Participant_ID\tAge\tSex\n\n01\t 34 \tF\n",
        "sex\tage\tother\tparticipant_id\nF\t34\t\tsub-01\n",
        'participant_id\tage\tsex\tnote\nsub-02\t70\tM\ta " b\nsub-01\t34\tF\n',
    ],
    ids=["BOM and CRLF", "CR", "quoted", "case, blank line, no prefix", "order", "lone quote"],
)
def test_tables_as_people_write_them(text: str) -> None:
    assert look_up(text) == (Demographics(34.0, "F"), ())


def test_short_rows_and_unknown_participants_are_unknown() -> None:
    assert look_up("participant_id\tage\tsex\nsub-01\t34\n") == (Demographics(34.0), ())
    assert look_up("participant_id\tage\tsex\nsub-02\t34\tF\n") == (Demographics(), ())
    assert look_up("") == (Demographics(), ())


def test_same_row_twice_is_used_with_a_warning() -> None:
    text = "participant_id\tage\tsex\nsub-01\t34\tF\nsub-02\t1\tF\nsub-01\t34.0\tn/a\n"
    found, remarks = look_up(text)
    assert found == Demographics(34.0, "F")
    assert remarks == ("participants.tsv, row 4: 'sub-01' has a row already (row 2)",)


def test_contradicting_rows_make_the_value_unknown() -> None:
    text = "participant_id\tage\tsex\nsub-01\t34\tF\nsub-01\t43\tF\n"
    found, remarks = look_up(text)
    assert found == Demographics(None, "F")
    assert "participants.tsv, row 3: age '43' contradicts '34' in row 2" in remarks[1]


def test_equal_remarks_are_told_once() -> None:
    text = "participant_id\tsex\n" + "".join(f"sub-{n:02d}\t1\n" for n in range(20))
    table = read_table(text, "participants.tsv", "participant_id", {}, "sub-")
    remarks = Remarks()
    for label in table.rows:
        demographics([(table, label)], None, remarks)
    (line,) = remarks.lines()
    assert line.startswith("participants.tsv, rows 2, 3, 4, 5, 6, 7, 8, 9 and 12 more: sex '1'")


def test_first_table_with_a_value_wins() -> None:
    scans = read_table("filename\tage\nanat/a\tn/a\n", "scans.tsv", "filename", {})
    sessions = read_table("session_id\tage\na\t36\n", "sessions.tsv", "session_id", {}, "ses-")
    people = read_table("participant_id\tage\tsex\nsub-01\t34\tF\n", "p.tsv", "participant_id", {})
    lookups = [(scans, "anat/a"), (sessions, "ses-a"), (people, "sub-01")]
    assert demographics(lookups, "ses-a", Remarks()) == Demographics(36.0, "F")


def test_contradiction_does_not_fall_back_to_a_less_specific_table() -> None:
    sessions = read_table("session_id\tage\na\t36\na\t37\n", "s.tsv", "session_id", {}, "ses-")
    people = read_table("participant_id\tage\nsub-01\t34\n", "p.tsv", "participant_id", {})
    found = demographics([(sessions, "ses-a"), (people, "sub-01")], "ses-a", Remarks())
    assert found.age is None


def test_rows_of_other_sessions_are_kept_out() -> None:
    text = "participant_id\tsession_id\tage\nsub-01\tses-a\t30\nsub-01\tb\t32\n"
    table = read_table(text, "p.tsv", "participant_id", {}, "sub-")
    remarks = Remarks()
    ages = [demographics([(table, "sub-01")], f"ses-{s}", remarks).age for s in "abc"]
    assert ages == [30.0, 32.0, None]
    assert remarks.lines() == ()


def test_cells_of_other_columns_come_from_the_first_table_that_has_them() -> None:
    first = read_table("session_id\tIQ\tdose\nses-a\tn/a\t2\n", "s.tsv", "session_id", {})
    second = read_table(
        "participant_id\tIQ\tdose\tarm\nsub-1\t101\t1\tL\nsub-1\t101\t1\tR\n", "p.tsv",
        "participant_id", {},
    )  # fmt: skip
    remarks = Remarks()
    found = cells_of(
        [(first, "ses-a"), (second, "sub-1")], ("iq", "dose", "arm", "x"), "ses-a", remarks
    )
    assert found == {"iq": "101", "dose": "2"}
    assert any("arm has several values (L, R)" in line for line in remarks.lines())
