"""LightningDataModules: clean batches from any source, tokenised or decoded once, in an order that can be resumed."""

from lit_pretrain.data.document_data_module import DocumentDataModule

__all__ = ["DocumentDataModule"]
