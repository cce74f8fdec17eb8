"""Pictures with captions, alone or beside texts and pictures of one modality."""
