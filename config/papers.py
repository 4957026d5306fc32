# Your own documents: a folder of PDFs (or .txt, .md, .jsonl, .parquet), its own vocabulary, 12.2M parameters.
#   python prepare.py --input=papers/ --name=papers --vocab_size=4096 --val_fraction=0.1
#   python train.py config/papers.py
# Needs: a few hundred kB of text at least, 1.8 GB of memory and an hour on two CPU cores (from its first
# steps), or a T4 (computed: 1 minute at least). Little text is read many times over, so dropout is on and
# the validation loss tells when to stop: best.pt is the model to use.
out_dir = 'out/papers'
dataset = 'papers'
n_layer, n_head, n_embd = 6, 6, 384
block_size = 256
dropout = 0.2
batch_size = 16
max_iters = 2000
learning_rate = 2e-3
weight_decay = 0.2
eval_interval = 250
