# Your own documents: PDFs, .txt, .md, .jsonl or .parquet, with a vocabulary trained on them:
# 12.2M parameters.
#   python prepare.py --input=papers/ --name=papers --vocab_size=4096 --val_fraction=0.1
#   python train.py config/papers.py
# It needs a few hundred kB of text at least, and 1.8 GB of memory. A text as short as that is read
# many times over, so dropout is on, and the validation loss says when the model begins to learn it
# by heart: best.pt is from before that, and sample.py takes it.
out_dir = 'out/papers'
dataset = 'papers'
n_layer, n_head, n_embd = 6, 6, 384
block_size = 256
dropout = 0.2
head_gain = 1.0
batch_size = 16
max_iters = 2000
learning_rate = 2e-3
weight_decay = 0.2
eval_interval = 250
