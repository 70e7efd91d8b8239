"""Texts coloured by surprisal, for a terminal and as a page."""

import html
import math
import unicodedata

_MOST = 8.0  # bits; beyond that the colour stays
# From what was expected to what was not: red, green, blue.
_COLORS = ((38, 84, 124), (95, 149, 152), (244, 211, 94), (238, 108, 77))

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.6 ui-monospace, monospace; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; background: #fff; color: #111; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .5rem; }}
p b {{ color: #555; font-weight: normal; }}
span {{ border-radius: 2px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Bits that the model needed for each character: {legend}</p>
"""


def color(bits):
    """Returns the background `(red, green, blue)` for a surprisal in bits."""
    place = min(max(bits, 0.0), _MOST) / _MOST * (len(_COLORS) - 1)
    low = min(int(place), len(_COLORS) - 2)
    share = place - low
    return tuple(
        round(a + (b - a) * share)
        for a, b in zip(_COLORS[low], _COLORS[low + 1], strict=True)
    )


def rich_text(pairs):
    """Returns a `rich.text.Text`.

    Args:
        pairs: As `scoring.align` gives them.
    """
    from rich.text import Text

    text = Text()
    for character, nats in pairs:
        style = "dim"
        if nats is not None:
            background = color(nats / math.log(2))
            style = f"{_ink(background)} on rgb{background}".replace(" (", "(")
            style = style.replace(", ", ",")
        text.append(_visible(character), style)
    return text


def page_head(title):
    """Returns the beginning of a page, up to its first text."""
    legend = "".join(
        _span(f" {bits} ", bits * math.log(2)) for bits in range(int(_MOST) + 1)
    )
    return _PAGE.format(title=html.escape(title), legend=legend)


def page_text(pairs, bits_per_character):
    """Returns a text of the page: its bits per character, and its colours."""
    spans = "".join(_span(c, nats) for c, nats in pairs)
    return f"<p><b>{bits_per_character:6.3f}</b> {spans}</p>\n"


PAGE_END = "</body>\n</html>\n"


def _span(character, nats):
    shown = html.escape(_visible(character))
    if nats is None:
        return f'<span title="not scored">{shown}</span>'
    bits = nats / math.log(2)
    background = color(bits)
    red, green, blue = background
    return (
        f'<span style="background:rgb({red},{green},{blue});'
        f'color:{_ink(background)}" title="{bits:.2f} bits">{shown}</span>'
    )


def _visible(character):
    """What shows a character, its colour, and does nothing else."""
    if character == "\n":
        return "\u21b5\n"
    if len(character) == 1 and ord(character) < 32:
        return chr(0x2400 + ord(character))  # pictures of control characters
    if unicodedata.category(character[0]) == "Cc":
        return "\ufffd"
    return character.encode("utf-8", "replace").decode()


def _ink(background):
    red, green, blue = background
    # Luminance as the eye weighs it (ITU-R BT.601).
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 128
    return "black" if bright else "white"
