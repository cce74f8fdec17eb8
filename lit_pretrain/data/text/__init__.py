"""Text: tokenizers, tokenised corpora on disk, documents, pairs of sentences."""
