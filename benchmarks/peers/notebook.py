"""The lesson as it is known: a legacy tokenizer, one-hot on the wire, batch 8.

Written after the description in the lesson: a `Tokenizer` behind
`py_function`, texts padded on the left, one-hot vectors made in the pipeline,
`fit` with Keras's defaults, and the whole prefix read again for each new
character.
"""

import time

EOS = "\n"


class LegacyTokenizer:
    """Characters to ids from 1, by how often they occur, as it was in Keras 2.

    `keras.preprocessing.text` is gone from Keras 3; this does per character
    in Python what it did.
    """

    def __init__(self, texts):
        counts = {}
        for text in texts:
            for character in text + EOS:
                counts[character] = counts.get(character, 0) + 1
        ordered = sorted(counts, key=counts.get, reverse=True)
        self.word_index = {c: i + 1 for i, c in enumerate(ordered)}

    def texts_to_sequences(self, texts):
        found = []
        for text in texts:
            ids = []
            for character in text:
                i = self.word_index.get(character)
                if i is not None:
                    ids.append(i)
            found.append(ids)
        return found


def dataset(texts, tokenizer, batch_size):
    """Batches of one-hot inputs and targets `(B, T, V)`, padded on the left."""
    import tensorflow as tf
    from keras.utils import pad_sequences

    size = len(tokenizer.word_index) + 1

    def encode(texts):
        found = tokenizer.texts_to_sequences(
            [text.decode() + EOS for text in texts.numpy()]
        )
        return pad_sequences(found)

    def vectors(texts):
        ids = tf.py_function(encode, [texts], tf.int32)
        ids.set_shape([None, None])
        one_hot = tf.one_hot(ids, size)
        return one_hot[:, :-1], one_hot[:, 1:]

    return (
        tf.data.Dataset.from_tensor_slices(texts)
        .batch(batch_size)
        .map(vectors)
        .prefetch(1)
    )


def count(batches):
    """Targets that are not padding: a line end is one, as in other rows."""
    return sum(int(targets[..., 1:].numpy().sum()) for _, targets in batches)


def build(size, units):
    """The model: an LSTM and a softmax over characters at each step."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((None, size)),
            # Id 0 is a one-hot vector too, so this masks nothing.
            keras.layers.Masking(),
            keras.layers.LSTM(units, return_sequences=True),
            keras.layers.Dense(size, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy")
    return model


def training(texts, units, batch_size=8):
    """Measures an epoch: characters a second, padding not counted."""
    tokenizer = LegacyTokenizer(texts)
    model = build(len(tokenizer.word_index) + 1, units)
    batches = dataset(texts, tokenizer, batch_size)
    characters = count(batches)

    def train(batches):
        # A dataset is as shuffled as it is; Keras warns of the default.
        model.fit(batches, shuffle=False, verbose=0)

    train(batches)

    def run():
        begin = time.perf_counter()
        train(batches)
        return characters / (time.perf_counter() - begin)

    return run


def train_for(texts, units, seconds, batch_size=8):
    """Trains until so many seconds of `fit` have passed, compiling among them.

    Args:
        texts: List of str, read in this order again and again.
        units: Integer.
        seconds: Number; the batch at which they are over is the last.
        batch_size: Integer.

    Returns:
        The model and its tokenizer.
    """
    import keras

    class Limit(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.end = time.perf_counter() + seconds

        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = time.perf_counter() >= self.end

    tokenizer = LegacyTokenizer(texts)
    model = build(len(tokenizer.word_index) + 1, units)
    batches = dataset(texts, tokenizer, batch_size)
    # More epochs than any number of seconds holds.
    model.fit(
        batches, epochs=10**9, shuffle=False, callbacks=[Limit()], verbose=0
    )
    return model, tokenizer


def nats(model, tokenizer, texts, batch_size=8):
    """Returns the sum of nats and how many characters they are of.

    Of a text the notebook predicts all but the first character, which is only
    read (where padding stands before it, it is predicted from that, and not
    counted either); the line end counts, and what the tokenizer does not know
    is dropped. So its figure looks better than one that counts all.
    """
    import numpy as np

    total = characters = 0
    batches = dataset(texts, tokenizer, batch_size)
    for inputs, targets in batches.as_numpy_iterator():
        counted = inputs[..., 0] == 0
        found = (model.predict_on_batch(inputs) * targets).sum(-1)[counted]
        # The loss of Keras has this bound too.
        total -= float(np.log(np.maximum(found, 1e-7)).sum(dtype="float64"))
        characters += len(found)
    return total, characters


def write(model, tokenizer, prompt, length):
    """Writes greedily: the whole prefix is read for each new character."""
    import numpy as np

    names = {i: c for c, i in tokenizer.word_index.items()}
    size = len(names) + 1
    text = prompt
    for _ in range(length):
        ids = tokenizer.texts_to_sequences([text])
        vectors = np.eye(size, dtype="float32")[np.array(ids)]
        probabilities = model.predict(vectors, verbose=0)[0, -1]
        # A drawn padding id has no name; the lesson crashes here.
        following = names[int(probabilities[1:].argmax()) + 1]
        if following == EOS:
            following = " "
        text += following
    return text


def writing(texts, units, length):
    """Measures characters a second of one text of this length."""
    tokenizer = LegacyTokenizer(texts)
    model = build(len(tokenizer.word_index) + 1, units)
    write(model, tokenizer, "Today ", 2)

    def run():
        begin = time.perf_counter()
        write(model, tokenizer, "Today ", length)
        return length / (time.perf_counter() - begin)

    return run
