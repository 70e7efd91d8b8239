"""Texts made of several fields: `"{label}: {title}"`."""

import string


class Template:
    """A text with fields in braces; `{{` and `}}` are braces.

    Args:
        text: str that names at least one field.

    Raises:
        ValueError: Not such a str.
    """

    def __init__(self, text):
        if not isinstance(text, str):
            raise ValueError(
                f"`template` must be a str. Received: {type(text).__name__}"
            )
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"`template` {text!r} is not valid: {error}"
            ) from None
        named = [part for part in parts if part[1] is not None]
        if not named:
            raise ValueError(
                "`template` must name a field in braces, as in "
                f"'{{label}}: {{title}}'. Received: {text!r}"
            )
        for _, field, format_spec, conversion in named:
            if not field or format_spec or conversion:
                raise ValueError(
                    "`template` must hold plain names in braces. "
                    f"Received: {text!r}"
                )
        self.text = text
        self.fields = [str(f) for f in dict.fromkeys(p[1] for p in named)]
        self._parts = [(literal, field) for literal, field, *_ in parts]

    def fill(self, values):
        """Returns the text with the values, a list in the order of fields."""
        known = dict(zip(self.fields, values, strict=True))
        return "".join(
            literal + ("" if field is None else known[field])
            for literal, field in self._parts
        )

    def __repr__(self):
        return f"Template({self.text!r})"
