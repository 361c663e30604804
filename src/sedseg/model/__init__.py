"""The model: tensors in, tensors out. No files, photos, devices or command line here."""
