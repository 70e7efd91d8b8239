"""Samples reach TensorBoard as they are."""

import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorboard")
from keras_chargen.tensorboard import TextWriter  # noqa: E402


def texts_in(folder):
    """What the event files of a folder hold, by name and step."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                text = value.tensor.string_val[0].decode()
                found[value.tag, event.step] = text
    return found


def test_a_text_is_found_by_name_and_step(tmp_path):
    writer = TextWriter(tmp_path)
    writer.write("sample/greedy", "Today", 1)
    writer.write("sample/greedy", "Today *x*\n# y", 2)
    # Readable before the end of a run.
    assert ("sample/greedy", 1) in texts_in(tmp_path)
    writer.close()
    assert texts_in(tmp_path) == {
        ("sample/greedy", 1): "    Today",
        # Indented is literal in Markdown.
        ("sample/greedy", 2): "    Today *x*\n    # y",
    }
