"""LightningDataModules: clean batches from any source, tokenised or decoded once, in an order that can be resumed."""

from lit_pretrain.data.images.image_data_module import ImageDataModule
from lit_pretrain.data.labelled.labelled_data_module import LabelledDataModule
from lit_pretrain.data.pairs.joint_data_module import JointDataModule
from lit_pretrain.data.pairs.pair_data_module import PairDataModule
from lit_pretrain.data.text.document_data_module import DocumentDataModule

__all__ = ["DocumentDataModule", "ImageDataModule", "JointDataModule", "LabelledDataModule", "PairDataModule"]
