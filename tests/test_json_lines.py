"""Files with one JSON object per line."""

import pytest

from vcp_clip_hf.json_lines import append_json_line, end_last_line, read_json_lines


def test_a_record_after_an_incomplete_one_is_on_its_own_line(tmp_path):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"step": 1})
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    assert read_json_lines(path) == ([{"step": 1}], 1)
    append_json_line(path, {"step": 2})
    assert read_json_lines(path) == ([{"step": 1}, {"step": 2}], 1)


def test_what_is_not_an_object_is_counted(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'[1]\n3\n\n{"name": "\xff"}\n \n{"a": NaN}\n')
    records, damaged = read_json_lines(path)
    assert damaged == 2 and records[0] == {"name": "\N{REPLACEMENT CHARACTER}"} and list(records[1]) == ["a"]


def test_a_complete_last_line_stays(tmp_path):
    path = tmp_path / "log.jsonl"
    end_last_line(path)
    assert not path.exists()
    for content, expected in ((b"", b""), (b"{}\n", b"{}\n"), (b"{}", b"{}\n")):
        path.write_bytes(content)
        end_last_line(path)
        assert path.read_bytes() == expected
    with pytest.raises(FileNotFoundError):
        read_json_lines(tmp_path / "gone.jsonl")
