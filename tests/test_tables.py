"""Tables are read and written as other programs do it, and bad ones are refused with advice."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt2c
from gpt2c.tables import create_table, open_table, open_texts, to_frame, with_added
from gpt2c.tables import source as source_module
from gpt2c.tables.table import RowError

BOM = b"\xef\xbb\xbf"
TYPES = {"text": str, "count": int, "score": float, "flag": bool, "ids": list}
FORMATS = ["csv", "tsv", "jsonl", "parquet"]

# Everything that a cell of CSV may hold: quotes, delimiters, line ends, formulas, no NUL.
TEXTS = st.text(
    st.sampled_from("ab\"',;\t\r\n #=+-@é😀\ufeff\u2028\x0b\x85") | st.characters(codec="utf-8"),
    max_size=12,
).filter(lambda text: "\0" not in text)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.fixed_dictionaries(
    {
        "text": TEXTS,
        "count": st.none() | INTEGERS,
        "score": st.none() | FLOATS,
        "flag": st.none() | st.booleans(),
        "ids": st.lists(INTEGERS, max_size=3),
    }
)


def needed(format: str) -> str:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    return format


def written(path: Path, raw: bytes | str) -> str:
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return str(path)


def read(path: str | Path, **options) -> list[dict[str, object]]:
    with open_table(str(path), **options) as table:
        return [dict(row) for row in table]


def write(path: str, columns, rows, until: Exception | None = None, **options) -> None:
    with create_table(path, columns, **options) as table:
        for row in rows:
            table.write(row)
        if until is not None:
            raise until


def as_text(value: object) -> str:
    """Return what a cell of CSV holds for a value."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("format", FORMATS)
@settings(
    max_examples=cases(60), suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)  # fmt: skip
@given(rows=st.lists(ROWS, max_size=4))
def test_what_is_written_is_read_again(tmp_path, format, rows):
    path = str(tmp_path / f"table.{needed(format)}")
    with create_table(path, TYPES) as table:
        for row in rows:
            table.write(row)
    if format in ("csv", "tsv"):
        rows = [{key: as_text(value) for key, value in row.items()} for row in rows]
    assert read(path) == rows
    assert sorted(os.listdir(tmp_path)) == [f"table.{format}"]  # nothing stays beside it


@settings(
    max_examples=cases(200), suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)  # fmt: skip
@given(
    header=st.lists(TEXTS, min_size=1, max_size=4, unique=True),
    cells=st.lists(st.lists(TEXTS, min_size=4, max_size=4), max_size=4),
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_is_read_as_pythons_module_reads_a_whole_file(
    tmp_path, header, cells, delimiter, line_end, mark, quoting
):
    rows = [row[: len(header)] for row in cells]
    out = io.StringIO()
    writer = csv.writer(
        # Older versions of the csv module leave CR and LF unquoted unless a line ends with them.
        out, delimiter=delimiter, lineterminator=line_end,
        quoting=quoting if line_end == "\r\n" else csv.QUOTE_ALL,
    )  # fmt: skip
    writer.writerows([header, *rows])
    path = written(tmp_path / "table.csv", BOM * mark + out.getvalue().encode())
    with open(path, encoding="utf-8-sig", newline="") as file:
        expected = [row for row in csv.reader(file, delimiter=delimiter) if row]
    assert expected == [header, *rows]
    found = read(path, delimiter=delimiter)
    assert [list(row.values()) for row in found] == rows
    assert all(list(row) == header for row in found)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_same_csv_comes_back_with_columns_added(tmp_path, delimiter, mark, line_end):
    lines = ["word{d}note", 'The{d}"a ""quoted"" {d} note"', '=1+1{d}"two\nlines"', "007{d}"]
    lines = [line.replace("{d}", delimiter) for line in lines]
    path = written(tmp_path / "in.csv", mark + (line_end.join(lines) + line_end).encode())
    with (
        open_table(path) as table,
        create_table(
            str(tmp_path / "out.csv"), with_added(table.name, table.types, {"n": int}),
            like=table.layout,
        ) as out,
    ):  # fmt: skip
        for row in table:
            out.write({**row, "n": len(row.text("word"))})
    expected = [f"{lines[0]}{delimiter}n"]
    expected += [f"{line}{delimiter}{n}" for line, n in zip(lines[1:], (3, 4, 3), strict=True)]
    raw = mark + (line_end.join(expected) + line_end).encode()
    assert (tmp_path / "out.csv").read_bytes() == raw


def test_places_count_lines_also_where_quotes_span_several(tmp_path):
    path = written(tmp_path / "t.csv", 'a,b\r\n\r\n1,"x\ny"\r\n\r\n2,z\r\n')
    with open_table(path) as table:
        assert [row.place for row in table] == [f"{path}, line 3", f"{path}, line 6"]


def test_the_delimiter_is_seen_in_the_header(tmp_path):
    for header, expected in [
        ("a;b;c", ";"), ("a\tb", "\t"), ("a,b", ","), ("word", ","), ('"a,b";c', ";"),
        ("a;b,c;d", ";"), ('"a\nb";c', ";"),
    ]:  # fmt: skip
        with open_table(written(tmp_path / "t.csv", header)) as table:
            assert table.layout.delimiter == expected
    with open_table(written(tmp_path / "t.tsv", "a, b, c\td")) as table:
        assert table.columns == ("a, b, c", "d")
    with open_table(written(tmp_path / "t.csv", "a|b;c"), delimiter="|") as table:
        assert table.columns == ("a", "b;c")


MALFORMED = {
    "ragged": ("a,b\n1,2\n3\n", "line 3: found 1 cells, expected 2, one for each column: 'a', 'b'"),
    "more": ("a\nHello, world\n", "line 2: found 2 cells, expected 1"),
    "duplicate": ("a,b,a\n", "has two columns named 'a'"),
    "nul": ("a,b\n1,\0\n", "line 2: found a NUL character.*UTF-16, save it as UTF-8"),
    "open quote": ('a,b\n1,"2\n3,4\n', "line 2: the row has a quote that is not closed"),
    "after quote": ('a,b\n1,"2"x\n', "line 2: the row has characters after a closing quote"),
    "open header": ('a,"b\n1,2\n', "the header has a quote that is not closed"),
    "tie": ("a,b;c\n", "cannot tell the delimiter: the header has 2 columns with ',' and with ';'"),
    "empty": ("", "is empty; expected a first line with the names of the columns"),
    "blank": ("\n\r\n", "is empty; expected a first line with the names of the columns"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_csv_is_an_error_with_its_place(tmp_path, name):
    raw, message = MALFORMED[name]
    path = written(tmp_path / "t.csv", raw)
    with pytest.raises(gpt2c.TableError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(path)


def test_bytes_that_are_not_utf_8_are_named(tmp_path):
    with pytest.raises(gpt2c.TableError, match=r"line 2 is not UTF-8 at byte 7 .* found 0xe9"):
        read(written(tmp_path / "t.csv", b"a,b\n1,c\xe9\n"))
    with pytest.raises(gpt2c.TableError, match="it seems to be UTF-16; save it as UTF-8"):
        read(written(tmp_path / "t.csv", "a,b\n1,2\n".encode("utf-16")))


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("raw", [b"x" * 2000, b'a,b\n"' + b"x\n" * 1000, b"," * 2000])
def test_a_row_without_end_does_not_fill_the_memory(tmp_path, monkeypatch, format, raw):
    for module in (source_module, sys.modules["gpt2c.tables.delimited"]):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 1000)
    with pytest.raises(gpt2c.TableError):
        read(written(tmp_path / f"t.{format}", raw))
    with open("/dev/zero", "rb") as endless:  # the limit ends the reading
        found = source_module.Source(endless, "zero")
        with pytest.raises(gpt2c.TableError, match="line 1: found a line of more than 1000 bytes"):
            next(found.lines())


def test_a_cell_may_be_longer_than_the_csv_modules_default(tmp_path):
    text = "word " * 100_000
    assert read(written(tmp_path / "t.csv", f"a,b\n{text},x\n")) == [{"a": text, "b": "x"}]


def test_missing_columns_are_named_with_near_misses(tmp_path):
    path = written(tmp_path / "t.csv", "Sentence,item\nx,1\n")
    with open_table(path) as table:
        with pytest.raises(gpt2c.TableError) as caught:
            table.require("item", "sentence")
        assert str(caught.value) == (
            f"{path}: found no column 'sentence'; the columns are 'Sentence', 'item'; did you mean "
            "Sentence?"
        )
        (row,) = table
        with pytest.raises(gpt2c.TableError, match=r"line 2: found no column 'itme'.*mean item\?"):
            row.text("itme")
    with (
        pytest.raises(gpt2c.TableError, match="found no column 'text'"),
        open_texts(path, column="text"),
    ):
        pass


@pytest.mark.parametrize("format", FORMATS)
def test_undefined_numbers_are_missing(tmp_path, format):
    path = str(tmp_path / f"t.{needed(format)}")
    columns = {"a": float, "b": float, "c": float, "d": str}
    with create_table(path, columns, missing="NA") as table:
        table.write({"a": math.nan, "b": -math.inf, "c": np.float32(0.5)})
    missing = "NA" if format in ("csv", "tsv") else None
    (row,) = read(path)
    expected = {"a": missing, "b": missing, "c": "0.5" if missing else 0.5, "d": missing}
    if format == "jsonl":  # an absent column stays absent
        del expected["d"]
    assert row == expected


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_is_kept(tmp_path, format):
    path, facts = str(tmp_path / f"t.{needed(format)}"), {"model": "a: b", "arithmetic": 1}
    with create_table(path, {"a": str}, metadata=facts, metadata_lines=True) as table:
        table.write({"a": "x"})
    with open_table(path) as table:
        assert table.metadata == {"model": "a: b", "arithmetic": "1"}
        assert table.columns == ("a",)
        assert [dict(row) for row in table] == [{"a": "x"}]
    with create_table(path, {"a": str}, metadata=facts) as table:
        table.write({"a": "x"})
    with open_table(path) as table:
        assert table.metadata == (
            {} if format != "parquet" else {"model": "a: b", "arithmetic": "1"}
        )


@pytest.mark.parametrize("format", FORMATS)
def test_an_error_leaves_the_old_file(tmp_path, format):
    path = written(tmp_path / f"t.{needed(format)}", b"old")
    with pytest.raises(ZeroDivisionError):
        write(path, {"a": str}, [{"a": "x"}], until=ZeroDivisionError())
    assert Path(path).read_bytes() == b"old"
    assert os.listdir(tmp_path) == [f"t.{format}"]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_row_with_another_column_is_an_error(tmp_path, format):
    path, columns = str(tmp_path / f"t.{needed(format)}"), {"word": str, "n": int}
    with pytest.raises(gpt2c.TableError, match=r"row 2: has the column 'wrod'.*mean word\?"):
        write(path, columns, [{"word": "x"}, {"wrod": "x"}])


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_format_cannot_hold_is_an_error(tmp_path, format):
    path = str(tmp_path / f"t.{needed(format)}")
    with pytest.raises(gpt2c.TableError, match="an unpaired surrogate"):
        write(path, {"a": str}, [{"a": "\ud800"}])
    if format in ("csv", "tsv"):
        with pytest.raises(gpt2c.TableError, match=r"row 1: 'x.*has a NUL character"):
            write(path, {"a": str}, [{"a": "x\0"}])
    assert os.listdir(tmp_path) == []


def test_a_link_a_device_and_a_folder_as_output(tmp_path):
    target = Path(written(tmp_path / "target.csv", b""))
    target.chmod(0o640)
    (tmp_path / "link.csv").symlink_to(target)
    with create_table(str(tmp_path / "link.csv"), {"a": str}) as table:
        table.write({"a": "x"})
    assert (tmp_path / "link.csv").is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("a\nx\n", 0o640)
    with create_table(os.devnull, {"a": str}, format="csv") as table:
        table.write({"a": "x"})
    assert not Path(os.devnull).is_file()
    for path, error in [(tmp_path, IsADirectoryError), (tmp_path / "no" / "a", FileNotFoundError)]:
        with pytest.raises(error) as caught, create_table(str(path), {"a": str}, format="csv"):
            pass
        assert caught.value.filename == str(path)


def test_a_table_is_read_in_bounded_memory(tmp_path):
    line = "x" * 100 + "," + "y" * 100 + "\n"
    path = written(tmp_path / "t.csv", "a,b\n" + line * 50_000)  # 10 MB
    with open_table(path) as table:
        tracemalloc.start()
        n = sum(1 for _ in table)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert n == 50_000
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"a": 1}\n[1]\n', "line 2: expected an object with the row's columns, found \\[1\\]"),
        ('{"a": NaN}\n', "line 1 has NaN, which is not JSON"),
        ('{"a": 1, "a": 2}\n', "line 1 has the key 'a' twice"),
        ("\n{\n", "line 2 is not JSON"),
        ("[" * 100_000, "line 1 is JSON nested more than"),
    ],
)
def test_malformed_json_lines(tmp_path, raw, message):
    with pytest.raises(gpt2c.TableError, match=message):
        read(written(tmp_path / "t.jsonl", raw))


def test_names_of_formats(tmp_path):
    with pytest.raises(gpt2c.OptionError, match=r"does not say the table's format.*\.csv"):
        read(tmp_path / "t.dat")
    with pytest.raises(gpt2c.OptionError, match="format is 'excel'; it must be one of 'csv'"):
        read(tmp_path / "t.csv", format="excel")
    with pytest.raises(gpt2c.OptionError, match="delimiter is '::'; it must be one character"):
        read(tmp_path / "t.csv", delimiter="::")


def test_texts_of_every_format_are_the_same(tmp_path):
    texts = ["Once, upon a time", 'the "old" king\nslept', "=SUM(A1)"]
    for format in FORMATS:
        path = str(tmp_path / f"t.{needed(format)}")
        with create_table(path, {"item": int, "sentence": str}) as table:
            for n, text in enumerate(texts):
                table.write({"item": n, "sentence": text})
        with open_texts(path, column="sentence") as found:
            assert list(found.types) == ["item", "sentence"]
            items = list(found)
        assert [item.text for item in items] == texts
        assert [str(item.row["item"]) for item in items] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_columns_become_a_frame(kind):
    package = pytest.importorskip(kind)
    columns = {
        "word": ["a", "b"],
        "surprisal": np.array([0.5, np.nan], dtype=np.float32),
        "rank": np.array([1, 2], dtype=np.int32),
        "ids": [[1, 2], []],
    }
    frame = to_frame(columns, kind, {"model": "tales"})
    assert isinstance(frame, package.DataFrame)
    assert list(frame.columns) == list(columns)
    assert frame["word"].to_list() == columns["word"]
    assert [list(ids) for ids in frame["ids"]] == columns["ids"]
    for name in ("surprisal", "rank"):
        found = frame[name].to_numpy()
        assert found.dtype == columns[name].dtype
        np.testing.assert_array_equal(found, columns[name])
    if kind == "pandas":
        assert frame.attrs == {"model": "tales"}


def test_frames_that_cannot_be_made(monkeypatch):
    with pytest.raises(gpt2c.OptionError, match="kind is 'spark'; it must be one of 'pandas'"):
        to_frame({}, "spark")
    with pytest.raises(gpt2c.TableError, match=r"different lengths: {'a': 1, 'b': 2}"):
        to_frame({"a": [1], "b": [1, 2]}, "pandas")
    for kind in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, kind, None)
        with pytest.raises(gpt2c.MissingDependencyError, match=f"pip install {kind}"):
            to_frame({"a": [1]}, kind)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "gpt2c.tables.parquet", raising=False)
    for call in (
        lambda: read(written(tmp_path / "t.parquet", b"")),
        lambda: write(str(tmp_path / "u.parquet"), {"a": str}, []),
    ):
        with pytest.raises(gpt2c.MissingDependencyError, match=r"pip install 'gpt2c\[parquet\]'"):
            call()
    assert os.listdir(tmp_path) == ["t.parquet"]


# ---- hostile Parquet ----


def parquet_file(path: Path) -> bytes:
    pytest.importorskip("pyarrow")
    rows = [{"text": f"text {n}", "count": n, "ids": [n, n]} for n in range(20)]
    write(str(path), {"text": str, "count": int, "ids": list}, rows)
    return path.read_bytes()


@settings(
    max_examples=cases(100), suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)  # fmt: skip
@given(st.data())
def test_a_damaged_parquet_file_is_read_or_refused(tmp_path, data):
    raw = bytearray(parquet_file(tmp_path / "t.parquet"))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    path = written(tmp_path / "damaged.parquet", bytes(raw[:cut]))
    with contextlib.suppress(gpt2c.TableError):  # any other error fails the test
        read(path)


def test_a_small_parquet_file_that_unpacks_to_much(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    text = "x" * 1_000_000
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), [text])
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": column}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    pool = pa.default_memory_pool()
    with open_table(str(path)) as table:
        n = 0
        for row in table:
            n += 1
            assert len(row.text("a")) == len(text)
            assert pool.bytes_allocated() < 150_000_000  # of 2,000,000,000
    assert n == 2000


def test_other_types_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import datetime
    import decimal

    import pyarrow.parquet as pq

    columns = {
        "date": [datetime.date(2026, 11, 28)],
        "decimal": [decimal.Decimal("1.50")],
        "small": pa.array([3], pa.uint8()),
        "half": pa.array([0.5], pa.float32()),
        "nested": [{"a": [1, None], "b": "x"}],
        "none": pa.array([None], pa.string()),
    }
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table(columns), path)
    with open_table(path) as table:
        assert table.types == {
            "date": None, "decimal": None, "small": int, "half": float, "nested": None, "none": str,
        }  # fmt: skip
        assert [dict(row) for row in table] == [
            {
                "date": "2026-11-28", "decimal": "1.50", "small": 3, "half": 0.5,
                "nested": {"a": [1, None], "b": "x"}, "none": None,
            }
        ]  # fmt: skip
    pq.write_table(pa.table({"a": [b"\xff"]}), path)
    with pytest.raises(gpt2c.TableError, match=r"row 1: column 'a' cannot be read: found b'\\xff'"):
        read(path)
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), path)
    with pytest.raises(gpt2c.TableError, match="has two columns with one name"):
        read(path)


def test_parquet_types_that_rows_decide(tmp_path):
    pytest.importorskip("pyarrow")
    path = str(tmp_path / "t.parquet")
    write(path, {"a": None, "b": None}, [{"a": 1}, {"a": 2}])
    assert read(path) == [{"a": 1, "b": None}, {"a": 2, "b": None}]
    write(path, {"a": str}, [])
    with open_table(path) as table:
        assert (table.columns, list(table)) == (("a",), [])
    with pytest.raises(gpt2c.TableError, match="column 'a' has cells of different types"):
        write(path, {"a": None}, [{"a": 1}, {"a": "x"}])
    with pytest.raises(gpt2c.TableError, match="row 2: column 'a' has 'x', expected the column's"):
        write(path, {"a": int}, [{"a": 1}, {"a": "x"}])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a,b\n".encode("utf-16"), "it seems to be UTF-16; save it as UTF-8"),
        (b"PK\3\4\xff", "it seems to be a workbook or another zip file; save its table as CSV"),
        (b"PAR1\xff", "it seems to be Parquet; name it .parquet"),
        (b"\x1f\x8b\x08", "it seems to be compressed by gzip; decompress it"),
        (b"a,b\n\xe9", "0xe9; save it as UTF-8 .in Excel: CSV UTF-8"),
    ],
)
def test_advice_about_files_that_are_no_text(tmp_path, raw, message):
    with pytest.raises(gpt2c.TableError, match=message):
        read(written(tmp_path / "t.csv", raw))


@pytest.mark.parametrize("name", ["stimuli.xlsx", "Stimuli.XLS", "stimuli.ods"])
def test_a_spreadsheet_is_not_read_as_text(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04")
    message = f"{name} is a spreadsheet.*use CSV"
    with pytest.raises(gpt2c.OptionError, match=message), open_texts(path):
        pass
    with pytest.raises(gpt2c.OptionError, match=message), open_table(path):
        pass


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl.gz", ".csv.zst", ".tsv.zst"])
def test_compressed_tables(tmp_path, suffix):
    path = str(tmp_path / f"t{suffix}")
    rows = [{"a": f"{n} \u00e9", "b": str(n)} for n in range(1000)]
    with create_table(path, {"a": str, "b": str}) as table:
        for row in rows:
            table.write(row)
    assert Path(path).read_bytes()[:2] in (b"\x1f\x8b", b"\x28\xb5")
    with open_table(path) as read_table:
        assert [dict(row) for row in read_table] == rows
        assert read_table.extent.read() == read_table.extent.total == os.stat(path).st_size
    parquet = create_table(str(tmp_path / "t.parquet.gz"), {"a": str})
    with pytest.raises(gpt2c.OptionError, match="Parquet compresses by itself"), parquet:
        pass


def test_reading_goes_on_after_a_bad_row(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n3\n4,5\n\xff,6\n7,8\n")
    found: list[str] = []
    with open_table(tmp_path / "t.csv") as table:
        rows = iter(table)
        while True:
            try:
                row = next(rows, None)
            except RowError as error:
                found.append(error.place)
                continue
            if row is None:
                break
            found.append(row.text("a"))
    name = str(tmp_path / "t.csv")
    assert found == ["1", f"{name}, line 3", "4", f"{name}, line 5", "7"]
