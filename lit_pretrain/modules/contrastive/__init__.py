"""Contrastive pretraining of texts and pictures in two towers, its validation, and what it replays."""
