"""Documents into sentences, by the Wikimedia Foundation's `sentencex`: rules for many languages, no models."""

import sentencex


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a text in order, without surrounding white space; none for an empty text.

    Args:
        text: A document.
        language: Two-letter code whose abbreviations and marks are used.
    """
    return [sentence for one in sentencex.segment(language, text) if (sentence := one.strip())]
