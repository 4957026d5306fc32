# Character-level Shakespeare on a GPU: 10.6M parameters.
# The text is data/tinyshakespeare/input.txt in github.com/karpathy/char-rnn.
#   python prepare.py --input=input.txt --name=shakespeare --tokenizer=char --val_fraction=0.1
#   python train.py config/shakespeare_char.py
# A micro-batch of 32 sequences takes 2.8 GB. nanoGPT reports a loss of 1.4697 for this text. This
# recipe has not been run to completion on a GPU.
out_dir = 'out/shakespeare_char'
dataset = 'shakespeare'
n_layer, n_head, n_embd = 6, 6, 384
dropout = 0.3
optimizer = 'muon'
learning_rate = 2e-3
min_lr = 0.0
schedule = 'linear'
warmup_iters = 50
max_iters = 1500
batch_size = 64
weight_decay = 1.5                  # high, because the text is read 24 times
