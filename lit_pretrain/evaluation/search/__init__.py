"""Search by embeddings: queries, what is searched, and the sheet that shows what was found."""
