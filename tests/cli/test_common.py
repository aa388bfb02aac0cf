"""What all verbs share: text that is safe to print."""

from vcp_clip_hf.cli.common import printable


def test_no_terminal_obeys_a_file_name():
    assert printable("a\nb\r\x1b[31mred\x07\x9b\u202egnp.png") == r"a\nb\r\x1b[31mred\x07\x9b\u202egnp.png"
    assert printable("b\udcff.png") == r"b\udcff.png"
    for text in ("C:\\new\\x", "é日本💥.png", "50 % {0} <b>"):
        assert printable(text) == text
