"""Where text comes from: readers of files and datasets, tokenizers, the stories. Datasets made
by prepare.py, one folder each, are beside the modules."""
