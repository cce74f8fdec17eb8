"""LightningDataModules: clean batches from any source, tokenised or decoded once, in an order that can be resumed."""

from lit_pretrain.data.document_data_module import DocumentDataModule
from lit_pretrain.data.image_data_module import ImageDataModule
from lit_pretrain.data.joint_data_module import JointDataModule
from lit_pretrain.data.labelled_data_module import LabelledDataModule
from lit_pretrain.data.pair_data_module import PairDataModule

__all__ = ["DocumentDataModule", "ImageDataModule", "JointDataModule", "LabelledDataModule", "PairDataModule"]
