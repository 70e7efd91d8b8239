"""Texts for TensorBoard, which only TensorFlow writes."""

import tensorflow as tf


class TextWriter:
    """Writes texts to an event file.

    Args:
        log_dir: str or path of the folder.
    """

    def __init__(self, log_dir):
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, name, text, step):
        """Adds one text, shown as it is, at a step."""
        indented = "\n".join("    " + line for line in text.splitlines())
        with self._writer.as_default():
            tf.summary.text(name, indented, step=step)
        self._writer.flush()

    def close(self):
        """Ends the file."""
        self._writer.close()
