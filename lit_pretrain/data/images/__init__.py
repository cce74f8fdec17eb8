"""Pictures: decoding, caches, folders and tables of pictures, augmentation on the device."""
