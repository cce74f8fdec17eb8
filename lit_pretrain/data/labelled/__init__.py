"""Labelled texts, pairs of texts and pictures: labels, budgets of labels, their parts."""
